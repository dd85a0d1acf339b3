// A text on the page: what its session holds is shown, one animation frame at a time.

import { TextView } from "../shared/text_view.js";

import { MOST, Session } from "./session.js";

const MOST_PER_FRAME = 3000; // characters
const FIGURES_EVERY = 250; // ms

/** One model's text: its session, its view and its figures. */
export class Pane {
  element = document.createElement("article");
  view = new TextView();
  model = "";

  #title = document.createElement("h2");
  #figures = document.createElement("p");
  #shown = { branch: null, version: 0, length: 0 };
  #figuresAt = 0;
  #wasLive = false;

  constructor(server, onChange) {
    this.session = new Session(server, () => onChange(this));
    this.element.className = "pane";
    this.#title.hidden = true;
    this.#figures.className = "note numbers figures";
    const head = document.createElement("div");
    head.className = "spread";
    head.append(this.#title, this.#figures);
    this.view.className = "chooses";
    this.view.setAttribute("aria-label", "Text");
    this.view.setAttribute("data-placeholder", "The text grows here. Click on a character to go on differently from there.");
    this.element.append(head, this.view);
  }

  /** Names the model above the text, or nothing if there is only one text. */
  name(title) {
    this.#title.textContent = title;
    this.#title.hidden = !title;
    this.view.setAttribute("aria-label", title ? `Text of ${title}` : "Text");
  }

  /** Shows what has arrived; returns whether it has to be called again in the next frame. */
  draw(now) {
    const { session } = this;
    const { branch, isLive } = session;
    if (branch) {
      this.#follow(branch);
      const end = Math.min(branch.length, this.#shown.length + MOST_PER_FRAME);
      if (end > this.#shown.length) this.view.add(branch.entries.slice(this.#shown.length, end));
      this.#shown.length = end;
      if (now - this.#figuresAt >= FIGURES_EVERY || this.#wasLive !== isLive) {
        this.#drawFigures(branch, now);
        [this.#figuresAt, this.#wasLive] = [now, isLive];
      }
    }
    return isLive || (branch !== null && this.#shown.length < branch.length);
  }

  /** Keeps what the branch has in common with what is shown, and removes the rest. */
  #follow(branch) {
    const shown = this.#shown;
    if (shown.branch === branch && shown.version === branch.version) return;
    const entries = shown.branch === branch ? [] : (shown.branch?.entries ?? []); // it had other entries when it was shown
    let same = 0;
    const end = Math.min(shown.length, branch.length);
    while (same < end && entries[same] === branch.entries[same]) same++;
    this.view.marked = -1;
    this.view.truncate(same);
    this.#shown = { branch, version: branch.version, length: same };
  }

  #drawFigures(branch, now) {
    const { meter, isLive } = this.session;
    const rate = isLive ? meter.rate(now) : meter.average;
    const { firstCharacter } = meter;
    const bits = bitsPerCharacter(branch.entries);
    const figures = [
      isLive ? `${branch.length.toLocaleString("en")} characters` : "", // else the status has it
      rate === null ? "" : `${Math.round(rate).toLocaleString("en")} characters/s`,
      firstCharacter === null ? "" : `first after ${firstCharacter.toFixed(firstCharacter < 10 ? 1 : 0)} ms`,
      bits === null ? "" : `${bits.toFixed(2)} bits/character`,
      branch.length >= MOST ? "this page holds no more: the token goes on elsewhere" : "",
    ];
    this.#figures.textContent = figures.filter((figure) => figure).join(" · ");
  }
}

/** The mean surprise of generated characters, or null. */
function bitsPerCharacter(entries) {
  let [sum, count] = [0, 0];
  for (const { logprob, given } of entries) {
    if (given || typeof logprob !== "number") continue;
    sum -= logprob;
    count++;
  }
  return count ? sum / count / Math.LN2 : null;
}
