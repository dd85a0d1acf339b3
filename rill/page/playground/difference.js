// Where two texts that grow part.

/** Compares entries of two texts, each no more than once. */
export class Difference {
  #compared = 0;
  #found = null;

  /** Returns the index of the first entry in which they differ, or null as far as both go. */
  find(one, other) {
    const end = Math.min(one.length, other.length);
    if (this.#found === null && end < this.#compared) this.#compared = 0; // a text was cut
    while (this.#found === null && this.#compared < end) {
      if (one[this.#compared].text !== other[this.#compared].text) this.#found = this.#compared;
      else this.#compared++;
    }
    return this.#found;
  }

  /** Begins again: a text was replaced. */
  reset() {
    [this.#compared, this.#found] = [0, null];
  }
}
