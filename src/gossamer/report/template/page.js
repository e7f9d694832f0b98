"use strict";

/* The sections of the page, each from its part of the data; a section without data is taken out. */

const TONES = ["dense", "sparse", "third", "fourth"];
const KINDS = [
  { tone: "sparse", mask: "--mask-near", heat: "--heat-near" },
  { tone: "third", mask: "--mask-far", heat: "--heat-far" },
];
const GAINS = [
  { name: "Training speed", of: (run) => run.tokens_per_second, text: pace, more: "× as fast" },
  { name: "Peak memory", of: (run) => run.peak_memory_bytes, text: bytes, more: "× the memory" },
  { name: "Validation loss", of: (run) => run.validation_loss, text: nats, apart: true },
];

/** The tone of a run or contender: dense and sparse keep theirs everywhere, others take what is left. */
function tone(name, names) {
  if (TONES.slice(0, 2).includes(name)) return name;
  const rest = names.filter((other) => !TONES.slice(0, 2).includes(other));
  return TONES[2 + (rest.indexOf(name) % 2)];
}

function drawResult(runs) {
  const names = runs.map((run) => run.name);
  place("gains").replaceChildren(...GAINS.map((gain) => gainCard(gain, runs, names)));
  place("verdict").textContent = verdict(runs);
}

function gainCard({ name, of, text, more, apart }, runs, names) {
  const values = runs.map(of);
  const [before, after] = [values[0], values.at(-1)];
  const signed = `${after < before ? "−" : "+"}${Math.abs(after - before).toFixed(3)}`;
  const headline = runs.length < 2 ? text(after) : apart ? `${signed} nats` : `${digits(after / before)}${more}`;
  const rows = runs.flatMap((run, i) => [
    html("dt", {}, run.name),
    bar(values[i] / Math.max(...values), tone(run.name, names)),
    html("dd", {}, text(values[i])),
  ]);
  const parts = [html("h3", {}, name), html("p", { class: "ratio" }, headline), html("dl", {}, ...rows)];
  return html("div", { class: "gain" }, ...parts);
}

/** The result in one sentence, in which a loss is called a loss. */
function verdict(runs) {
  const [dense, sparse] = ["dense", "sparse"].map((name) => runs.find((run) => run.name === name));
  if (!dense || !sparse) return "";
  const ratio = sparse.tokens_per_second / dense.tokens_per_second;
  const memory = sparse.peak_memory_bytes / dense.peak_memory_bytes;
  const gap = sparse.validation_loss - dense.validation_loss;
  const speed = `${ratio < 1 ? "only " : ""}${digits(ratio)} times as fast`;
  const moved = `a validation loss ${nats(Math.abs(gap))} per token ${gap < 0 ? "lower" : "higher"}`;
  const loss = Math.abs(gap) < 0.005 ? "the same validation loss" : moved;
  return `With sparse attention the same model trained ${speed} as with dense attention, in ${percent(memory)} of the `
    + `memory, and ended at ${loss}.`;
}

function drawLoss(runs) {
  const names = runs.map((run) => run.name);
  const lines = runs.flatMap((run) => {
    const shade = tone(run.name, names);
    return [
      { tone: shade, points: run.training, faint: true },
      { name: run.name, tone: shade, points: smoothed(run.training) },
      { name: `${run.name}, held out`, tone: shade, points: run.validation, dots: true, joined: false },
    ];
  });
  new LineChart(place("loss-chart"), {
    name: "Loss by training step",
    x: { name: "training step", short: "step", format: whole },
    y: { name: "loss, nats per token", format: nats, tick: digits },
    lines,
  });
}

/** Running mean over about a twentieth of the run. */
function smoothed(points) {
  const reach = Math.floor(points.length / 40);
  return points.map(([step], i) => {
    const near = points.slice(Math.max(0, i - reach), i + reach + 1);
    return [step, near.reduce((sum, [, loss]) => sum + loss, 0) / near.length];
  });
}

function drawCost({ name, curves, crossover }) {
  const names = curves.map((curve) => curve.name);
  const axis = { name: "sequence length, tokens", short: "length", log: true, base: 2 };
  const lengths = { ...axis, format: whole, tick: inThousands };
  const shortest = Math.min(...curves.flatMap((curve) => curve.points.map(([length]) => length)));
  const marks = crossover > shortest ? [{ x: crossover, name: `crossover ${digits(crossover)}` }] : [];
  const kinds = [
    { title: `Time: ${name}`, column: 1, format: seconds, base: 10, marks },
    { title: `Peak memory: ${name}`, column: 2, format: bytes, base: 2, marks: [] },
  ];
  const figures = kinds.map(({ title, column, format, base, marks: marked }) => {
    const host = html("div");
    const figure = html("figure", {}, html("figcaption", { class: "name" }, title), host);
    place("cost-charts").append(figure);
    const lines = curves.map((curve) => ({
      name: curve.name,
      tone: tone(curve.name, names),
      dots: true,
      points: curve.points.filter((point) => point[column] > 0).map((point) => [point[0], point[column]]),
    }));
    return new LineChart(host, { name: title, x: lengths, y: { format, log: true, base }, lines, marks: marked });
  });
  return figures;
}

/** 4096 → "4k", as people name lengths. */
const inThousands = (length) => (length < 1024 ? String(length) : `${digits(length / 1024)}k`);

function drawMasks({ length, groups }) {
  const view = new View(length);
  groups.forEach((group, i) => {
    const mask = new Mask(group);
    const share = (...cell) => mask.share(...cell);
    const host = html("div");
    const shareOfAll = ` · ${percent(group.share)} of all pairs`;
    const named = [html("b", {}, heads(group)), shareOfAll, html("br"), html("code", {}, group.pattern)];
    place("mask-planes").append(html("figure", {}, html("figcaption", { class: "name" }, ...named), host));
    const plane = new Plane(host, view, {
      name: `Mask of ${heads(group)}: ${group.pattern}`, colours: () => KINDS[i % 2].mask, share,
      tell: (q, k) => tellPair(q, k, groups),
    });
    if (!mask.share(0, length, length - 1, 1)) new Loupe(plane);
    group.mask = mask;
  });
  view.point(Math.floor(length / 2), Math.floor(length / 2));
  const acts = { in: () => view.zoom(ZOOM * ZOOM), out: () => view.zoom(1 / ZOOM / ZOOM), whole: () => view.whole() };
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", acts[button.dataset.zoom]);
  }
}

const heads = ({ first, last }) => (last - first === 1 ? `head ${first}` : `heads ${first}–${last - 1}`);

function tellPair(q, k, groups) {
  const seeing = groups.filter((group) => group.mask?.share(q, 1, k, 1)).map(heads);
  const what = seeing.length ? `seen by ${seeing.join(" and ")}` : k > q ? "in the future: never seen" : "not seen";
  place("mask-readout").textContent = `query ${whole(q)}, key ${whole(k)}: ${what}`;
  return [q, q + 1, k, k + 1];
}

/** The attention of the trained model: a layer, its heads small, the chosen one large. */
class AttentionBrowser {
  constructor(attention) {
    Object.assign(this, attention);
    this.length = attention.tokens.length;
    for (const layer of this.layers) layer.depths = unpack(layer.maps);
    this.count = this.groups.length;
    this.layer = this.layers.length - 1;
    this.head = 0;
    this.kinds = this.groups.map(({ pattern }) => {
      const patterns = [...new Set(this.groups.map((group) => group.pattern))];
      return KINDS[patterns.indexOf(pattern) % 2];
    });
    this.view = new View(this.length);
    place("cell-size").textContent = `about ${digits(this.length / this.cells)} tokens`;
    this.choices();
    this.thumbnails();
    this.plane = new Plane(place("map-plane"), this.view, {
      name: "Attention map",
      colours: () => this.kinds[this.head].heat,
      share: (q, rows, k, columns) => this.share(q + rows / 2, k + columns / 2),
      tell: (q, k) => this.tell(q, k),
      grain: (span, pixels) => span / pixels,
    });
    this.distance = new LineChart(place("distance-chart"), {
      name: "Share of attention by distance",
      x: { name: "distance, tokens", short: "closer than", format: whole, log: true, base: 2 },
      y: { name: "share of attention", format: percent, zero: true },
      lines: this.curves(),
    });
    this.choose(this.layer, this.head);
    this.view.point(...this.strongest());
  }

  /** Where the mean probability of the cell with this pair lies in the data. */
  at(q, k, head = this.head) {
    const cell = (position) => Math.floor((Math.floor(position) * this.cells) / this.length);
    return (head * this.cells + cell(q)) * this.cells + cell(k);
  }

  share(q, k) {
    return (this.layers[this.layer].depths[this.at(q, k)] / 255) ** 2;
  }

  choices() {
    const options = this.layers.map((_, layer) => {
      const input = html("input", { type: "radio", name: "layer", value: layer });
      input.addEventListener("change", () => this.choose(layer, this.head));
      return html("label", { class: "choice" }, input, `Layer ${layer}`);
    });
    place("layer-choice").replaceChildren(...options);
    this.inputs = options.map((option) => option.firstChild);
  }

  thumbnails() {
    this.buttons = this.groups.map((group, head) => {
      const button = html("button", { type: "button", "aria-pressed": "false", title: group.pattern },
        html("canvas", { width: this.cells, height: this.cells, "aria-hidden": "true" }), `head ${head}`);
      button.addEventListener("click", () => this.choose(this.layer, head));
      return button;
    });
    place("head-choice").replaceChildren(...this.buttons);
  }

  choose(layer, head) {
    [this.layer, this.head] = [layer, head];
    this.inputs[layer].checked = true;
    this.buttons.forEach((button, i) => {
      button.setAttribute("aria-pressed", String(i === head));
      this.thumbnail(button.firstChild, i);
    });
    const { pattern } = this.groups[head];
    place("map-name").replaceChildren(html("b", {}, `Layer ${layer}, head ${head}`), " ", html("code", {}, pattern));
    this.scale();
    this.plane.draw();
    this.distance.update(this.curves());
  }

  /** The pair of cells with most attention between them, but for the diagonal and its neighbours. */
  strongest() {
    let [best, found] = [-1, [0, 0]];
    for (let row = 0; row < this.cells; row++) {
      for (let column = 0; column < row - 1; column++) {
        const depth = this.layers[this.layer].depths[(this.head * this.cells + row) * this.cells + column];
        if (depth > best) [best, found] = [depth, [row, column]];
      }
    }
    return found.map((cell) => Math.floor(((cell + 0.5) * this.length) / this.cells));
  }

  thumbnail(canvas, head) {
    const brush = canvas.getContext("2d");
    const image = brush.createImageData(this.cells, this.cells);
    const { depths } = this.layers[this.layer];
    const ramp = colours(this.kinds[head].heat);
    const first = head * this.cells * this.cells;
    for (let i = 0; i < this.cells * this.cells; i++) image.data.set(ramp[depths[first + i]], 4 * i);
    brush.putImageData(image, 0, 0);
  }

  curves() {
    return this.layers[this.layer].mass.map((mass, head) => {
      let sum = 0;
      const points = mass.map((share, bin) => [Math.max(1, this.edges[bin + 1]), (sum += share)]);
      return { name: `head ${head}`, tone: this.kinds[head].tone, quiet: head !== this.head, points };
    });
  }

  tell(q, k) {
    const share = this.share(q, k);
    const said = `${percent(share)} of what these tokens look at`;
    const output = place("map-readout");
    output.replaceChildren(
      html("p", {}, `Queries ${this.span(q)} look …`), html("blockquote", {}, this.passage(q)),
      html("p", {}, `… at keys ${this.span(k)}: ${said}`), html("blockquote", {}, this.passage(k)));
    return [...this.ends(q), ...this.ends(k)];
  }

  ends(position) {
    const cell = Math.floor((position * this.cells) / this.length);
    return [cell, cell + 1].map((edge) => Math.ceil((edge * this.length) / this.cells));
  }

  span(position) {
    const [first, end] = this.ends(position);
    return end - first > 1 ? `${whole(first)}–${whole(end - 1)}` : whole(first);
  }

  passage(position) {
    return this.tokens.slice(...this.ends(position)).join("");
  }

  scale() {
    const canvas = html("canvas", { width: 256, height: 1, "aria-hidden": "true" });
    const brush = canvas.getContext("2d");
    const image = brush.createImageData(256, 1);
    colours(this.kinds[this.head].heat).forEach((colour, i) => image.data.set(colour, 4 * i));
    brush.putImageData(image, 0, 0);
    place("map-scale").replaceChildren(html("span", {}, "0 %"), canvas, html("span", {}, "100 % of a row"));
  }

}

function drawLayers(layers) {
  const rows = layers.map(({ window: size, sparsity, pairs }, layer) => [
    `Layer ${layer}`,
    size === null ? "–" : `${whole(size)} tokens`,
    html("span", {}, percent(sparsity), bar(sparsity, "sparse")),
    whole(pairs),
  ]);
  const names = ["Layer", "Window", "Sparsity", "Pairs computed"];
  place("layer-table").replaceChildren(...table("What each layer did", names, rows));
}

function drawSample({ name, prompt, text }) {
  place("sample-name").textContent = name;
  place("sample-text").replaceChildren(html("span", { class: "given" }, prompt), text);
}

function drawFacts(facts) {
  place("facts").replaceChildren(...facts.flatMap(([name, value]) => [html("dt", {}, name), html("dd", {}, value)]));
}

/** Draws what the data has, and leaves a mark that says so. */
function drawPage(data) {
  document.title = data.title;
  place("title").textContent = data.title;
  place("lead").textContent = data.lead;
  let browser = null;
  const sections = {
    result: data.runs.length && (() => drawResult(data.runs)),
    loss: data.runs.length && (() => drawLoss(data.runs)),
    cost: data.cost && (() => drawCost(data.cost)),
    masks: data.masks && (() => drawMasks(data.masks)),
    attention: data.attention && (() => (browser = new AttentionBrowser(data.attention))),
    distance: data.attention && (() => browser.distance),
    layers: data.layers.length && (() => drawLayers(data.layers)),
    sample: data.sample && (() => drawSample(data.sample)),
  };
  for (const [id, draw] of Object.entries(sections)) {
    if (!draw) { place(id).remove(); continue; }
    draw();
    place("contents").append(html("li", {}, html("a", { href: `#${id}` }, place(id).dataset.name)));
  }
  drawFacts(data.facts);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    ramps.clear();
    browser?.choose(browser.layer, browser.head);
    for (const view of View.all) view.redraw();
  });
}

function fail(error) {
  document.documentElement.dataset.state = "failed";
  document.body.prepend(html("p", { class: "failure", role: "alert" }, `This page could not be drawn: ${error}`));
}

addEventListener("error", (event) => fail(event.message));
drawPage(JSON.parse(place("data").textContent));
document.documentElement.dataset.state ||= "drawn";
