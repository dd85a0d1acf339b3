// A text with all that is known of its characters: ids, probabilities, and the state after each.
//
// Characters are kept in chunks. A full chunk never changes, so texts that were forked share theirs.

const CHUNK = 256;

class Chunk {
  constructor(stateSize, alternatives) {
    this.length = 0;
    this.ids = new Uint32Array(CHUNK);
    this.logprobs = new Float32Array(CHUNK);
    this.alternatives = new Uint32Array(CHUNK * alternatives);
    this.alternativeLogprobs = new Float32Array(CHUNK * alternatives);
    this.states = new Float32Array(CHUNK * stateSize);
  }

  copy(length, stateSize, alternatives) {
    const copy = new Chunk(stateSize, alternatives);
    copy.length = length;
    copy.ids.set(this.ids);
    copy.logprobs.set(this.logprobs);
    copy.alternatives.set(this.alternatives);
    copy.alternativeLogprobs.set(this.alternativeLogprobs);
    copy.states = this.states === null ? null : this.states.slice();
    return copy;
  }
}

export class Timeline {
  #chunks = [];
  #stateSize;
  #alternatives;
  #kept;

  /** `alternatives` of each character are kept, and states of at most `bytes`: those of the oldest are dropped. */
  constructor(stateSize, alternatives, bytes) {
    this.#stateSize = stateSize;
    this.#alternatives = alternatives;
    this.#kept = Math.max(4, Math.floor(bytes / (4 * stateSize * CHUNK)));
    this.origin = null; // the state before the first character
    this.length = 0;
    this.given = 0; // characters of the prompt
    this.positionAtGiven = 0; // generated characters that the text's beginning stands for, when it was loaded
  }

  /** Adds a message of the worker. */
  add({ ids, logprobs, alternatives, alternativeLogprobs, states, given }) {
    for (let index = 0; index < ids.length; index++) {
      const chunk = this.#last();
      const at = chunk.length++;
      const [from, to] = [index * this.#alternatives, (index + 1) * this.#alternatives];
      chunk.ids[at] = ids[index];
      chunk.logprobs[at] = logprobs[index];
      chunk.alternatives.set(alternatives.subarray(from, to), at * this.#alternatives);
      chunk.alternativeLogprobs.set(alternativeLogprobs.subarray(from, to), at * this.#alternatives);
      chunk.states?.set(states.subarray(index * this.#stateSize, (index + 1) * this.#stateSize), at * this.#stateSize);
    }
    this.length += ids.length;
    if (given) this.given = this.length;
  }

  /** Begins with a text of which only the `state` before its last character is known, and how many were generated. */
  addEarlier(ids, state, position) {
    const unknown = (size) => new Float32Array(ids.length * size).fill(NaN);
    const states = unknown(this.#stateSize);
    if (ids.length > 1) states.set(state, (ids.length - 2) * this.#stateSize);
    else this.origin = state;
    const alternatives = new Uint32Array(ids.length * this.#alternatives);
    const alternativeLogprobs = unknown(this.#alternatives);
    this.add({ ids, logprobs: unknown(1), alternatives, alternativeLogprobs, states, given: true });
    this.positionAtGiven = position;
  }

  /** The beginning of this text, up to `length` characters. */
  fork(length) {
    const fork = new Timeline(this.#stateSize, this.#alternatives, 0);
    fork.#kept = this.#kept;
    fork.origin = this.origin;
    fork.length = length;
    fork.given = Math.min(this.given, length);
    fork.positionAtGiven = this.positionAtGiven;
    const full = Math.floor(length / CHUNK);
    fork.#chunks = this.#chunks.slice(0, full);
    if (length % CHUNK) fork.#chunks.push(this.#chunks[full].copy(length % CHUNK, this.#stateSize, this.#alternatives));
    return fork;
  }

  /** How many characters had been generated when the text had `length` characters. */
  generated(length = this.length) {
    return this.positionAtGiven + Math.max(0, length - this.given);
  }

  id(position) {
    return this.#chunks[Math.floor(position / CHUNK)].ids[position % CHUNK];
  }

  /** The logarithm of a character's probability, or null. */
  logprob(position) {
    const value = this.#chunks[Math.floor(position / CHUNK)].logprobs[position % CHUNK];
    return Number.isNaN(value) ? null : value;
  }

  /** [id, logprob] of the most probable characters at a position. */
  alternatives(position) {
    const { alternatives, alternativeLogprobs } = this.#chunks[Math.floor(position / CHUNK)];
    const found = [];
    const from = (position % CHUNK) * this.#alternatives;
    for (let index = from; index < from + this.#alternatives; index++) {
      if (!Number.isNaN(alternativeLogprobs[index])) found.push([alternatives[index], alternativeLogprobs[index]]);
    }
    return found;
  }

  /** The state after the character at `position` (-1: before the first), or null if it is not kept. */
  state(position) {
    if (position < 0) return this.origin;
    const { states } = this.#chunks[Math.floor(position / CHUNK)];
    const at = (position % CHUNK) * this.#stateSize;
    return states && !Number.isNaN(states[at]) ? states.subarray(at, at + this.#stateSize) : null;
  }

  #last() {
    const last = this.#chunks.at(-1);
    if (last && last.length < CHUNK) return last;
    this.#chunks.push(new Chunk(this.#stateSize, this.#alternatives));
    const dropped = this.#chunks.length - 1 - this.#kept;
    if (dropped >= 0 && this.#chunks[dropped].states) {
      // Not in place: another text may share the chunk.
      this.#chunks[dropped] = Object.assign(Object.create(Chunk.prototype), this.#chunks[dropped], { states: null });
    }
    return this.#chunks.at(-1);
  }
}
