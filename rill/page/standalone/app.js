// The page: how the worker, the text view, the heat map and the controls hang together.

import { Controls } from "./controls.js";
import { element, number, showNote, signed } from "./dom.js";
import { HeatMap } from "./heat_map.js";
import { Description } from "./model.js";
import { fromFile, toFile } from "./saved.js";
import { SavedList } from "./saved_list.js";
import { visible } from "./shared/text_view.js";
import { ALTERNATIVES } from "./stream.js";
import { Timeline } from "./timeline.js";
import { FEATURES, unitFor } from "./units.js";

const STATE_BYTES = 256 * 2 ** 20; // of one text, at most
const LARGEST_FILE = 64 * 2 ** 20; // bytes, far more than a state has
const CELLS = { gru: "GRU", lstm: "LSTM", rnn: "tanh RNN" };

class Page {
  #description;
  #worker;
  #timeline = null;
  #text = 0; // counts texts, for the worker
  #isRunning = false;
  #hasEnded = false; // by an end symbol
  #showsUnit = false;
  #chosen = -1;
  #pointed = null; // [position, unit] under the pointer
  #arrivals = []; // [time, length] of the last second
  #undrawn = 0; // messages with characters
  #view = element("text");
  #map;
  #controls;
  #saved;

  constructor(description, worker) {
    [this.#description, this.#worker] = [description, worker];
    this.#controls = new Controls(description, (settings) => worker.postMessage({ kind: "settings", settings }));
    this.#saved = new SavedList({
      putBack: (entry) => this.#putBack(entry),
      content: ({ timeline, settings }) => this.#fileOf(timeline, settings),
      name: ({ timeline }) => `${description.name}-state-at-${timeline.length}.json`,
    });
    this.#map = new HeatMap(element("map"), element("map-extent"), element("map-canvas"), this.#mapSource());
    worker.onmessage = ({ data }) => this.#hear(data);
    worker.onerror = (event) => this.#fail(event.message || "the worker cannot be started", true);
    this.#describeModel();
    this.#bind();
    worker.postMessage({ kind: "load", description });
  }

  // What the worker says.

  #hear(message) {
    const isOfThisText = message.text === this.#text;
    if (message.kind === "loading") element("loading").textContent = `: ${(message.bytes / 1e6).toFixed(1)} MB so far`;
    else if (message.kind === "loaded") this.#open();
    else if (message.kind === "failed") this.#fail(message.message, message.isFatal);
    else if (message.kind === "origin" && isOfThisText) this.#timeline.origin = message.state;
    else if (message.kind === "paused" && isOfThisText) this.#setRunning(false, message.hasEnded);
    else if (message.kind === "characters") {
      if (isOfThisText) this.#timeline.add(message);
      this.#undrawn++;
      if (this.#undrawn === 1) requestAnimationFrame(() => this.#drawArrivals());
    }
  }

  /** Draws once a frame what has come. */
  #drawArrivals() {
    if (this.#view.length < this.#timeline.length) this.#draw(this.#view.length);
    for (; this.#undrawn; this.#undrawn--) this.#worker.postMessage({ kind: "drawn" });
  }

  #open() {
    element("starting").hidden = true;
    element("tool").hidden = false;
    this.#showStatus();
  }

  #fail(message, isFatal) {
    element("error").textContent = isFatal ? `The model cannot be run here: ${message}` : `The model failed: ${message}`;
    element("error").hidden = false;
    if (isFatal) element("starting").hidden = true;
    this.#setRunning(false);
  }

  // Texts.

  #generate() {
    const settings = this.#controls.settings();
    const ids = this.#controls.prompt();
    if (!settings || !ids) return;
    this.#begin(new Timeline(this.#description.stateSize, ALTERNATIVES, STATE_BYTES));
    this.#worker.postMessage({ kind: "begin", text: this.#text, ids });
    this.#run(settings);
  }

  #run(settings) {
    this.#worker.postMessage({ kind: "run", count: this.#controls.count, settings });
    this.#setRunning(true);
  }

  #togglePause() {
    if (this.#isRunning) return this.#worker.postMessage({ kind: "pause" });
    const settings = this.#controls.settings();
    if (settings) this.#run(settings);
  }

  /** Continues with another text, from its end. */
  #continueWith(timeline, same = 0) {
    const last = timeline.length - 1;
    this.#begin(timeline, same);
    const message = { kind: "restore", text: this.#text, state: timeline.state(last - 1).slice(), id: timeline.id(last) };
    this.#worker.postMessage({ ...message, position: timeline.generated() });
    this.#setRunning(false);
  }

  /** Shows another text, of which the view has the first `same` characters already. */
  #begin(timeline, same = 0) {
    this.#text++;
    this.#timeline = timeline;
    this.#choose(-1);
    this.#arrivals = [];
    this.#view.truncate(same);
    this.#draw(same);
  }

  #fork() {
    const position = this.#chosen;
    if (position < 0) return;
    if (!this.#canContinue(position + 1)) return showNote("file-error", "The state of this character is not kept.");
    this.#save(`before the fork at ${position + 1}`);
    this.#continueWith(this.#timeline.fork(position + 1), position + 1);
    element("pause").focus();
  }

  /** Whether the state is kept from which a text of this length goes on. */
  #canContinue(length) {
    return length > 0 && this.#timeline.state(length - 2) !== null;
  }

  // Saved states.

  #save(label) {
    const timeline = this.#timeline.fork(this.#timeline.length);
    const settings = this.#controls.settings() ?? this.#controls.lastSettings;
    this.#saved.add({ label, timeline, settings, tail: this.#textOf(timeline) });
  }

  #putBack({ timeline, settings }) {
    this.#controls.set(settings);
    this.#continueWith(timeline.fork(timeline.length));
  }

  #fileOf(timeline, settings) {
    const state = timeline.state(timeline.length - 2);
    const [text, position] = [this.#textOf(timeline), timeline.generated()];
    const ids = Array.from({ length: timeline.length }, (_, at) => timeline.id(at));
    return toFile(this.#description, { text, ids, state, position, settings });
  }

  async #openFile(file) {
    if (!file) return;
    showNote("file-error", "");
    try {
      if (file.size > LARGEST_FILE) throw new Error("This file is too large for a state.");
      const { ids, position, state, ...settings } = fromFile(this.#description, await file.text());
      const timeline = new Timeline(this.#description.stateSize, ALTERNATIVES, STATE_BYTES);
      timeline.addEarlier(ids, state, position);
      this.#controls.set(settings);
      this.#continueWith(timeline);
    } catch (error) {
      showNote("file-error", error.message);
    }
  }

  // What is shown.

  #draw(from) {
    const entries = [];
    for (let position = from; position < this.#timeline.length; position++) entries.push(this.#entry(position));
    this.#view.add(entries);
    this.#map.grow();
    this.#arrivals.push([performance.now(), this.#timeline.length]);
    this.#showStatus();
    this.#setButtons();
  }

  #entry(position) {
    const page = this;
    return {
      text: this.#description.symbol(this.#timeline.id(position)),
      logprob: this.#timeline.logprob(position),
      given: position < this.#timeline.given,
      get alternatives() {
        return page.#timeline.alternatives(position).map(([id, logprob]) => ({ text: page.#description.symbol(id), logprob }));
      },
    };
  }

  #textOf(timeline) {
    return Array.from({ length: timeline.length }, (_, position) => this.#description.symbol(timeline.id(position))).join("");
  }

  #showStatus() {
    const length = this.#timeline?.length ?? 0;
    const now = performance.now();
    while (this.#arrivals.length > 2 && this.#arrivals[0][0] < now - 1000) this.#arrivals.shift();
    const [first, last] = [this.#arrivals[0], this.#arrivals.at(-1)];
    const rate = this.#isRunning && first && last[0] > first[0] ? (1000 * (last[1] - first[1])) / (last[0] - first[0]) : 0;
    const noun = this.#description.areCharacters ? "characters" : "symbols";
    const more = rate ? `, ${number(rate)} a second` : this.#hasEnded ? ", ended by the model" : "";
    element("status").textContent = `${number(length)} ${noun}${more}`;
  }

  #setRunning(isRunning, hasEnded = false) {
    if (this.#undrawn) this.#drawArrivals();
    [this.#isRunning, this.#hasEnded] = [isRunning, hasEnded];
    this.#arrivals = [];
    this.#showStatus();
    this.#setButtons();
  }

  #setButtons() {
    const hasText = Boolean(this.#timeline?.length);
    element("pause").textContent = this.#isRunning ? "Pause" : "Go on";
    element("pause").disabled = !this.#isRunning && !hasText;
    element("save").disabled = !hasText;
    element("copy").disabled = !hasText;
  }

  #setShade(showsUnit) {
    this.#showsUnit = showsUnit;
    element("shade-surprise").setAttribute("aria-pressed", String(!showsUnit));
    element("shade-unit").setAttribute("aria-pressed", String(showsUnit));
    element("legend-surprise").hidden = showsUnit;
    element("legend-unit").hidden = !showsUnit;
    this.#view.shade = showsUnit ? (position) => this.#shadeOf(position) : null;
  }

  #shadeOf(position) {
    const value = this.#valueOf(position, this.#map.unit);
    return value === null ? null : this.#map.isBounded ? value : Math.tanh(value);
  }

  #valueOf(position, unit) {
    return this.#column(position)?.[unit] ?? null;
  }

  #column(position) {
    const state = this.#timeline?.state(position);
    const [part, layer] = element("layer").value.split(" ").map(Number);
    const from = this.#description.unit(part, layer, 0);
    return state ? state.subarray(from, from + this.#description.model.hidden) : null;
  }

  #choose(position) {
    this.#chosen = position;
    this.#map.position = position;
    element("chosen").hidden = position < 0;
    if (position < 0) return this.#map.draw();
    element("chosen-label").textContent = `${visible(this.#description.symbol(this.#timeline.id(position)))} at ${position + 1}`;
    this.#map.show(position);
    this.#showUnit();
  }

  #follow(unit) {
    const isAnother = this.#map.unit !== unit;
    this.#map.unit = unit;
    element("unit").value = String(unit);
    if (isAnother && this.#showsUnit) this.#view.reshade();
    this.#map.draw();
    this.#showUnit();
  }

  /** Says the value of the unit under the pointer, or of the chosen one. */
  #showUnit() {
    const [position, unit] = this.#pointed ?? [this.#chosen, this.#map.unit];
    if (position < 0 || !this.#timeline || position >= this.#timeline.length) {
      element("map-note").textContent = `Unit ${unit} is followed below the map.`;
      return;
    }
    const value = this.#valueOf(position, unit);
    const after = `unit ${unit} after ${visible(this.#description.symbol(this.#timeline.id(position)))} at ${position + 1}`;
    element("map-note").textContent = value === null ? `${after}: not kept` : `${after}: ${signed(value)}`;
  }

  #mapSource() {
    const page = this;
    return {
      get units() {
        return page.#description.model.hidden;
      },
      get length() {
        return page.#timeline?.length ?? 0;
      },
      symbol: (position) => this.#description.symbol(this.#timeline.id(position)),
      column: (position) => this.#column(position),
      choose: (position, unit) => {
        this.#pointed = null;
        this.#follow(unit);
        this.#view.show(position);
        this.#choose(position);
      },
      point: (position, unit) => {
        this.#pointed = position < 0 ? null : [position, unit];
        this.#showUnit();
      },
    };
  }

  #describeModel() {
    const { name, model, vocabulary, precision, training, parts, stateSize, areCharacters } = this.#description;
    const layers = model.layers === 1 ? "1 layer" : `${model.layers} layers`;
    const facts = [`${CELLS[model.cell]}, ${layers} of ${model.hidden} units, ${vocabulary.length} symbols`];
    if (training.parameters) facts.push(`${number(training.parameters)} parameters`);
    if (training.val_loss) facts.push(`${(training.val_loss / Math.LN2).toFixed(2)} bits per ${areCharacters ? "character" : "symbol"} on held-out text`);
    element("name").textContent = name;
    document.title = `${name}, character by character`;
    element("about").textContent = `${facts.join(" · ")} · runs in this browser, asks no server`;
    const bytes = `${number(4 * stateSize)} bytes`;
    element("state-note").textContent =
      `All that the model remembers of a text, however long, is its state: ${number(stateSize)} numbers, ${bytes}. ` +
      "A column is the state after a character, a row is a unit; click one to follow it.";
    element("saved-note").textContent = `A saved state is ${bytes}: from it, the same text goes on. Choose a character to fork there.`;
    element("same-text").textContent =
      precision === "int8"
        ? "This is an int8 bundle: its server computes in integers, this page in float, so their texts differ."
        : "The same seed and settings give the text that a server gives, up to rounding.";
    for (let part = 0; part < parts.length; part++) {
      for (let layer = 0; layer < model.layers; layer++) {
        const what = parts.length > 1 ? ` ${parts[part].replace("state_", "")}` : "";
        element("layer").add(new Option(`${layer + 1}${what}`, `${part} ${layer}`));
      }
    }
    for (const [name, { label }] of Object.entries(FEATURES)) element("find").add(new Option(label, name));
    element("unit").max = String(model.hidden - 1);
    this.#view.describe = (position) => {
      const value = this.#showsUnit ? this.#valueOf(position, this.#map.unit) : null;
      return value === null ? "" : `unit ${this.#map.unit}: ${signed(value)}`;
    };
  }

  // Controls.

  #bind() {
    const on = (id, event, act) => element(id).addEventListener(event, act);
    on("generate", "click", () => this.#generate());
    on("pause", "click", () => this.#togglePause());
    on("copy", "click", () => this.#copy());
    on("fork", "click", () => this.#fork());
    on("save", "click", () => this.#save("saved"));
    on("load", "click", () => element("file").click());
    on("file", "change", (event) => {
      this.#openFile(event.target.files[0]);
      event.target.value = "";
    });
    on("shade-surprise", "click", () => this.#setShade(false));
    on("shade-unit", "click", () => this.#setShade(true));
    on("prompt", "keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#generate();
    });
    on("layer", "change", () => this.#changeLayer());
    on("find", "change", () => this.#find());
    on("order", "change", () => this.#changeOrder());
    on("unit", "input", () => {
      const unit = element("unit").valueAsNumber;
      if (Number.isInteger(unit) && unit >= 0 && unit < this.#description.model.hidden) this.#follow(unit);
    });
    this.#view.addEventListener("choose", ({ detail }) => this.#choose(detail.position));
    this.#changeLayer();
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(this.#textOf(this.#timeline));
    } catch {
      // Pages without https may not: the browser copies what is selected.
      document.getSelection().selectAllChildren(this.#view);
      document.execCommand("copy");
    }
    element("copy").textContent = "Copied";
    setTimeout(() => (element("copy").textContent = "Copy text"), 1500);
  }

  /** Follows the unit that goes best with something in the text. */
  #find() {
    const feature = element("find").value;
    const symbol = (position) => this.#description.symbol(this.#timeline.id(position));
    const state = (position) => this.#timeline.state(position)?.subarray(0, this.#description.units);
    const found = feature && this.#timeline ? unitFor(feature, { length: this.#timeline.length, symbol, state }) : null;
    const { label } = FEATURES[feature] ?? {};
    if (!found) {
      const reason = this.#timeline?.length ? `No unit goes with ${label} in this text; a longer one may tell.` : "There is no text yet.";
      element("found").textContent = label ? reason : "";
      return;
    }
    const { part, layer, unit } = this.#description.unitAt(found.place);
    element("layer").value = `${part} ${layer}`;
    this.#changeLayer();
    this.#follow(unit);
    this.#setShade(true);
    const { text } = element("layer").selectedOptions[0];
    element("found").textContent = `Unit ${unit} of layer ${text} goes best with ${label}: correlation ${signed(found.correlation, 2)}.`;
  }

  #changeLayer() {
    const [part] = element("layer").value.split(" ").map(Number);
    this.#map.isBounded = this.#description.parts[part] !== "state_c"; // an LSTM's cell may count
    this.#changeOrder();
    if (this.#showsUnit) this.#view.reshade();
    this.#showUnit();
  }

  #changeOrder() {
    this.#map.order = element("order").value === "pace" ? this.#map.byPace() : null;
  }
}

try {
  const answer = await fetch("model/model.json", { cache: "no-cache" });
  if (!answer.ok) throw new Error(`model/model.json cannot be loaded: ${answer.status}`);
  new Page(new Description(await answer.json()), new Worker("worker.js", { type: "module" }));
} catch (error) {
  element("starting").hidden = true;
  element("error").textContent = `The page cannot start: ${error.message}`;
  element("error").hidden = false;
}
