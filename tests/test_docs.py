"""What the pages show is run: Python blocks, command lines, doctests, links, pictures and the tree."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gossamer
from gossamer.cli import main
from gossamer.cli.flags import parsed
from gossamer.doctor import features
from gossamer.kernels import BACKENDS
from gossamer.training import TrainConfig

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "README.zh-CN.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts),
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """(first line, text) of each fenced block in one of the languages."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        if found[1] in languages:
            yield text.count("\n", 0, found.start()) + 2, found[2]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run_block(page: Path, line: int, text: str, names: dict[str, object]) -> None:
    """Runs a block in `names`; where it shows a session (`>>>`), its output must be as shown."""
    if ">>>" not in text:
        exec(compile("\n" * (line - 1) + text, str(page), "exec"), names)
        return
    session = doctest.DocTestParser().get_doctest(text, names, name(page), str(page), line - 1)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(session, clear_globs=False)
    names.update(session.globs)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("page", [PAGES[0], *PAGES[2:]], ids=name)  # PAGES[1] shows the code of PAGES[0]
@pytest.mark.usefixtures("reader_s_folder")
def test_the_python_runs(page: Path) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for line, text in blocks(page, "python"):
        run_block(page, line, text, names)


def test_a_wrong_output_would_be_seen() -> None:
    with pytest.raises(AssertionError):
        run_block(ROOT / "README.md", 1, ">>> 1 + 1\n3\n", {})


def commands(page: Path) -> list[str]:
    """Command lines shown on a page, without prompt and comment, continued lines joined."""
    text = "\n".join(text for _, text in blocks(page, "console", "bash")).replace("\\\n", " ")
    lines = (line.removeprefix("$ ").strip() for line in text.splitlines())
    return [line for line in lines if line.startswith(("gossamer ", "make "))]


def shown_commands() -> list[str]:
    return sorted({command for page in PAGES for command in commands(page)})


@pytest.fixture
def reader_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder with the text, the settings and the run that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("It was the best of times, it was the worst of times.\n" * 100)
    Path("runs/book").mkdir(parents=True)
    for file in ("small.toml", "runs/book/config.toml"):
        TrainConfig().to_toml(file)


@pytest.mark.usefixtures("reader_s_folder")
@pytest.mark.parametrize("command", shown_commands())
def test_the_command_line_is_understood(command: str) -> None:
    """Quick commands run; of the others the flags are parsed, which builds and validates their settings."""
    program, name, *arguments = shlex.split(command.split("  #")[0])
    if program == "make":
        assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif name in ("show", "doctor"):
        assert main([name, *arguments]) == 0
    else:
        module = importlib.import_module(f"gossamer.cli.{name}")
        kind = getattr(module, name.capitalize())
        parsed(
            kind,
            arguments,
            default=kind(settings=module.settings_below(arguments)) if name == "train" else None,
        )


def modules_with_examples() -> list[str]:
    files = sorted((ROOT / "src").rglob("*.py"))
    modules = [path.relative_to(ROOT / "src").with_suffix("") for path in files if ">>>" in path.read_text()]
    return [".".join(path.parts).removesuffix(".__init__") for path in modules]


@pytest.mark.parametrize("module", modules_with_examples())
def test_the_docstrings_are_right(module: str) -> None:
    """An example may use its own module's names and those of `from gossamer import *`."""
    public = {name: getattr(gossamer, name) for name in gossamer.__all__}
    assert doctest.testmod(importlib.import_module(module), extraglobs=public).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    local = [target for target in targets if not target.startswith("https://")]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES[:2], ids=name)
def test_the_tree_is_the_tree(page: Path) -> None:
    """Every path of the annotated tree exists, and no module of the package is missing from it."""
    (tree,) = (text for _, text in blocks(page, "text") if "src/gossamer/" in text)
    package = ROOT / "src" / "gossamer"
    indented = {line.split()[0] for line in tree.splitlines() if line.startswith("  ")}
    outside = {line.split()[0] for line in tree.splitlines() if not line.startswith("  ")}
    modules = [path for path in package.iterdir() if not path.name.startswith("__") and path.suffix in ("", ".py")]
    assert indented == {path.name + "/" * path.is_dir() for path in modules}
    assert [path for path in outside if not (ROOT / path).exists()] == []


def test_both_readmes_show_the_same_code() -> None:
    english, chinese = ([without_comments(text) for _, text in blocks(page, "python")] for page in PAGES[:2])
    assert english == chinese
    assert commands(PAGES[0]) == commands(PAGES[1])


def without_comments(code: str) -> list[str]:
    return [line.split("#")[0].rstrip() for line in code.splitlines()]


def painter() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pictures", ROOT / "docs" / "images" / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pictures_are_the_library_s_own() -> None:
    """Redrawn pictures equal the committed ones; else run `python docs/images/make.py`."""
    folder = ROOT / "docs" / "images"
    drawn = painter().pictures()
    assert [file for file, picture in drawn.items() if (folder / file).read_text() != picture] == []


def test_the_terms_as_drawn_cover_each_pair_once() -> None:
    make = painter()
    for pattern in make.PLANNED.values():
        drawn = sum(seen.astype(int) for _, seen in make.by_term(pattern))
        assert (drawn == pattern.dense_mask(make.LENGTH)).all()


def test_every_pattern_has_a_drawing() -> None:
    from gossamer import patterns

    page = (ROOT / "docs" / "patterns.md").read_text()
    classes = [thing for thing in vars(patterns).values() if isinstance(thing, type)]
    leaves = [c.__name__ for c in classes if issubclass(c, patterns.Pattern) and c is not patterns.Pattern]
    sections = page.split("\n### ")
    drawn = {section.split("\n")[0] for section in sections if "](images/" in section}
    assert set(leaves) - drawn == set()


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A GPU of compute capability 9.0, as far as a backend's refusal can tell."""
    pytest.importorskip("triton", reason="the backends of GPUs need Triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    return torch.device("cuda", 63)  # an index that no machine has: what backends remember of it harms nobody


def test_the_ticks_are_what_the_backends_say(hopper: torch.device) -> None:
    """docs/backends.md has a row for each feature of `gossamer doctor`, ticked where a backend accepts it."""
    lines = (ROOT / "docs" / "backends.md").read_text().splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    (_, *names), _, *marks = [[cell.strip() for cell in row] for row in rows]
    shown = {feature: dict(zip(names, ticks, strict=True)) for feature, *ticks in marks}
    assert shown == {
        feature: {backend.name: "✓" if backend.refuses(problem) is None else "" for backend in BACKENDS}
        for feature, problem in features(hopper).items()
    }
