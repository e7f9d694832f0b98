"use strict";

/* Elements and numbers as text. Whatever comes from the data enters the page as text nodes, never as markup. */

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element with attributes and children; strings become text nodes. */
function html(name, attributes = {}, ...children) {
  return assemble(document.createElement(name), attributes, children);
}

/** The same for SVG. */
function svg(name, attributes = {}, ...children) {
  return assemble(document.createElementNS(SVG, name), attributes, children);
}

function assemble(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const place = (id) => document.getElementById(id);
const DIGITS = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

const whole = (value) => WHOLE.format(value);
const digits = (value) => (Math.abs(value) >= 1000 ? WHOLE : DIGITS).format(value);
const percent = (share) => `${share > 0 && share < 0.0001 ? share.toExponential(0) : DIGITS.format(100 * share)} %`;
const pace = (rate) => `${digits(rate)} tokens/s`;
const nats = (loss) => `${loss.toFixed(3)} nats`;

/** 1536 → "1.5 KiB": the largest unit that leaves at least one before the point. */
function bytes(count) {
  return withUnit(count, [[1, "B"], [2 ** 10, "KiB"], [2 ** 20, "MiB"], [2 ** 30, "GiB"], [2 ** 40, "TiB"]]);
}

/** 0.0021 → "2.1 ms". */
function seconds(duration) {
  return withUnit(duration, [[1e-9, "ns"], [1e-6, "µs"], [1e-3, "ms"], [1, "s"]]);
}

function withUnit(value, units) {
  const fitting = units.filter(([size]) => size <= value);
  const [size, name] = fitting.length ? fitting[fitting.length - 1] : units[0];
  return `${digits(value / size)} ${name}`;
}

/** A table with a caption for those who hear it; each row a list of texts or elements. */
function table(caption, names, rows) {
  const head = html("tr", {}, ...names.map((name) => html("th", { scope: "col" }, name)));
  const body = rows.map((row) => html("tr", {}, ...row.map((cell) => html("td", {}, cell))));
  return [
    html("caption", { class: "skip" }, caption),
    html("thead", {}, head),
    html("tbody", {}, ...body),
  ];
}

/** A bar whose length is a share of its place. */
function bar(share, tone) {
  const filled = html("i");
  filled.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return html("span", { class: `bar tone-${tone}`, "aria-hidden": "true" }, filled);
}

/** The bytes of a base64 text. */
function unpack(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}
