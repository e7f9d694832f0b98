"use strict";

/* The pairs of a plan's terms, counted exactly in any rectangle: nothing the size of the whole mask is ever made. */

const SAMPLED_ROWS = 16;

/** The term's pairs: distances low..high on (or off) a step, between chosen keys, queries and documents. */
class Strip {
  constructor({ low, high, step, on_step, keys, queries, documents }) {
    Object.assign(this, { low, high, step, onStep: on_step, documents });
    this.keys = keys && new Positions(keys);
    this.queries = queries && new Positions(queries);
  }

  /** How many keys in first..last (ends included) the query sees. */
  count(query, first, last) {
    if (this.queries && !this.queries.has(query)) return 0;
    first = Math.max(first, query - this.high);
    last = Math.min(last, query - this.low);
    if (this.documents) [first, last] = this.within(query, first, last);
    if (first > last) return 0;
    const all = this.keys ? this.keys.between(first, last) : last - first + 1;
    if (this.step === 1) return all;
    const stepped = this.stepped(query, first, last);
    return this.onStep ? stepped : all - stepped;
  }

  stepped(query, first, last) {
    let key = last - ((((last - query) % this.step) + this.step) % this.step);
    if (!this.keys) return key < first ? 0 : Math.floor((key - first) / this.step) + 1;
    let count = 0;
    for (; key >= first; key -= this.step) count += this.keys.has(key);
    return count;
  }

  /** The part of first..last that lies in the query's own document. */
  within(query, first, last) {
    const next = this.documents.findIndex((cut) => cut > query);
    if (next < 1) return [1, 0];
    return [Math.max(first, this.documents[next - 1]), Math.min(last, this.documents[next] - 1)];
  }
}

/** A set of positions, with running counts. */
class Positions {
  constructor(listed) {
    this.running = new Uint32Array((listed.at(-1) ?? -1) + 2);
    for (const position of listed) this.running[position + 1] = 1;
    for (let i = 1; i < this.running.length; i++) this.running[i] += this.running[i - 1];
  }

  /** How many members are below the position. */
  below(position) {
    return this.running[Math.min(Math.max(position, 0), this.running.length - 1)];
  }

  between(first, last) {
    return this.below(last + 1) - this.below(first);
  }

  has(position) {
    return this.between(position, position) === 1;
  }
}

/** Blocks of size × size pairs; a partial one carries the bits of its mask. */
class BlockList {
  constructor({ size, starts, columns, tile, tiles }) {
    Object.assign(this, { size, starts, columns, tile });
    this.bits = unpack(tiles);
  }

  count(query, first, last) {
    const row = Math.floor(query / this.size);
    let count = 0;
    for (let block = this.starts[row]; block < this.starts[row + 1]; block++) {
      const from = Math.max(first, this.columns[block] * this.size);
      const to = Math.min(last, (this.columns[block] + 1) * this.size - 1);
      if (from <= to) count += this.tile[block] < 0 ? to - from + 1 : this.partial(this.tile[block], query, from, to);
    }
    return count;
  }

  partial(tile, query, from, to) {
    const row = (tile * this.size + (query % this.size)) * this.size;
    let count = 0;
    for (let key = from; key <= to; key++) {
      const bit = row + (key % this.size);
      count += (this.bits[bit >> 3] >> (7 - (bit & 7))) & 1;
    }
    return count;
  }
}

/** The mask of one group of heads. */
class Mask {
  constructor({ terms }) {
    this.terms = terms.map((term) => (term.starts ? new BlockList(term) : new Strip(term)));
  }

  /** Visible share of the pairs of queries q..q + rows - 1 and keys k..k + columns - 1: exact for few rows, else
   * from evenly spread rows. */
  share(q, rows, k, columns) {
    const looked = Math.min(rows, SAMPLED_ROWS);
    let seen = 0;
    for (let i = 0; i < looked; i++) {
      const query = q + Math.floor(((i + 0.5) * rows) / looked);
      for (const term of this.terms) seen += term.count(query, k, k + columns - 1);
    }
    return seen / (looked * columns);
  }
}
