"""The classifier learns what two packages are about, and the test's files are not among those that it read."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

WORDS = {"boats": "sail mast keel rope deck anchor", "bread": "flour oven yeast dough salt crust"}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Two packages of eight files, each with words of its package and a number of its own."""
    for package, words in WORDS.items():
        (tmp_path / package).mkdir()
        for number in range(8):
            (tmp_path / package / f"file{number}.py").write_text(f"{words} = {number}\n" * 8)
    return tmp_path


def test_excerpts_of_other_files_are_told_apart(script: ModuleType, library: Path) -> None:
    asked = script.Classify(tuple(WORDS), library, steps=60, length=32, vocabulary=256, window=8, width=32, batch=8)
    right, commonest = script.main(asked)
    assert commonest == 0.5
    assert right == 1


def test_no_file_is_learned_from_and_asked_about(script: ModuleType, library: Path) -> None:
    asked = script.Classify(tuple(WORDS), library, length=8)
    for package in WORDS:
        learned, kept = (set(tokens.tolist()) for tokens in asked.texts(package))
        numbers = [set(asked.tokens([library / package / f"file{at}.py"]).tolist()) for at in range(8)]
        own = [numbers[at] - set.union(*(numbers[other] for other in range(8) if other != at)) for at in range(8)]
        assert all(own), "each file has a word that no other has"
        assert [bool(number & learned) + 2 * bool(number & kept) for number in own] == [2, 1, 1, 1, 2, 1, 1, 1]


def test_a_package_that_is_not_there_is_named(script: ModuleType, library: Path) -> None:
    with pytest.raises(SystemExit, match=r"cheese has too little source .* give other --packages"):
        script.main(script.Classify(("boats", "cheese"), library, length=8))


def test_the_packages_are_there(script: ModuleType) -> None:
    asked = script.Classify()
    assert all((asked.library / package / "__init__.py").exists() for package in asked.packages)
