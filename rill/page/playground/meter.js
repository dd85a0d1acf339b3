// How fast a text grows.

const WINDOW = 1000; // ms

/** Counts characters; times are in milliseconds. */
export class Meter {
  #begun = null;
  #first = null;
  #last = null;
  #count = 0;
  #recent = []; // [time, count]

  /** A request leaves at this time. */
  begin(now) {
    [this.#begun, this.#first, this.#last, this.#count, this.#recent] = [now, null, null, 0, []];
  }

  /** So many characters arrived. */
  add(count, now) {
    if (!count) return;
    this.#first ??= now;
    this.#last = now;
    this.#count += count;
    this.#recent.push([now, count]);
    while (now - this.#recent[0][0] > WINDOW) this.#recent.shift();
  }

  /** Milliseconds from the request to the first character, or null. */
  get firstCharacter() {
    return this.#first === null ? null : this.#first - this.#begun;
  }

  /** Characters per second in the last second, or null before there is anything to divide by. */
  rate(now) {
    const recent = this.#recent.filter(([time]) => now - time <= WINDOW);
    if (this.#first === null || now - this.#first < 200) return null;
    const seconds = Math.min(WINDOW, now - this.#first) / 1000;
    return recent.reduce((sum, [, count]) => sum + count, 0) / seconds;
  }

  /** Characters per second from the first character to the last, or null. */
  get average() {
    return this.#first === null || this.#last - this.#first < 50 ? null : (1000 * this.#count) / (this.#last - this.#first);
  }
}
