"""Patterns as text: what is read, and what text that is no pattern may do (nothing)."""

from pathlib import Path

import pytest

from gossamer.patterns import Blocks, Causal, PerHead, Sinks, Strided, Tokens, Window, parse

READ = [
    ("Causal()", Causal()),
    ("  Causal()&Window(128)\n", Causal() & Window(128)),
    ("Window(size=128)", Window(128)),
    ("Strided(10, offset=3).T", Strided(10, 3).T),
    ("~(Sinks(4) | Tokens([1, 2]))", ~(Sinks(4) | Tokens([1, 2]))),
    ("~Sinks(4) | Tokens((1, 2))", ~Sinks(4) | Tokens([1, 2])),
    ("Causal() | Causal() & Window(3)", Causal() | (Causal() & Window(3))),
    ("Causal() & (Causal() & Window(3))", Causal() & (Causal() & Window(3))),
    ("Blocks(2, ['10', '11'])", Blocks(2, ["10", "11"])),
    ("PerHead([(Causal(), 2), (Sinks(1) | Window(2), 1)])", PerHead([(Causal(), 2), (Sinks(1) | Window(2), 1)])),
    ("(~Causal()).T", (~Causal()).T),
    ("~Causal().T", ~(Causal().T)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "pattern"), READ)
def test_text_is_read(text: str, pattern: object) -> None:
    assert parse(text) == pattern


REFUSED = [
    ("", "invalid syntax"),
    ("Causal() &", "invalid syntax"),
    ("Causal(", "never closed"),
    ("Causal", "'Causal' is no part of a pattern"),
    ("3", "'3' is no pattern"),
    ("(Causal(), 2)", "is no pattern"),
    ("Casual()", "there is no pattern 'Casual'; known patterns: BlockWindow, Blocks, Causal, .*Window"),
    ("Window()", "Window: .* missing 1 required positional argument: 'size'"),
    ("Window(1, 2, 3)", "Window: .* positional arguments"),
    ("Window(width=3)", "Window: .* unexpected keyword argument 'width'"),
    ("Window(0)", "Window: size is 0; give an integer of at least 1"),
    ("Window(1.5)", r"Window: size is 1\.5"),
    ("Causal() + Window(3)", r"'Causal\(\) \+ Window\(3\)' is no part"),
    ("Causal() and Window(3)", "is no part"),
    ("Causal() & 3", "'3' is no pattern"),
    ("Causal().transposed", "is no part"),
    ("And(Causal(), 3)", "there is no pattern 'And'"),
    ("Pattern()", "there is no pattern 'Pattern'"),
    ("KeySet()", "there is no pattern 'KeySet'"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_text_that_is_no_pattern_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


HOSTILE = [
    "__import__('pathlib').Path('canary').touch()",
    "open('canary', 'w')",
    "Window(open('canary', 'w'))",
    "Window(size=open('canary', 'w'))",
    "Window(*open('canary', 'w'))",
    "Window(**open('canary', 'w'))",
    'exec(\'open("canary", "w")\')',
    "(lambda: open('canary', 'w'))()",
    "[open('canary', 'w') for _ in (1,)][0]",
    "Causal() if open('canary', 'w') else Causal()",
    "Causal().__class__.__init__.__globals__['__builtins__']['open']('canary', 'w')",
    "f\"{open('canary', 'w')}\"",
    "(x := open('canary', 'w'))",
    "Causal() & open('canary', 'w')",
    "~open('canary', 'w')",
    "open('canary', 'w').T",
    "Window(1 if open('canary', 'w') else 2)",
    "Causal(); open('canary', 'w')",
    "Causal()\nopen('canary', 'w')",
    "Window(9**9**9**9)",
    "Window('1' * 10**12)",
    "Causal().T.show()",
    "Window.known",
    "\0",
    "Causal()\0",
    "~" * 5000 + "Causal()",
    "(" * 5000 + "Causal()" + ")" * 5000,
    "Causal()" + ".T" * 5000,
    "-" * 700 + "1",
    "Window(" * 700 + "1" + ")" * 700,
    " & ".join(["Causal()"] * 5000),
    "Window(" + "9" * 5000 + ")",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:30].encode("unicode_escape").decode())
def test_hostile_text_runs_nothing(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert not list(tmp_path.iterdir())
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("wrong", [None, 3, Causal(), b"Causal()", ["Causal()"]])
def test_what_is_no_text_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="give its text"):
        parse(wrong)
