"""Data sets of Hugging Face stream in: every text, in order, from any row; no network and no whole data set."""

import json
import os
import sys

import pytest

from gossamer.training import sources, tokenising
from gossamer.training.config import DataConfig
from gossamer.training.dataset_text import DatasetText
from gossamer.training.preparation import tokens_for
from gossamer.training.sources import UnreadableText

datasets = pytest.importorskip("datasets")
TEXTS = [[f"{shard} {n}\n" * (n % 5) for n in range(1, 40)] for shard in range(3)]


@pytest.fixture(params=["json", "parquet"])
def files(request, tmp_path):
    """(format, files) of 3 files with 39 texts each, some of them empty or missing."""
    kind, made = request.param, []
    for number, texts in enumerate(TEXTS):
        made.append(str(tmp_path / f"{number}.{kind}"))
        rows = [{"text": text if n % 7 else None, "number": n} for n, text in enumerate(texts)]
        if kind == "json":
            (tmp_path / f"{number}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(rows), made[-1], row_group_size=10)
    return kind, made


def test_each_row_is_a_document_and_reading_goes_on_from_any(files, monkeypatch) -> None:
    monkeypatch.setattr(sources, "PIECE", 5)
    text = DatasetText(files[0], files=files[1])
    whole, places = [], []
    for piece in text.pieces():
        whole.append((piece.text, piece.ends))
        places.append(json.dumps(piece.place()) if piece.place else None)
    wanted = [text for texts in TEXTS for n, text in enumerate(texts) if text and n % 7]
    assert "".join(text for text, _ in whole) == "".join(wanted)
    assert sum(ends for _, ends in whole) == len(wanted)
    assert [ends for _, ends in whole] == [place is not None for place in places]
    for number, place in enumerate(places, 1):
        if place and number % 9 in (0, 1):
            again = DatasetText(files[0], files=files[1])
            assert [(piece.text, piece.ends) for piece in again.pieces(json.loads(place))] == whole[number:]
    at_the_end = DatasetText(files[0], files=files[1]).pieces(json.loads(places[-1]))
    assert list(at_the_end) == []


def test_units_end_with_rows(files, monkeypatch) -> None:
    monkeypatch.setattr(sources, "PIECE", 5)
    monkeypatch.setattr(tokenising, "UNIT", 30)
    text = DatasetText(files[0], files=files[1])
    units = list(tokenising.units(text.pieces()))
    assert len(units) > 10
    assert all(unit.pieces[-1][1] for unit in units)
    assert [piece for unit in units for piece in unit.pieces] == [(piece.text, piece.ends) for piece in text.pieces()]


def test_tokens_are_made_of_a_data_set_and_used_again(files, tmp_path) -> None:
    config = DataConfig(dataset=files[0], dataset_files=files[1], tokenizer="bytes")
    shards = tokens_for(config, tmp_path / "tokens", vocab_size=257, context_size=16)
    assert shards.sources == (f"datasets:{files[0]}:train:text", *files[1])
    for same in (config, DataConfig()):
        assert tokens_for(same, tmp_path / "tokens", vocab_size=257, context_size=16) == shards
    other = DataConfig(dataset=files[0], dataset_files=files[1], dataset_column="number")
    with pytest.raises(ValueError, match=r"data\.dataset is .*give another data\.folder"):
        tokens_for(other, tmp_path / "tokens", vocab_size=257, context_size=16)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"split": "test"}, r"Available splits: \['train'\]; give another data\.dataset_split"),
        ({"column": "texts"}, r"no column 'texts'; give one of text, number as data\.dataset_column"),
        ({"files": ["missing.json"]}, r"cannot be opened: .*missing\.json.*correct data\.dataset"),
    ],
)
def test_what_is_not_there_is_named(files, changed, fault: str) -> None:
    with pytest.raises(UnreadableText, match=fault):
        DatasetText(files[0], **{"files": files[1], **changed})


def test_a_column_of_numbers_is_no_text(files) -> None:
    with pytest.raises(UnreadableText, match="column 'number' holds ints and no text"):
        list(DatasetText(files[0], files=files[1], column="number").pieces())


def test_the_library_is_asked_for_by_its_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UnreadableText, match=r"datasets is not installed; pip install 'gossamer\[datasets\]'"):
        DatasetText("json", files=["a.jsonl"])


def test_a_fingerprint_changes_with_a_file(files) -> None:
    before = DatasetText(files[0], files=files[1]).fingerprint
    assert DatasetText(files[0], files=files[1]).fingerprint == before
    assert DatasetText(files[0], files=files[1][:2]).fingerprint != before
    os.utime(files[1][1], ns=(0, 0))
    assert DatasetText(files[0], files=files[1]).fingerprint != before


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"sources": ("a.txt",), "dataset": "json"}, "give one of the two"),
        ({"dataset_files": ("a.json",)}, "give their format, such as json"),
        ({"dataset": "json", "dataset_files": "a.json"}, r"give a list, such as \['a\.json'\]"),
        ({"packing": "rows"}, "packing is 'rows'; give one of none, documents"),
    ],
)
def test_settings_that_contradict_are_refused(settings, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        DataConfig(**settings)
