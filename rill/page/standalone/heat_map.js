// A heat map of units (rows) over characters (columns), and below it the course of one unit.
//
// The canvas is as wide as what can be seen, and stays there while its container scrolls over an empty extent that is
// as wide as the text: the cost of drawing does not depend on the text's length.

import { visible } from "./shared/text_view.js";

const COLUMN = 9; // pixels a character
const LABELS = 20; // pixels above the map
const MAP = 380; // about so many pixels for all units
const COURSE = 70;
const GAP = 10;
const COLOURS = 256;

export class HeatMap {
  #container;
  #extent;
  #canvas;
  #source;
  #order = null;
  #colours = [];
  #ink = {};
  #isDrawing = false;

  unit = 0; // the row that is followed
  position = -1; // the chosen character
  isBounded = true; // otherwise colours show tanh of the value

  /**
   * `source` has `units`, `length`, `symbol(position)`, `column(position)` (the units' values, or null), and is told by
   * `choose(position, unit)` and `point(position, unit)` (-1: nothing).
   */
  constructor(container, extent, canvas, source) {
    [this.#container, this.#extent, this.#canvas, this.#source] = [container, extent, canvas, source];
    this.#readColours();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.#readColours();
      this.draw();
    });
    new ResizeObserver(() => this.draw()).observe(container);
    container.addEventListener("scroll", () => this.draw(), { passive: true });
    container.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("click", (event) => this.#at(event, (position, unit) => this.#source.choose(position, unit)));
    canvas.addEventListener("pointermove", (event) => this.#at(event, (position, unit) => this.#source.point(position, unit)));
    canvas.addEventListener("pointerleave", () => this.#source.point(-1, -1));
  }

  /** The rows' units, from the top; null: by number. */
  set order(order) {
    this.#order = order;
    this.draw();
  }

  /** Units from the slowest to the fastest: by how much they change from a character to the next, of the last 2,000. */
  byPace() {
    const { units, length } = this.#source;
    const change = new Float64Array(units);
    let before = null;
    for (let position = Math.max(0, length - 2000); position < length; position++) {
      const values = this.#source.column(position);
      if (values && before) for (let unit = 0; unit < units; unit++) change[unit] += Math.abs(values[unit] - before[unit]);
      before = values;
    }
    return Array.from(change.keys()).sort((a, b) => change[a] - change[b]);
  }

  /** Draws in the next frame. */
  draw() {
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    requestAnimationFrame(() => {
      this.#isDrawing = false;
      this.#draw();
    });
  }

  /** Draws a text that has grown; a map that showed its end follows. */
  grow() {
    const follows = this.#container.scrollLeft + this.#container.clientWidth >= this.#extent.offsetWidth - 3 * COLUMN;
    this.#extent.style.width = `${this.#source.length * COLUMN}px`;
    if (follows) this.#container.scrollLeft = this.#container.scrollWidth;
    this.draw();
  }

  /** Scrolls to a character. */
  show(position) {
    const [left, width] = [position * COLUMN, this.#container.clientWidth];
    const from = this.#container.scrollLeft;
    if (left < from || left + COLUMN > from + width) this.#container.scrollLeft = left - width / 2;
    this.draw();
  }

  get #rowHeight() {
    return Math.max(1, Math.min(14, MAP / this.#source.units));
  }

  #row(unit) {
    return this.#order ? this.#order.indexOf(unit) : unit;
  }

  #readColours() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    this.#ink = { text: read("--ink"), soft: read("--ink-soft"), line: read("--line"), accent: read("--accent"), positive: read("--positive"), negative: read("--negative") };
    const [negative, zero, positive] = ["--negative", "--sunken", "--positive"].map((name) => rgb(read(name)));
    this.#colours = Array.from({ length: COLOURS }, (_, index) => {
      const value = (2 * index) / (COLOURS - 1) - 1;
      const end = value < 0 ? negative : positive;
      const [red, green, blue] = zero.map((channel, at) => Math.round(channel + (end[at] - channel) * Math.abs(value)));
      return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0; // as little-endian machines keep a pixel
    });
  }

  #shade(value) {
    return this.isBounded ? value : Math.tanh(value);
  }

  #draw() {
    const { units, length } = this.#source;
    const width = this.#container.clientWidth;
    const height = LABELS + units * this.#rowHeight + GAP + COURSE;
    const scale = window.devicePixelRatio || 1;
    const [wide, high] = [Math.round(width * scale), Math.round(height * scale)];
    if (this.#canvas.width !== wide || this.#canvas.height !== high) {
      [this.#canvas.width, this.#canvas.height] = [wide, high];
      this.#canvas.style.width = `${width}px`;
      this.#canvas.style.height = `${height}px`;
    }
    const context = this.#canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const first = Math.floor(this.#container.scrollLeft / COLUMN);
    const shift = first * COLUMN - this.#container.scrollLeft;
    const count = Math.max(0, Math.min(length - first, Math.ceil(width / COLUMN) + 1));
    if (!count) return;
    const columns = Array.from({ length: count }, (_, index) => this.#source.column(first + index));
    this.#drawLabels(context, first, shift, count);
    this.#drawMap(context, columns, shift);
    this.#drawCourse(context, columns, shift, width);
    this.#drawChosen(context, first, shift, width);
  }

  #drawLabels(context, first, shift, count) {
    context.font = "12px ui-monospace, Menlo, Consolas, monospace";
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let index = 0; index < count; index++) {
      const symbol = this.#source.symbol(first + index);
      context.fillStyle = /\s/.test(symbol) ? this.#ink.line : this.#ink.text;
      context.fillText(symbol === " " ? "·" : visible(symbol).slice(0, 2), shift + (index + 0.5) * COLUMN, LABELS / 2);
    }
  }

  #drawMap(context, columns, shift) {
    const { units } = this.#source;
    const image = new ImageData(columns.length, units);
    const pixels = new Uint32Array(image.data.buffer);
    columns.forEach((values, column) => {
      if (!values) return; // not kept: transparent
      for (let row = 0; row < units; row++) {
        const value = this.#shade(values[this.#order ? this.#order[row] : row]);
        const level = Math.round(((Math.max(-1, Math.min(1, value)) + 1) / 2) * (COLOURS - 1));
        pixels[row * columns.length + column] = this.#colours[level];
      }
    });
    const picture = new OffscreenCanvas(columns.length, units);
    picture.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, shift, LABELS, columns.length * COLUMN, units * this.#rowHeight);
  }

  #drawCourse(context, columns, shift, width) {
    const top = LABELS + this.#source.units * this.#rowHeight + GAP;
    const y = (value) => top + (COURSE - 8) * (0.5 - Math.max(-1, Math.min(1, this.#shade(value))) / 2) + 4;
    context.strokeStyle = this.#ink.line;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(0, y(0));
    context.lineTo(width, y(0));
    context.stroke();
    columns.forEach((values, index) => {
      if (!values) return;
      const value = values[this.unit];
      context.fillStyle = value < 0 ? this.#ink.negative : this.#ink.positive;
      const [from, to] = [y(0), y(value)];
      context.fillRect(shift + index * COLUMN + 1, Math.min(from, to), COLUMN - 2, Math.max(1, Math.abs(to - from)));
    });
  }

  #drawChosen(context, first, shift, width) {
    const height = this.#rowHeight;
    const row = LABELS + this.#row(this.unit) * height;
    context.strokeStyle = this.#ink.text;
    context.lineWidth = 1;
    context.strokeRect(-2, Math.round(row) - 0.5, width + 4, Math.max(3, Math.round(height) + 1));
    if (this.position < 0) return;
    const left = shift + (this.position - first) * COLUMN;
    context.strokeStyle = this.#ink.accent;
    context.lineWidth = 2;
    context.strokeRect(left, 1, COLUMN, LABELS + this.#source.units * height + GAP + COURSE - 2);
  }

  #at(event, use) {
    const box = this.#canvas.getBoundingClientRect();
    const position = Math.floor((event.clientX - box.left + this.#container.scrollLeft) / COLUMN);
    const row = Math.floor((event.clientY - box.top - LABELS) / this.#rowHeight);
    if (position < 0 || position >= this.#source.length) return;
    const isInMap = row >= 0 && row < this.#source.units;
    use(position, !isInMap ? this.unit : this.#order ? this.#order[row] : row);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.#source.length) return;
    const { units, length } = this.#source;
    const here = this.position < 0 ? length - 1 : this.position;
    const across = { ArrowLeft: -1, ArrowRight: 1, PageUp: -50, PageDown: 50, Home: -Infinity, End: Infinity }[event.key];
    const down = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (across === undefined && down === undefined) return;
    event.preventDefault();
    const row = Math.max(0, Math.min(units - 1, this.#row(this.unit) + (down ?? 0)));
    const position = Math.max(0, Math.min(length - 1, here + (across ?? 0)));
    this.#source.choose(position, this.#order ? this.#order[row] : row);
  }
}

function rgb(hex) {
  const digits = hex.replace("#", "");
  return [0, 2, 4].map((at) => parseInt(digits.slice(at, at + 2), 16));
}
