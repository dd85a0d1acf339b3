// One call of Interact over a WebSocket: rill.v1's messages as protobuf's JSON, one in each frame.

import { subprotocols } from "./access.js";
import { Problem, sentenceOf } from "./problem.js";

const ENDS = new Set(["FINISH_REASON_LENGTH", "FINISH_REASON_STOP"]);
const NORMAL_CLOSE = 1000;

/** A live call. Promises that it returned are rejected with a Problem when it breaks. */
export class Call {
  #socket;
  #waiting = { opened: [], fed: [], paused: [], snapshot: [] };
  #broken = null; // why it ended
  #refusal = null; // what the gateway said before it closed
  #generation = null;
  #ready;
  #rejectReady;
  #isOpen = false;

  /** Called with each GenerateResponse. */
  onOutput = () => {};
  /** Called with each Snapshot, also with those that nobody waits for. */
  onSnapshot = () => {};

  constructor() {
    const url = new URL("v1/interact", document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    this.#socket = new WebSocket(url, subprotocols());
    this.#socket.onmessage = (message) => this.#receive(message.data);
    this.#socket.onclose = (event) => this.#closed(event);
    this.#ready = new Promise((resolve, reject) => {
      this.#socket.onopen = resolve;
      this.#rejectReady = reject;
    });
    this.#ready.catch(() => {}); // `open` says why
  }

  /** Opens the call; returns what the server says: `seed` and `modelId`. */
  async open(action) {
    await this.#ready;
    this.#isOpen = true;
    this.#send({ open: action });
    return this.#expect("opened");
  }

  /** Lets the model read a text. */
  feed(text) {
    this.#send({ feed: text });
    return this.#expect("fed");
  }

  /** Changes how characters are chosen. No text may be growing. */
  update(sampling) {
    this.#send({ update: sampling });
  }

  /** Returns the state as a token: `resumeToken` and `position`. */
  snapshot() {
    this.#send({ snapshot: {} });
    return this.#expect("snapshot");
  }

  /** Generates text; returns why it ended, or null after `pause`. */
  generate(action) {
    this.#send({ generate: action });
    return new Promise((resolve, reject) => {
      this.#generation = { resolve, reject };
    });
  }

  /** Ends the text that is growing where it is. */
  async pause() {
    this.#send({ pause: {} });
    await this.#expect("paused");
    this.#finish(null);
  }

  /** Ends the call. */
  close() {
    this.onOutput = this.onSnapshot = () => {};
    this.#break(new Problem("The call was closed.", { code: "CLOSED" }));
    this.#socket.close(NORMAL_CLOSE);
  }

  #send(action) {
    if (!this.#broken) this.#socket.send(JSON.stringify(action));
  }

  #expect(kind) {
    return new Promise((resolve, reject) => {
      if (this.#broken) reject(this.#broken);
      else this.#waiting[kind].push({ resolve, reject });
    });
  }

  #receive(data) {
    if (this.#broken) return;
    try {
      this.#handle(data);
    } catch (error) {
      this.#break(error);
      this.#socket.close(NORMAL_CLOSE);
    }
  }

  #handle(data) {
    const event = JSON.parse(data);
    const [kind] = Object.keys(event);
    if (kind === "error") {
      this.#refusal = event;
    } else if (kind === "output") {
      this.onOutput(event.output);
      if (ENDS.has(event.output.finishReason)) this.#finish(event.output.finishReason);
    } else if (this.#waiting[kind]) {
      if (kind === "snapshot") this.onSnapshot(event.snapshot);
      this.#waiting[kind].shift()?.resolve(event[kind]);
    }
  }

  #finish(reason) {
    this.#generation?.resolve(reason);
    this.#generation = null;
  }

  #closed(event) {
    const { code, reason } = event;
    if (this.#refusal) this.#break(Problem.fromBody(this.#refusal));
    else if (reason) this.#break(new Problem(sentenceOf(reason), { passing: code !== 1008 && code < 4000 }));
    else if (this.#isOpen) this.#break(new Problem("The connection to the gateway broke.", { passing: true }));
    else this.#break(new Problem("The gateway cannot be reached.", { code: "UNREACHED", passing: true }));
  }

  #break(problem) {
    this.#broken ??= problem;
    for (const waiting of Object.values(this.#waiting)) {
      for (const { reject } of waiting.splice(0)) reject(this.#broken);
    }
    this.#rejectReady(this.#broken);
    this.#generation?.reject(this.#broken);
    this.#generation = null;
  }
}
