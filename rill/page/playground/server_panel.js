// What is served and how busy the server is, and the bearer token that it may ask for.

import { bearerToken, keepBearerToken } from "./access.js";
import { Problem } from "./problem.js";

const LOOK_EVERY = 5000; // ms between two looks at the load
const element = (id) => document.getElementById(id);

/** Keeps the lists of models, the load and the field of the bearer token up to date. */
export class ServerPanel {
  #server;
  #onModels;
  #models = [];

  /** `onModels` is called when the lists of models have changed. */
  constructor(server, onModels) {
    this.#server = server;
    this.#onModels = onModels;
    element("access").addEventListener("submit", (event) => {
      event.preventDefault();
      keepBearerToken(element("bearer").value.trim());
      element("bearer").value = "";
      this.look();
    });
    setInterval(() => document.visibilityState === "visible" && this.look(), LOOK_EVERY);
  }

  /** Asks the server. */
  async look() {
    let seen;
    try {
      seen = await this.#server.look();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.status === 401) this.askForBearerToken();
      element("load").textContent = error.status === 401 ? "" : error.message;
      return;
    }
    element("access").hidden = !bearerToken();
    element("bearer-state").textContent = bearerToken() ? "accepted" : "";
    this.#models = seen.models;
    this.#drawModels(seen.models.filter((model) => model.streamable));
    element("load").textContent = loadOf(seen);
  }

  /** Shows the field of the bearer token: the server refuses requests without one, or with this one. */
  askForBearerToken() {
    element("bearer-state").textContent = bearerToken() ? "refused" : "this server asks for one";
    if (!element("access").hidden) return;
    element("access").hidden = false;
    element("bearer").focus();
  }

  /** Returns an entry without the alternatives that end a text: no text can have them. */
  withoutEnds(name, entry) {
    const ends = (this.#models.find((model) => model.name === name) ?? this.#models[0])?.end_symbols ?? [];
    return { ...entry, alternatives: entry.alternatives?.filter(({ text }) => !ends.includes(text)) };
  }

  #drawModels(models) {
    const [first, second] = [element("model"), element("other-model")];
    const options = models.map((model) => new Option(`${model.name} (${model.precision})`, model.name));
    const labels = (list) => list.map(({ text }) => text).join("\n");
    if (labels(options) === labels([...first.options])) return;
    const [chosen, beside] = [first.value, second.value];
    first.replaceChildren(...options);
    second.replaceChildren(new Option("no other", ""), ...options.map((option) => option.cloneNode(true)));
    const isServed = (name) => models.some((model) => model.name === name);
    if (isServed(chosen)) first.value = chosen;
    if (isServed(beside)) second.value = beside;
    second.hidden = element("other-label").hidden = models.length < 2;
    this.#onModels();
  }
}

function loadOf({ models, streams_running: running, streams_waiting: waiting, max_streams: most, draining }) {
  if (!models.some(({ streamable }) => streamable)) return "This server has no model that generates text.";
  const number = (count) => count.toLocaleString("en");
  const parts = [
    most ? `${number(running)} of ${number(most)} streams` : `${number(running)} streams`,
    ...(waiting ? [`${number(waiting)} waiting`] : []),
    ...(draining ? ["draining"] : []),
  ];
  return parts.join(", ");
}
