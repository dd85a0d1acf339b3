// The controls of prompt and sampling: what they say, and what a saved state sets them to.

import { element, number, showNote } from "./dom.js";
import { UNKNOWN } from "./model.js";
import { PLAIN } from "./sampler.js";
import { seedOf } from "./shared/philox.js";

const RATES = [5, 10, 20, 40, 80, 160, 320, 640, null]; // characters a second; null: as fast as it can
const LONGEST_PROMPT = 50_000; // characters
const LARGEST_COUNT = 100_000;
const LINE_END_SIGN = "↵"; // an input cannot hold a line end
const SETTINGS = ["temperature", "top-p", "top-k", "min-p", "banned", "speed", "seed"];

const value = (id) => Number(element(id).value);

export class Controls {
  #description;
  #change;

  /** The last settings that were right. */
  lastSettings = { sampling: PLAIN, seed: 0n, rate: null };

  /** `change(settings)` hears of new settings, if they are right. */
  constructor(description, change) {
    [this.#description, this.#change] = [description, change];
    element("top-k").max = String(description.vocabulary.length);
    for (const id of SETTINGS) element(id).addEventListener("input", () => this.#changed());
    element("new-seed").addEventListener("click", () => {
      element("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
      this.#changed();
    });
    this.#describe();
  }

  /** What the controls say; null, and a message, if one of them is wrong. */
  settings() {
    const numbers = { temperature: value("temperature"), topK: value("top-k"), topP: value("top-p"), minP: value("min-p") };
    const seed = this.#checked("seed", () => {
      try {
        return seedOf(element("seed").value);
      } catch {
        throw new RangeError("A seed is a whole number from 0 to 2⁶⁴ − 1.");
      }
    });
    const banned = this.#checked("banned", () => this.#readBanned());
    if (seed === null || banned === null) return null;
    this.lastSettings = { sampling: { ...numbers, banned }, seed, rate: RATES[value("speed")] };
    return this.lastSettings;
  }

  #readBanned() {
    const { vocabulary, never_ids: never } = this.#description;
    const text = element("banned").value.replaceAll(LINE_END_SIGN, "\n"); // which an input cannot hold
    const banned = [...new Set(this.#symbols(text))].filter((id) => !never.includes(id));
    if (banned.length >= vocabulary.length - never.length) throw new RangeError("No character is left.");
    return banned;
  }

  /** The ids in a text; symbols that are longer than a character, and end symbols, may stand between spaces. */
  #symbols(text) {
    const { vocabulary, end_ids: ends, areCharacters } = this.#description;
    const isNamed = (part) => ends.some((id) => vocabulary[id] === part);
    const idOf = (part) => (isNamed(part) ? [vocabulary.indexOf(part)] : this.#description.encode(part));
    return areCharacters && !isNamed(text) ? this.#description.encode(text) : text.split(" ").flatMap(idOf);
  }

  /** What `read` gives for a control; null, and the control's message, if it throws RangeError. */
  #checked(id, read) {
    try {
      const result = read();
      showNote(`${id}-error`, "");
      element(id).removeAttribute("aria-invalid");
      return result;
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      showNote(`${id}-error`, error.message);
      element(id).setAttribute("aria-invalid", "true");
      return null;
    }
  }

  /** Sets the controls to the settings of a saved state. */
  set({ sampling, seed }) {
    const values = { temperature: sampling.temperature, "top-k": sampling.topK, "top-p": sampling.topP, "min-p": sampling.minP };
    for (const [id, number] of Object.entries(values)) element(id).value = String(number);
    element("seed").value = String(seed);
    const banned = sampling.banned.map((id) => this.#description.symbol(id)).join(this.#description.areCharacters ? "" : " ");
    element("banned").value = banned.replaceAll("\n", LINE_END_SIGN);
    this.#changed();
  }

  /** How many characters to generate. */
  get count() {
    const count = element("count").valueAsNumber;
    return Number.isFinite(count) ? Math.max(1, Math.min(LARGEST_COUNT, Math.round(count))) : 1000;
  }

  /** The ids of the prompt; null, and a message, if the model does not know a character. */
  prompt() {
    return this.#checked("prompt", () => {
      const ids = this.#description.encode(element("prompt").value);
      if (ids.length > LONGEST_PROMPT) {
        throw new RangeError(`The prompt has ${number(ids.length)} characters; this page reads ${number(LONGEST_PROMPT)}.`);
      }
      const unknown = ids.filter((id) => id === this.#description.unknown_id).length;
      showNote("prompt-note", unknown ? `Unknown to the model, which reads them as ${UNKNOWN}: ${number(unknown)}.` : "");
      return ids;
    });
  }

  #changed() {
    this.#describe();
    const settings = this.settings();
    if (settings) this.#change(settings);
  }

  /** Writes beside each control what its value means. */
  #describe() {
    const show = (id, text) => {
      element(id).parentElement.querySelector("output").textContent = text;
      element(id).setAttribute("aria-valuetext", text);
    };
    show("temperature", value("temperature") ? value("temperature").toFixed(2) : "0, the most probable");
    show("top-p", value("top-p") < 1 ? value("top-p").toFixed(2) : "off");
    show("top-k", value("top-k") ? String(value("top-k")) : "off");
    show("min-p", value("min-p") ? value("min-p").toFixed(2) : "off");
    element("banned").parentElement.querySelector("output").textContent = element("banned").value ? "" : "off";
    show("speed", RATES[value("speed")] ? `${RATES[value("speed")]} a second` : "as fast as it can");
  }
}
