// The request to copy, for other programs.

import { bearerToken } from "./access.js";
import { copy } from "./copy.js";
import * as snippets from "./snippets.js";

const NEEDS_TARGET = new Set(["rill", "grpcurl"]);
const NOTES = {
  curl: "OpenAI's completions, streamed.",
  openai: "pip install openai",
  rill: "pip install rill-text",
  grpcurl: "github.com/fullstorydev/grpcurl; servers describe their API by reflection.",
};

/** Shows the request; `read` returns { model, prompt, token, settings } for the prompt or for the end of the text. */
export class RequestPanel {
  #read;
  #origin = "prompt";
  #program = "curl";
  #snippet = document.getElementById("snippet");
  #target = document.getElementById("target");

  constructor(read) {
    this.#read = read;
    this.#target.value = `${location.hostname || "127.0.0.1"}:50051`;
    this.#target.addEventListener("input", () => this.draw());
    choice("origins", (value) => {
      this.#origin = value;
      this.draw();
    });
    choice("programs", (value) => {
      this.#program = value;
      this.draw();
    });
    const button = document.getElementById("copy-snippet");
    button.addEventListener("click", () => copy(this.#snippet.textContent, button));
  }

  /** Shows the request as it is now. */
  draw() {
    const request = this.#read(this.#origin);
    const isReady = request !== null;
    const toServer = NEEDS_TARGET.has(this.#program);
    document.getElementById("target-field").hidden = !toServer;
    document.getElementById("copy-snippet").disabled = !isReady;
    const base = new URL(".", document.baseURI).href;
    const text = isReady
      ? snippets[this.#program]({ ...request, isProtected: bearerToken() !== "" }, toServer ? this.#target.value : base)
      : "There is no token yet: start a text.";
    if (this.#snippet.textContent !== text) this.#snippet.textContent = text;
    document.getElementById("snippet-note").textContent = NOTES[this.#program];
  }
}

/** Buttons of which one is pressed. */
function choice(id, onChoose) {
  const group = document.getElementById(id);
  group.addEventListener("click", (event) => {
    const chosen = event.target.closest("button");
    if (!chosen) return;
    for (const button of group.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button === chosen));
    onChoose(chosen.dataset.value);
  });
}
