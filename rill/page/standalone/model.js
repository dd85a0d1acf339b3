// A bundle's model: its description (model.json), its graph (model.onnx), and one step of it by onnxruntime-web.

import { tokenizerOf } from "./tokenizer.js";

const FORMAT = 1;

/** What stands for characters that the model does not know. */
export const UNKNOWN = "\ufffd";

/**
 * What model.json says. A state is all parts of all layers, one after another, in a Float32Array of `stateSize`. Behind
 * these units it has the context: the ids of the symbols that were read last, the oldest first.
 */
export class Description {
  #encode;

  constructor(content) {
    if (content.format !== FORMAT) throw new Error(`model.json has format ${content.format}; this page reads ${FORMAT}`);
    Object.assign(this, content); // name, model_id, precision, model, states, context, vocabulary and its ids, training
    this.parts = this.states.map(({ name }) => name);
    this.partSize = this.model.layers * this.model.hidden;
    this.units = this.parts.length * this.partSize;
    this.stateSize = this.units + this.context;
    this.#encode = tokenizerOf(content);
  }

  /** Whether each symbol of a text is a character. */
  get areCharacters() {
    return this.tokenizer === "characters";
  }

  /** The symbol of an id, as it is shown. */
  symbol(id) {
    return id === this.unknown_id ? UNKNOWN : this.vocabulary[id];
  }

  /** The ids of a text's symbols. Throws RangeError, which names a character that the model does not know. */
  encode(text) {
    return this.#encode(text);
  }

  /** The place of a unit in a state. */
  unit(part, layer, unit) {
    return part * this.partSize + layer * this.model.hidden + unit;
  }

  /** The unit at a place in a state. */
  unitAt(place) {
    const { hidden } = this.model;
    const [part, within] = [Math.floor(place / this.partSize), place % this.partSize];
    return { part, layer: Math.floor(within / hidden), unit: within % hidden };
  }
}

export class Model {
  #ort;
  #session;

  constructor(ort, session, description) {
    this.#ort = ort;
    this.#session = session;
    this.description = description;
  }

  static async load(ort, bytes, description) {
    return new Model(ort, await ort.InferenceSession.create(bytes), description);
  }

  /** Reads one symbol; returns its `logits` and the `state` after it, and leaves the state before it as it was. */
  async read(state, id) {
    const { states, model, partSize, units, context } = this.description;
    const feeds = { tokens: new this.#ort.Tensor("int64", BigInt64Array.of(BigInt(id)), [1, 1]) };
    states.forEach(({ name }, part) => {
      const values = state.subarray(part * partSize, (part + 1) * partSize);
      feeds[name] = new this.#ort.Tensor("float32", values, [model.layers, 1, model.hidden]);
    });
    if (context) feeds.context = new this.#ort.Tensor("int64", BigInt64Array.from(state.subarray(units), BigInt), [1, context]);
    const results = await this.#session.run(feeds);
    const after = new Float32Array(state.length);
    states.forEach(({ next }, part) => after.set(results[next].data, part * partSize));
    if (context) after.set(Array.from(results.next_context.data, Number), units);
    return { logits: results.logits.data, state: after };
  }
}
