// Runs the model beside the page, which stays responsive.
//
// The page sends   load {description} · begin {text, ids} · restore {text, state, id, position} ·
//                  run {count, settings} · settings {settings} · pause · drawn
// and receives     loading {bytes} · loaded · origin {text, state} · characters {text, ids, logprobs, …} · paused {text, hasEnded} ·
//                  failed {message, isFatal}
// `text` counts the texts that were begun: what comes of an earlier one is of no use to the page. Commands are carried
// out in order. `drawn` acknowledges `characters`: few of them are under way.

import * as ort from "./onnxruntime/ort.js";
import { Description, Model } from "./model.js";
import { ALTERNATIVES, Stream } from "./stream.js";

const BATCH_MILLISECONDS = 30;
const UNDER_WAY = 2; // batches that the page has not drawn
const LOOK_MILLISECONDS = 30; // between looks at new settings while a slow text waits

let model = null;
let stream = null;
let settings = null; // sampling, seed, rate: characters a second, or null
let work = Promise.resolve();
let text = 0; // the latest
let pauses = 0;
let underWay = 0;
let bytesLoaded = 0;
let wake = () => {};

const tick = new MessageChannel();
const nextTask = () =>
  new Promise((resolve) => {
    tick.port1.onmessage = resolve;
    tick.port2.postMessage(null);
  });
const rest = (milliseconds) =>
  new Promise((resolve) => {
    wake = resolve;
    setTimeout(resolve, milliseconds);
  });

const commands = {
  async load({ description }) {
    ort.env.wasm.numThreads = 1; // more need headers that not every web server sends
    // Fetched here: otherwise it matters which type the web server says that it has.
    ort.env.wasm.wasmBinary = await fetched("./onnxruntime/ort-wasm-simd-threaded.wasm");
    model = await Model.load(ort, await fetched("./model/model.onnx"), new Description(description));
    postMessage({ kind: "loaded" });
  },

  async begin({ text: mine, ids }) {
    stream = new Stream(model);
    await stream.begin(ids.length > 0);
    postMessage({ kind: "origin", text: mine, state: stream.state });
    await produce({ text: mine, given: true }, ids.length, (index) => stream.read(ids[index]), () => mine !== text);
  },

  async restore({ state, id, position }) {
    stream = new Stream(model);
    await stream.restore(state, id, position);
  },

  async run({ text: mine, count, pauses: before }) {
    const isOver = () => mine !== text || before !== pauses;
    const make = () => stream.next(settings.sampling, settings.seed);
    const hasEnded = await produce({ text: mine, given: false }, count, make, isOver);
    postMessage({ kind: "paused", text: mine, hasEnded });
  },
};

onmessage = ({ data }) => {
  if (data.settings) settings = data.settings;
  if (data.kind === "begin" || data.kind === "restore") text = data.text;
  if (data.kind === "pause") pauses++;
  if (data.kind === "drawn") underWay--;
  if (data.kind in commands) {
    const command = { ...data, text, pauses };
    work = work.then(() => commands[data.kind](command)).catch((error) => {
      postMessage({ kind: "failed", message: String(error?.message ?? error), isFatal: data.kind === "load" });
    });
  }
  wake();
};

/** Sends `count` characters that `make(index)` gives, unless it `isOver` before; returns whether the text has ended. */
async function produce(about, count, make, isOver) {
  let due = performance.now();
  for (let index = 0; index < count; ) {
    await nextTask(); // lets messages arrive
    while (!isOver() && underWay >= UNDER_WAY) await rest(LOOK_MILLISECONDS);
    const rate = about.given ? null : settings.rate;
    while (!isOver() && rate && settings.rate === rate && performance.now() < due) {
      await rest(Math.min(LOOK_MILLISECONDS, due - performance.now()));
    }
    if (isOver()) return false;
    const batch = new Batch(model.description.stateSize);
    const end = performance.now() + BATCH_MILLISECONDS;
    let shown;
    do {
      shown = await make(index++);
      if (!shown) break;
      batch.add(shown, stream.state);
      due = Math.max(due + (rate ? 1000 / rate : 0), performance.now() - 100);
    } while (index < count && performance.now() < end && (!rate || due <= performance.now()));
    if (batch.length) {
      underWay++;
      batch.send(about);
    }
    if (!shown) return true;
  }
  return false;
}

/** Characters that are sent together. */
class Batch {
  #shown = [];
  #states = [];
  #stateSize;

  constructor(stateSize) {
    this.#stateSize = stateSize;
  }

  get length() {
    return this.#shown.length;
  }

  add(shown, state) {
    this.#shown.push(shown);
    this.#states.push(state);
  }

  send(about) {
    const count = this.#shown.length;
    const message = {
      kind: "characters",
      ...about,
      ids: Uint32Array.from(this.#shown, ({ id }) => id),
      logprobs: Float32Array.from(this.#shown, ({ logprob }) => logprob),
      alternatives: new Uint32Array(count * ALTERNATIVES),
      alternativeLogprobs: new Float32Array(count * ALTERNATIVES).fill(NaN), // NaN: there is none
      states: new Float32Array(count * this.#stateSize),
    };
    this.#shown.forEach(({ ids, logprobs }, index) => {
      message.alternatives.set(ids, index * ALTERNATIVES);
      message.alternativeLogprobs.set(logprobs, index * ALTERNATIVES);
      message.states.set(this.#states[index], index * this.#stateSize);
    });
    const { ids, logprobs, alternatives, alternativeLogprobs, states } = message;
    postMessage(message, [ids, logprobs, alternatives, alternativeLogprobs, states].map(({ buffer }) => buffer));
  }
}

/** Fetches a file of the page, and says how many bytes have come. */
async function fetched(name) {
  const url = new URL(name, import.meta.url);
  const answer = await fetch(url, { cache: "no-cache" }); // asks whether it has changed: the page may be written again
  if (!answer.ok) throw new Error(`${url.pathname} cannot be loaded: ${answer.status}`);
  const parts = [];
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
    parts.push(value);
    bytesLoaded += value.length;
    postMessage({ kind: "loading", bytes: bytesLoaded });
  }
}
