"use strict";

/* A square of queries × keys on a canvas: moved and zoomed by pointer, wheel, buttons or keys. */

const SMALLEST_SPAN = 16;
const FEWEST_PIXELS = 2;
const LOUPE_SPAN = 48;
const ZOOM = 1.5;

/** The part of the square in sight; planes that share a view move together. */
class View {
  static all = [];

  constructor(length) {
    View.all.push(this);
    this.length = length;
    this.planes = [];
    this.cursor = null;
    this.whole();
  }

  whole() {
    this.look(0, 0, this.length);
  }

  /** Shows `span` positions a side, from query q and key k on, kept inside the square. */
  look(q, k, span) {
    this.span = Math.round(Math.min(this.length, Math.max(Math.min(SMALLEST_SPAN, this.length), span)));
    const inside = (at) => Math.round(Math.min(this.length - this.span, Math.max(0, at)));
    [this.q, this.k] = [inside(q), inside(k)];
    this.redraw();
  }

  /** Zooms so that the pair (q, k) stays where it is. */
  zoom(factor, [q, k] = this.cursor ?? [this.q + this.span / 2, this.k + this.span / 2]) {
    const span = Math.min(this.length, Math.max(Math.min(SMALLEST_SPAN, this.length), this.span / factor));
    const part = span / this.span;
    this.look(q - (q - this.q) * part, k - (k - this.k) * part, span);
  }

  /** Puts the cursor on a pair and brings it into sight. */
  point(q, k) {
    const inside = (at) => Math.min(this.length - 1, Math.max(0, at));
    this.cursor = [inside(q), inside(k)];
    const follow = (start, at) => Math.min(at, Math.max(start, at - this.span + 1));
    const [first, second] = [follow(this.q, this.cursor[0]), follow(this.k, this.cursor[1])];
    if (first !== this.q || second !== this.k) this.look(first, second, this.span);
    for (const plane of this.planes) plane.pointed();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      for (const plane of this.planes) plane.draw();
    });
  }
}

class Plane {
  /**
   * @param host   element that the plane fills
   * @param view   a View, perhaps shared
   * @param plane  {name, colours, share(q, rows, k, columns) in 0..1, tell(q, k) → [first, end) of the cell told
   *               about, as [q, end, k, end], grain(span, pixels) → positions a cell, by default a round number}
   */
  constructor(host, view, plane) {
    Object.assign(this, { view, grain: roundGrain, ...plane });
    const label = `${plane.name}. Arrow keys move, plus and minus zoom.`;
    this.canvas = html("canvas", { tabindex: "0", role: "img", "aria-label": label });
    this.rows = html("div", { class: "ends rows" });
    this.columns = html("div", { class: "ends" });
    host.classList.add("plane");
    this.frame = html("span", { class: "frame", hidden: "" });
    host.replaceChildren(this.rows, html("div", { class: "field" }, this.canvas, this.frame), this.columns);
    view.planes.push(this);
    this.listen();
    this.draw();
    new ResizeObserver(() => view.redraw()).observe(this.canvas);
  }

  draw() {
    const side = Math.round((this.canvas.clientWidth || 480) * Math.min(2, devicePixelRatio || 1));
    const { q, k, span, length } = this.view;
    const cells = paint(this.canvas, side, this.view, this.grain(span, side), this);
    this.canvas.style.touchAction = span < length ? "none" : "pan-y";
    this.canvas.dataset.drawn = String(cells);
    this.rows.replaceChildren(html("span", {}, `queries ${whole(q)} – ${whole(q + span - 1)}, downwards`));
    this.columns.replaceChildren(html("span", {}, `keys ${whole(k)}`), html("span", {}, whole(k + span - 1)));
    this.pointed();
  }

  /** Frames and describes what is under the cursor. */
  pointed() {
    if (!this.view.cursor) return;
    const [top, bottom, left, right] = this.tell(...this.view.cursor);
    const { q, k, span } = this.view;
    const part = (positions) => `${(100 * positions) / span}%`;
    const style = { top: part(top - q), height: part(bottom - top), left: part(left - k), width: part(right - left) };
    Object.assign(this.frame.style, style);
    this.frame.hidden = top < q || left < k || bottom > q + span || right > k + span;
  }

  /** The pair under a pointer. */
  pair(event) {
    const box = this.canvas.getBoundingClientRect();
    const { q, k, span } = this.view;
    const part = (offset, side) => Math.floor((offset / side) * span);
    return [q + part(event.clientY - box.top, box.height), k + part(event.clientX - box.left, box.width)];
  }

  listen() {
    let held = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      held = { pair: this.pair(event), q: this.view.q, k: this.view.k };
      this.canvas.setPointerCapture(event.pointerId);
      this.view.point(...held.pair);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const [q, k] = this.pair(event);
      if (held && this.view.span < this.view.length) {
        this.view.look(this.view.q + held.pair[0] - q, this.view.k + held.pair[1] - k, this.view.span);
      } else {
        this.view.point(q, k);
      }
    });
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => (held = null));
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  /** Zooms only a plane that has the focus, so that scrolling the page past it stays scrolling. */
  wheel(event) {
    if (document.activeElement !== this.canvas && !event.ctrlKey) return;
    event.preventDefault();
    this.view.zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, this.pair(event));
  }

  key(event) {
    const cell = Math.max(1, Math.round(this.view.span / 64));
    const [q, k] = this.view.cursor ?? [this.view.q, this.view.k];
    const acts = {
      "+": () => this.view.zoom(ZOOM), "=": () => this.view.zoom(ZOOM), "-": () => this.view.zoom(1 / ZOOM),
      "0": () => this.view.whole(),
      ArrowUp: () => this.view.point(q - cell, k), ArrowDown: () => this.view.point(q + cell, k),
      ArrowLeft: () => this.view.point(q, k - cell), ArrowRight: () => this.view.point(q, k + cell),
    };
    if (!acts[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    acts[event.key]();
  }
}

/** Paints the part of the square that a view shows, in cells of grain × grain positions; returns cells a side. */
function paint(canvas, side, { q, k, span, length }, grain, { share, colours: heat }) {
  const cells = Math.ceil(span / grain);
  const picture = assemble(document.createElement("canvas"), { width: cells, height: cells }, []);
  const image = new ImageData(cells, cells);
  const ramp = colours(heat());
  const size = (start) => Math.min(grain, length - start);
  for (let row = 0, at = 0; row < cells; row++) {
    const query = q + row * grain;
    for (let column = 0; column < cells; column++, at += 4) {
      const key = k + column * grain;
      image.data.set(ramp[depth(share(query, size(query), key, size(key)))], at);
    }
  }
  picture.getContext("2d").putImageData(image, 0, 0);
  canvas.width = canvas.height = side;
  const brush = canvas.getContext("2d");
  brush.imageSmoothingEnabled = false;
  const stretched = (side * cells * grain) / span;
  brush.drawImage(picture, 0, 0, stretched, stretched);
  return cells;
}

/** A small exact picture of the pairs round the cursor, in the corner that a causal pattern leaves empty. */
class Loupe {
  constructor(plane) {
    this.plane = plane;
    this.canvas = html("canvas", { class: "loupe", "aria-hidden": "true" });
    plane.canvas.after(this.canvas);
    plane.view.planes.push(this);
    this.pointed();
  }

  draw() {
    this.pointed();
  }

  pointed() {
    const { cursor, span, length } = this.plane.view;
    this.canvas.hidden = !cursor || span < 4 * LOUPE_SPAN;
    if (this.canvas.hidden) return;
    const [q, k] = cursor.map((at) => Math.min(length - LOUPE_SPAN, Math.max(0, at - LOUPE_SPAN / 2)));
    paint(this.canvas, 4 * LOUPE_SPAN, { q, k, span: LOUPE_SPAN, length }, 1, this.plane);
  }
}

/** The smallest of 1, 2, 5, 10, 20, 50 … positions a cell that leaves a cell some pixels: a round number keeps
 * columns at a round distance from beating against the cells. */
function roundGrain(span, pixels) {
  const least = (FEWEST_PIXELS * span) / pixels;
  const power = 10 ** Math.max(0, Math.floor(Math.log10(least)));
  return [1, 2, 5, 10].map((times) => times * power).find((size) => size >= least);
}

/** Index into a ramp of 256: the root of the share, so that small shares can be told from none. */
const depth = (share) => Math.round(255 * Math.sqrt(Math.min(1, Math.max(0, share))));

const ramps = new Map();

/** 256 colours of the page's style, from nothing to all. */
function colours(property) {
  if (!ramps.has(property)) {
    const stops = getComputedStyle(document.documentElement).getPropertyValue(property).split(",")
      .map((stop) => stop.trim().split(/\s+/).map(Number));
    ramps.set(property, Array.from({ length: 256 }, (_, i) => between(stops, i / 255)));
  }
  return ramps.get(property);
}

function between(stops, share) {
  const at = share * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return [...stops[low].map((value, i) => Math.round(value + (stops[low + 1][i] - value) * (at - low))), 255];
}
