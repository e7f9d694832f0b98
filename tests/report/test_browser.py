"""The page as a browser shows it: every figure drawn, no error, and hostile text still text."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from gossamer.patterns import (
    Blocks,
    Causal,
    Dilated,
    Documents,
    PerHead,
    RandomBlocks,
    Sinks,
    Strided,
    Tokens,
    Window,
)
from gossamer.plan import plan
from gossamer.report import ReportData, render, write_report
from gossamer.report.encoding import as_json
from gossamer.report.page import read_template

from .browser import dom, needs_browser, text_of
from .conftest import CELLS, HEADS, HOSTILE, LENGTH

pytestmark = needs_browser


@pytest.fixture(scope="module")
def shown(report: ReportData, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report after its scripts have run, but for its style, data and script."""
    folder = tmp_path_factory.mktemp("browser")
    write_report(folder / "report.html", report)
    whole = dom(folder / "report.html", folder / "profile")
    return whole.split("<style>")[0] + whole.split("</style>")[1].split("<script")[0]


def test_the_script_ran_to_its_end(shown: str) -> None:
    assert 'data-state="drawn"' in shown
    assert 'class="failure" role="alert"' not in shown


def test_every_figure_is_drawn(shown: str) -> None:
    charts = shown.split("<svg")[1:]
    assert len(charts) == 4  # loss, time, memory, distance
    assert all('d="M' in chart.split("</svg>")[0] for chart in charts)
    assert "NaN" not in shown
    assert shown.count("data-drawn=") == 3  # two masks and the attention map
    assert shown.count('aria-pressed="') == HEADS
    assert "crossover 1,000" in shown


def test_every_section_is_listed_and_described(shown: str) -> None:
    for section in ("result", "loss", "cost", "masks", "attention", "distance", "layers", "sample"):
        assert f'href="#{section}"' in shown
    assert shown.count("How to read this.") == 8
    assert "0.100 nats per token higher" in text_of(shown, "verdict")


def test_hostile_text_stays_text(shown: str) -> None:
    assert "<img" not in shown
    assert text_of(shown, "title") == f"A title {HOSTILE}"
    assert text_of(shown, "sample-text") == HOSTILE + HOSTILE
    assert HOSTILE in text_of(shown, "map-readout")
    assert html.unescape(shown.split("<title>")[1].split("</title>")[0]) == f"A title {HOSTILE}"


FRAMES = "<script>requestAnimationFrame = (draw) => setTimeout(draw);</script>"  # headless, none would come
ACT = """
const state = {};
const press = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const [loss, , , distance] = document.querySelectorAll("svg");
press(loss, "ArrowRight");
press(loss, "End");
state.loss = loss.closest(".chart").querySelector("output").textContent;
const [mask] = document.querySelectorAll("#mask-planes canvas");
mask.focus();
for (let i = 0; i < 9; i++) press(mask, "ArrowLeft");
state.pointed = document.getElementById("mask-readout").textContent;
document.querySelector("[data-zoom=in]").click();
document.querySelectorAll("#head-choice button")[2].click();
document.querySelectorAll("#layer-choice input")[0].click();
state.map = document.getElementById("map-name").textContent;
setTimeout(() => {
  state.zoomed = document.querySelector("#mask-planes .rows").textContent;
  press(mask, "0");
  setTimeout(() => {
    state.whole = document.querySelector("#mask-planes .rows").textContent;
    const written = { id: "state", textContent: JSON.stringify(state) };
    document.body.append(Object.assign(document.createElement("p"), written));
  }, 50);
}, 50);
"""


def test_it_answers_to_keys_and_buttons(tmp_path: Path, report: ReportData) -> None:
    page = re.sub("<meta http-equiv.*?>", "", render(report))  # the policy would refuse this test's script
    (tmp_path / "report.html").write_text(
        page.replace("<body>", "<body>" + FRAMES).replace("</body>", f"<script>{ACT}</script></body>")
    )
    state = json.loads(text_of(dom(tmp_path / "report.html", tmp_path / "profile"), "state"))
    assert state["loss"].startswith("step 30 · dense 3.")
    assert state["pointed"].startswith(f"query {LENGTH // 2}, key {LENGTH // 2 - 18}: ")
    assert state["map"].startswith("Layer 0, head 2")
    first, last = map(int, re.findall(r"\d+", state["zoomed"]))
    assert last - first + 1 < LENGTH
    assert state["whole"].startswith(f"queries 0 – {LENGTH - 1}")


def test_the_policy_stops_a_foreign_script(tmp_path: Path, report: ReportData) -> None:
    foreign = "<script>document.body.id = 'owned'</script><img src='x' onerror='document.body.id=1'>"
    (tmp_path / "report.html").write_text(render(report).replace("</body>", f"{foreign}</body>"))
    shown = dom(tmp_path / "report.html", tmp_path / "profile")
    assert 'data-state="drawn"' in shown
    assert "<body>" in shown


def test_what_is_absent_is_left_out(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", ReportData(title="Bare"))
    shown = dom(tmp_path / "report.html", tmp_path / "profile")
    assert 'data-state="drawn"' in shown
    assert "<section" not in shown


def test_damaged_data_is_reported_to_the_reader(tmp_path: Path, report: ReportData) -> None:
    path = tmp_path / "report.html"
    write_report(path, report)
    path.write_text(path.read_text().replace('"runs":[', '"runs":null,"gone":[', 1))
    shown = dom(path, tmp_path / "profile")
    assert 'data-state="failed"' in shown
    assert "could not be drawn" in shown


PATTERNS = {
    "window": Causal() & Window(7),
    "two-sided": Window(5) | Sinks(2),
    "dilated": Causal() & Dilated(4, 3),
    "columns and band": Causal() & (Window(4) | Strided(10, 3)),
    "dilated columns": Dilated(9, 4) & Strided(3),
    "rows": Causal() & (Window(3) | Strided(16) | Strided(16).T),
    "documents": Causal() & Documents((20, 5, 40, LENGTH)),
    "blocks": Causal() & RandomBlocks(16, 2, seed=3),
    "partial blocks": Blocks(20, ((0, 0), (3, 1), (4, 4))) & ~Window(6),
    "tokens": Causal() & ~Tokens((0, 5, 6, 50)),
}
COUNT_ALL = """
const data = JSON.parse(document.getElementById("data").textContent);
const found = data.masks.groups.map((group) => {
  const mask = new Mask(group);
  const each = Array.from({ length: data.masks.length }, (_, i) => i);
  const rows = each.map((q) => each.map((k) => mask.share(q, 1, k, 1)).join(""));
  return rows.join("|") + ";" + mask.share(8, 12, 5, 30);
});
document.getElementById("found").textContent = JSON.stringify(found);
"""


def test_the_page_counts_each_pattern_as_python_does(tmp_path: Path) -> None:
    """Every pair, and one rectangle: the picture is drawn from the plan's terms alone."""
    heads = PerHead([(pattern, 1) for pattern in PATTERNS.values()])
    data = as_json(ReportData(title="a", masks=plan(heads, LENGTH, LENGTH, len(PATTERNS))))
    scripts = read_template("text.js") + read_template("mask.js") + COUNT_ALL
    page = f'<script type="application/json" id="data">{data}</script><p id="found"></p>'
    (tmp_path / "count.html").write_text(f"{page}<script>{scripts}</script>")
    found = json.loads(text_of(dom(tmp_path / "count.html", tmp_path / "profile"), "found"))
    for name, counted, mask in zip(PATTERNS, found, heads.dense_mask(LENGTH), strict=True):
        pairs, rectangle = counted.split(";")
        assert pairs == "|".join("".join(map(str, row)) for row in mask.astype(int)), name
        assert float(rectangle) == pytest.approx(mask[8:20, 5:35].mean()), name


def test_the_map_is_drawn_at_the_size_of_its_data(shown: str) -> None:
    assert shown.count(f'width="{CELLS}" height="{CELLS}"') == HEADS
    assert np.isclose(float(text_of(shown, "cell-size").split()[1]), LENGTH / CELLS)
