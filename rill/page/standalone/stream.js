// A text in the making: the state after all that was read, and the logits of what comes next.

import { Uniforms } from "./shared/philox.js";
import { choose, logProbabilities, mostProbable } from "./sampler.js";

export const ALTERNATIVES = 8;

export class Stream {
  #model;
  #uniforms = null;
  #seed = null;
  #logits = null;

  constructor(model) {
    this.#model = model;
    this.state = new Float32Array(model.description.stateSize);
    this.position = 0; // of the next generated character
  }

  /** Reads what a model reads before a prompt, if anything, or instead of one; this is not part of the text. */
  async begin(hasPrompt) {
    const { start_id: start, has_start: isAlways } = this.#model.description;
    if (isAlways || !hasPrompt) await this.#advance(start);
  }

  /** Continues behind the character `id`, before which the state was `state`; `position` counts generated characters. */
  async restore(state, id, position) {
    this.state = state;
    this.position = position;
    await this.#advance(id);
  }

  /** Reads a character of the prompt; returns what there is to show of it. */
  async read(id) {
    const shown = this.#shown(id);
    await this.#advance(id);
    return shown;
  }

  /** Generates a character; returns what there is to show of it, or null where the text ends: the state stays. */
  async next(sampling, seed) {
    if (seed !== this.#seed) [this.#uniforms, this.#seed] = [new Uniforms(seed), seed];
    const u = this.#uniforms.at(this.position);
    const { never_ids: never, end_ids: ends } = this.#model.description;
    const id = choose(this.#logits, u, sampling, never);
    if (ends.includes(id)) return null;
    const shown = this.#shown(id);
    this.position++;
    await this.#advance(shown.id);
    return shown;
  }

  async #advance(id) {
    ({ logits: this.#logits, state: this.state } = await this.#model.read(this.state, id));
  }

  #shown(id) {
    if (!this.#logits) return { id, logprob: NaN, ids: [], logprobs: [] };
    const logprobs = logProbabilities(this.#logits);
    const ids = mostProbable(logprobs, ALTERNATIVES, this.#model.description.never_ids);
    return { id, logprob: logprobs[id], ids, logprobs: ids.map((other) => logprobs[other]) };
  }
}
