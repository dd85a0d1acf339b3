// What the gateway says of its servers, and reads for the page.

import { headers } from "./access.js";
import { toStandardAlphabet } from "./base64.js";
import { Problem } from "./problem.js";
import { symbolsOf } from "./symbols.js";

const ALTERNATIVES = 5;

/** The servers behind the gateway that the page came from. */
export class Server {
  /** Returns the models, the first one being the one that is served if none is named, and how busy the server is. */
  async look() {
    return this.#ask("v1/load");
  }

  /** Throws a Problem that says why the gateway refuses this page; returns if it does not. */
  async check() {
    await this.#ask("v1/models");
  }

  /** Lets a model read a prompt; returns the resume token after it (standard base64), and the text's entries. */
  async read(model, text) {
    const body = { model: model || undefined, text, as_prompt: true, top_logprobs: ALTERNATIVES };
    const { resume_token: token, logprobs, top_logprobs: top, symbol_lengths: lengths } = await this.#ask("v1/score", body);
    const entries = symbolsOf(text, lengths).map((symbol, at) => ({
      text: symbol,
      given: true,
      logprob: logprobs[at],
      alternatives: alternativesOf(top?.[at] ?? {}),
    }));
    return { token: toStandardAlphabet(token), entries };
  }

  async #ask(path, body) {
    const init = body
      ? { method: "POST", headers: { ...headers(), "content-type": "application/json" }, body: JSON.stringify(body) }
      : { headers: headers() };
    let response;
    try {
      response = await fetch(new URL(path, document.baseURI), { ...init, credentials: "omit", cache: "no-store" });
    } catch {
      throw new Problem("The gateway cannot be reached.", { passing: true });
    }
    const requestId = response.headers.get("x-request-id") ?? "";
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw Problem.fromBody(answer, response.status, requestId);
    return answer;
  }
}

/** Alternatives by their text, the most probable first: objects of JavaScript have an order of their own. */
function alternativesOf(logprobs) {
  return Object.entries(logprobs)
    .map(([text, logprob]) => ({ text, logprob }))
    .sort((one, other) => other.logprob - one.logprob);
}
