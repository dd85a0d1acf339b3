// The settings, as people see them.

import { constraintOf, faultOfConstraint, KINDS, readLines } from "./constraint.js";
import { DEFAULTS, drawSeed, faultOf, OF_THE_TOKEN } from "./settings.js";

const PACES = [2, 5, 10, 20, 50, 100, 200, 400, 800, 1500, 3000, 6000, 12000, 0]; // characters/s; 0: as fast as it goes
const ALTERNATIVES = 5;
const FIELDS = {
  temperature: "temperature",
  topP: "top-p",
  minP: "min-p",
  topK: "top-k",
  seed: "seed",
  constraint: "constraint",
  stop: "stop",
  pace: "pace",
  length: "length",
};

/** Reads the settings, and calls `onChange` when valid ones have changed. */
export class Controls {
  #inputs = {};
  #outputs = {};
  #shading = document.getElementById("shading");
  #kind = document.getElementById("constraint-kind");
  #examples = document.getElementById("constraint-examples");
  #written = {}; // what stood in the field of the constraint, by its kind
  #shownKind = "";
  #ofTheToken = new Set(); // settings that nobody has changed since a text began with a token

  constructor(onChange) {
    for (const [name, id] of Object.entries(FIELDS)) {
      this.#inputs[name] = document.getElementById(id);
      this.#outputs[name] = document.querySelector(`output[for="${id}"]`);
      const input = this.#inputs[name];
      input.addEventListener("input", () => {
        this.#ofTheToken.delete(name);
        this.#show();
      });
      // What is being typed acts once it is complete.
      input.addEventListener(input.type === "range" ? "input" : "change", () => onChange(this.settings));
    }
    this.#kind.addEventListener("change", () => {
      this.#chooseKind();
      onChange(this.settings);
    });
    this.#examples.addEventListener("click", (event) => {
      const chosen = event.target.closest("button");
      if (!chosen) return;
      this.#write("constraint", chosen.value);
      onChange(this.settings);
    });
    this.#shading.addEventListener("change", () => onChange(this.settings));
    document.getElementById("draw-seed").addEventListener("click", () => {
      this.drawSeed();
      onChange(this.settings);
    });
    this.drawSeed();
  }

  /** The settings; those that are the token's are null. */
  get settings() {
    const value = (name) => this.#inputs[name].value;
    const length = value("length").trim() === "" ? NaN : Number(value("length"));
    const settings = {
      ...DEFAULTS,
      temperature: Number(value("temperature")),
      topP: Number(value("topP")),
      minP: Number(value("minP")),
      topK: Number(value("topK")),
      seed: value("seed").trim(),
      constraint: constraintOf(this.#kind.value, value("constraint")),
      stop: readLines(value("stop")),
      pace: PACES[value("pace")],
      length,
      alternatives: this.#shading.checked ? ALTERNATIVES : null,
    };
    return { ...settings, ...Object.fromEntries([...this.#ofTheToken].map((name) => [name, OF_THE_TOKEN[name]])) };
  }

  /** What is wrong with the settings, as a sentence; an empty text if nothing is. */
  get fault() {
    return faultOf(this.settings);
  }

  /** What is wrong with what the text must match. */
  get constraintFault() {
    return faultOfConstraint(this.settings.constraint);
  }

  /** Shows, at its field, what is wrong with what the text must match; an empty text if nothing is. */
  showConstraintProblem(sentence) {
    const problem = document.getElementById("constraint-problem");
    if (problem.textContent !== sentence) problem.textContent = sentence;
    problem.hidden = !sentence;
    this.#inputs.constraint.setAttribute("aria-invalid", String(sentence !== ""));
  }

  /** Draws another seed. */
  drawSeed() {
    this.#write("seed", drawSeed());
  }

  /** The text begins with a token: what it is made with is not known here, until somebody changes it. */
  followToken() {
    this.#ofTheToken = new Set(Object.keys(OF_THE_TOKEN));
    this.#show();
  }

  /** The text begins with a prompt: all settings are those that are shown. */
  followForm() {
    this.#ofTheToken.clear();
    this.#show();
  }

  #write(name, value) {
    this.#ofTheToken.delete(name);
    this.#inputs[name].value = value;
    this.#show();
  }

  /** Shows the field of the kind that was chosen, with what stood there before. */
  #chooseKind() {
    this.#written[this.#shownKind] = this.#inputs.constraint.value;
    this.#shownKind = this.#kind.value;
    const kind = KINDS[this.#shownKind];
    document.getElementById("constraint-field").hidden = !kind;
    document.querySelector('label[for="constraint"]').textContent = kind?.label ?? "";
    const examples = (kind?.examples ?? []).map(([name, text]) => {
      const button = document.createElement("button");
      [button.type, button.className, button.textContent, button.value] = ["button", "quiet", name, text];
      return button;
    });
    this.#examples.replaceChildren(...examples);
    this.showConstraintProblem("");
    this.#write("constraint", this.#written[this.#shownKind] ?? "");
  }

  #show() {
    const { temperature, topP, minP, topK, pace } = this.settings;
    const shown = {
      temperature: temperature === 0 ? "greedy" : temperature?.toFixed(2),
      topP: topP === 1 ? "off" : topP?.toFixed(2),
      minP: minP === 0 ? "off" : minP?.toFixed(2),
      topK: topK === 0 ? "off" : topK,
      seed: "",
      constraint: "",
      stop: "",
      pace: pace ? `${pace.toLocaleString("en")} characters/s` : "no limit",
      length: this.#inputs.length.value === "0" ? "no end" : "",
    };
    for (const [name, output] of Object.entries(this.#outputs)) {
      const text = this.#ofTheToken.has(name) ? "as in the token" : String(shown[name]);
      if (output.textContent !== text) output.textContent = text;
      if (this.#inputs[name].type === "range") this.#inputs[name].setAttribute("aria-valuetext", text);
    }
    const fault = this.fault;
    this.#inputs.seed.setAttribute("aria-invalid", String(/seed/.test(fault)));
    this.#inputs.length.setAttribute("aria-invalid", String(/length/.test(fault)));
    this.#inputs.stop.setAttribute("aria-invalid", String(/stop/.test(fault)));
  }
}
