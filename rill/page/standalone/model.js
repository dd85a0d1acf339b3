// A bundle's model: its description (model.json), its graph (model.onnx), and one step of it by onnxruntime-web.

const FORMAT = 1;

/** What stands for characters that the model does not know. */
export const UNKNOWN = "\ufffd";

/** What model.json says. A state is all parts of all layers, one after another, in a Float32Array of `stateSize`. */
export class Description {
  #ids;

  constructor(content) {
    if (content.format !== FORMAT) throw new Error(`model.json has format ${content.format}; this page reads ${FORMAT}`);
    Object.assign(this, content); // name, model_id, precision, model, states, start_id, unknown_id, training, vocabulary
    this.#ids = new Map(this.vocabulary.map((symbol, id) => [symbol, id]));
    this.parts = this.states.map(({ name }) => name);
    this.partSize = this.model.layers * this.model.hidden;
    this.stateSize = this.parts.length * this.partSize;
  }

  /** The symbol of an id, as it is shown. */
  symbol(id) {
    return id === this.unknown_id ? UNKNOWN : this.vocabulary[id];
  }

  /** The ids of a text's characters (code points). Throws RangeError, which names one that the model does not know. */
  encode(text) {
    return Array.from(text, (character, position) => {
      const id = this.#ids.get(character) ?? this.unknown_id;
      if (id === null) {
        const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
        throw new RangeError(`The model does not know the character ${character} (U+${code}) at position ${position + 1}.`);
      }
      return id;
    });
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
    const { states, model, partSize } = this.description;
    const feeds = { tokens: new this.#ort.Tensor("int64", BigInt64Array.of(BigInt(id)), [1, 1]) };
    states.forEach(({ name }, part) => {
      const values = state.subarray(part * partSize, (part + 1) * partSize);
      feeds[name] = new this.#ort.Tensor("float32", values, [model.layers, 1, model.hidden]);
    });
    const results = await this.#session.run(feeds);
    const after = new Float32Array(state.length);
    states.forEach(({ next }, part) => after.set(results[next].data, part * partSize));
    return { logits: results.logits.data, state: after };
  }
}
