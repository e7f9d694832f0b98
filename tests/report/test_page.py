"""The page is one file that runs its own script and no other, and every text in the data stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gossamer.report import ReportData, render, write_report

from .conftest import HOSTILE, LENGTH


class Outline(HTMLParser):
    """The tags of a page with their attributes, and the text of its scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        self.texts.setdefault(attributes.get("id") or tag, []).append(data)


@pytest.fixture(scope="module")
def page(report: ReportData) -> str:
    return render(report)


def test_hostile_text_opens_no_tag(page: str) -> None:
    plain = Outline(render(ReportData(title="plain")))
    assert [tag for tag, _ in Outline(page).tags] == [tag for tag, _ in plain.tags]
    assert "onerror" not in {name for _, attributes in Outline(page).tags for name in attributes}


def test_the_data_comes_back_as_it_was(page: str, report: ReportData) -> None:
    record = json.loads("".join(Outline(page).texts["data"]))
    assert record["title"] == report.title
    assert record["sample"]["text"] == HOSTILE
    assert record["attention"]["tokens"] == [HOSTILE, " 数据", "?"] * (LENGTH // 3)
    assert record["cost"]["curves"][2]["points"][1] == [1024, None, None]


def test_the_data_holds_no_sign_that_could_end_its_place(page: str) -> None:
    data = page.split('id="data">')[1].split("</script>")[0]
    assert not set(data) & set("<>&\u2028\u2029")
    assert data.isascii()


def test_the_policy_allows_the_inlined_style_and_script_alone(page: str) -> None:
    outline = Outline(page)
    metas = [attributes for tag, attributes in outline.tags if tag == "meta"]
    (policy,) = (meta["content"] for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    for kind in ("style", "script"):
        (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    for tag, attributes in Outline(page).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert not {"src", "srcset", "style", "onclick", "onload"} & set(attributes), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#")
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    assert "url(" not in style and "@import" not in style


def test_numbers_that_json_lacks_become_null() -> None:
    page = render(ReportData(title="a", facts=(("x", float("nan")),)))
    assert json.loads("".join(Outline(page).texts["data"]))["facts"] == [["x", None]]


def test_the_file_is_written_whole_into_a_new_folder(tmp_path: Path, report: ReportData) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(path, report)
    assert path.read_text(encoding="utf-8") == render(report)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_folder_in_the_way_is_named(tmp_path: Path, report: ReportData) -> None:
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        write_report(tmp_path, report)


def test_a_plan_that_is_not_square_is_refused() -> None:
    from gossamer.patterns import Causal
    from gossamer.plan import plan

    with pytest.raises(ValueError, match="4 queries and 8 keys"):
        render(ReportData(title="a", masks=plan(Causal(), 4, 8, 1)))
