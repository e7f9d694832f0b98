"use strict";

/* A line chart in SVG, drawn at the width of its place, read by pointer or arrow keys, with its numbers in a table. */

const MARGIN = { top: 30, right: 18, bottom: 44, left: 62 };

/** Maps values to pixels; `ticks` are round numbers within the domain. */
class Scale {
  constructor(values, { log = false, base = 10, zero = false }) {
    const known = values.filter((value) => Number.isFinite(value) && (!log || value > 0));
    let [low, high] = [Math.min(...known), Math.max(...known)];
    if (zero) low = Math.min(0, low);
    if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
    this.bend = log ? Math.log : (value) => value;
    this.ticks = log ? powers(low, high, base) : rounds(low, high);
    this.low = this.bend(zero || log ? Math.min(low, this.ticks[0] ?? low) : low);
    this.high = this.bend(Math.max(high, log ? low : (this.ticks.at(-1) ?? high)));
  }

  /** Pixel for a value, between `first` (low) and `last` (high). */
  at(value, first, last) {
    return first + ((this.bend(value) - this.low) / (this.high - this.low)) * (last - first);
  }
}

/** Four to eight multiples of 1, 2 or 5 times a power of ten. */
function rounds(low, high) {
  const rough = (high - low) / 8;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: Math.max(0, count) }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** At most seven powers of the base that cover the domain's inside. */
function powers(low, high, base) {
  const first = Math.ceil(Math.log(low) / Math.log(base) - 1e-9);
  const last = Math.floor(Math.log(high) / Math.log(base) + 1e-9);
  const step = Math.ceil((last - first + 1) / 7) || 1;
  const found = [];
  for (let power = first; power <= last; power += step) found.push(base ** power);
  return found;
}

class LineChart {
  /**
   * @param host   element that the chart fills
   * @param chart  {name, x: {name, format, log, base}, y: {...}, lines: [{name, tone, points, faint, dots, quiet}],
   *               marks: [{x, name}]}; points are [x, y] pairs; a line without a name is in no key or table
   */
  constructor(host, chart) {
    this.host = host;
    this.chart = { marks: [], ...chart };
    const hint = "Point at the chart, or use the arrow keys, to read it.";
    this.readout = html("output", { class: "readout", "aria-live": "polite" }, hint);
    this.frame = html("div");
    host.classList.add("chart");
    host.replaceChildren(this.key(), this.frame, this.readout, this.numbers());
    this.draw();
    new ResizeObserver(() => this.draw()).observe(this.frame);
  }

  /** Draws other lines in the same place. */
  update(lines) {
    this.chart.lines = lines;
    this.host.replaceChildren(this.key(), this.frame, this.readout, this.numbers());
    this.draw(true);
  }

  get named() {
    return this.chart.lines.filter((line) => line.name && !line.quiet);
  }

  key() {
    const look = ({ tone, joined }) => `tone-${tone}${joined === false ? " ring" : ""}`;
    const entries = this.named.map((line) => html("li", { class: look(line) }, line.name));
    return html("ul", { class: "key", "aria-hidden": "true" }, ...entries);
  }

  draw(force = false) {
    const width = Math.max(260, this.frame.clientWidth || 640);
    if (width === this.width && !force) return;
    this.width = width;
    this.height = Math.round(Math.min(340, Math.max(220, width * 0.55)));
    const points = this.chart.lines.flatMap((line) => line.points);
    this.x = new Scale(points.map(([x]) => x), this.chart.x);
    this.y = new Scale(points.map(([, y]) => y), this.chart.y);
    const told = this.named.map((line) => this.summary(line)).join("; ");
    const label = `${this.chart.name}. ${told}. Arrow keys read values.`;
    const size = { viewBox: `0 0 ${width} ${this.height}`, height: this.height };
    const picture = svg("svg", { ...size, tabindex: "0", role: "img", "aria-label": label });
    this.cursor = svg("line", { class: "cursor", visibility: "hidden" });
    const curves = this.chart.lines.flatMap((line) => this.curve(line));
    picture.append(...this.axes(), ...curves, ...this.marks(), this.cursor);
    this.listen(picture);
    this.frame.replaceChildren(picture);
  }

  px(x) {
    return this.x.at(x, MARGIN.left, this.width - MARGIN.right);
  }

  py(y) {
    return this.y.at(y, this.height - MARGIN.bottom, MARGIN.top);
  }

  axes() {
    const { x, y } = this.chart;
    const [left, right, bottom] = [MARGIN.left, this.width - MARGIN.right, this.height - MARGIN.bottom];
    const rows = this.y.ticks.flatMap((tick) => [
      svg("line", { class: "grid", x1: left, x2: right, y1: this.py(tick), y2: this.py(tick) }),
      svg("text", { x: left - 8, y: this.py(tick) + 4, "text-anchor": "end" }, (y.tick ?? y.format)(tick)),
    ]);
    const every = Math.ceil((this.x.ticks.length * 52) / (right - left));
    const columns = this.x.ticks
      .filter((_, i) => i % every === 0)
      .map((tick) => {
        const at = { x: this.px(tick), y: bottom + 18, "text-anchor": "middle" };
        return svg("text", at, (x.tick ?? x.format)(tick));
      });
    const names = [
      svg("text", { class: "axis-name", x: (left + right) / 2, y: bottom + 38, "text-anchor": "middle" }, x.name),
      svg("text", { class: "axis-name", x: 0, y: 12 }, y.name ?? ""),
    ];
    return [...rows, ...columns, ...names];
  }

  curve({ points, tone, faint = false, quiet = false, dots = false, joined = true }) {
    const seen = points.filter(([, y]) => Number.isFinite(y)).map(([x, y]) => [this.px(x), this.py(y)]);
    const path = seen.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    const style = `line tone-${tone}${faint ? " faint" : ""}${quiet ? " quiet" : ""}`;
    const line = joined ? [svg("path", { class: style, d: path })] : [];
    const rings = dots ? seen.map(([cx, cy]) => svg("circle", { class: `dot tone-${tone}`, cx, cy, r: 3.5 })) : [];
    return [...line, ...rings];
  }

  marks() {
    return this.chart.marks.flatMap(({ x, name }) => {
      const at = this.px(x);
      const before = at > this.width / 2;
      const at_name = { x: at + (before ? -6 : 6), y: MARGIN.top + 10, "text-anchor": before ? "end" : "start" };
      return [
        svg("line", { class: "mark-line", x1: at, x2: at, y1: MARGIN.top, y2: this.height - MARGIN.bottom }),
        svg("text", { class: "mark-name", ...at_name }, name),
      ];
    });
  }

  listen(picture) {
    const stops = [...new Set(this.named.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
    const show = (index) => {
      this.index = Math.min(stops.length - 1, Math.max(0, index));
      this.show(stops[this.index]);
    };
    picture.addEventListener("pointermove", (event) => {
      const at = event.clientX - picture.getBoundingClientRect().left;
      const gaps = stops.map((x) => Math.abs(this.px(x) - at));
      show(gaps.indexOf(Math.min(...gaps)));
    });
    picture.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      show((this.index ?? -1) + move);
    });
  }

  show(x) {
    const at = this.px(x);
    const upright = { x1: at, x2: at, y1: MARGIN.top, y2: this.height - MARGIN.bottom };
    assemble(this.cursor, { ...upright, visibility: "visible" }, []);
    const found = this.named
      .map((line) => [line.name, line.points.find(([there]) => there === x)?.[1]])
      .filter(([, y]) => Number.isFinite(y));
    const values = found.map(([name, y]) => `${name} ${this.chart.y.format(y)}`);
    const there = `${this.chart.x.short ?? this.chart.x.name} ${this.chart.x.format(x)}`;
    this.readout.textContent = [there, ...values].join(" · ");
  }

  summary({ name, points }) {
    const [first, last] = [points[0], points.at(-1)];
    return points.length ? `${name}: from ${this.chart.y.format(first[1])} to ${this.chart.y.format(last[1])}` : name;
  }

  numbers() {
    const lines = this.named;
    const stops = [...new Set(lines.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
    const rows = stops.map((x) => [
      this.chart.x.format(x),
      ...lines.map((line) => {
        const y = line.points.find(([there]) => there === x)?.[1];
        return Number.isFinite(y) ? this.chart.y.format(y) : "–";
      }),
    ]);
    const names = [this.chart.x.short ?? this.chart.x.name, ...lines.map((line) => line.name)];
    const filled = html("table", {}, ...table(this.chart.name, names, rows));
    return html("details", {}, html("summary", {}, "Numbers"), html("div", { class: "scroll" }, filled));
  }
}
