// A live text: it grows, pauses, forks, and survives servers and gateways that end. It knows nothing of what is shown.
//
// Each run is a call of Interact, which ends when the text pauses: a paused text costs a server nothing, since its token
// is all that there is to it. A call that breaks is made again from the last token, and what had arrived after that
// token is generated again and compared.

import { Branches } from "./branches.js";
import { Call } from "./call.js";
import { Meter } from "./meter.js";
import { Problem } from "./problem.js";
import { Place, replay } from "./replay.js";
import { sameGeneration, sameSampling, samplingOf, stopsOf } from "./settings.js";
import { symbolsOf } from "./symbols.js";

/** Characters that the page holds; a text can go on elsewhere, from its token. */
export const MOST = 200_000;

// A text that grows gets a token after so many characters, or after fewer once so much time has passed.
const MARK_CHARACTERS = 1024;
const MARK_SOONER = { characters: 128, milliseconds: 1000 };
const LONGEST_WAIT = 5000; // ms between two attempts to connect
const PAUSE_PATIENCE = 1500; // ms
const MOST_REPLAYS = 3; // in a row, from the prompt
const STOP = "FINISH_REASON_STOP";
const CHANGED = Symbol("settings have changed, or the text is to pause");

/** One text and its branches. `onChange` is called when the state has changed; entries are looked at by who shows them. */
export class Session {
  branches = new Branches();
  meter = new Meter();
  /** "empty", "starting", "running", "waiting" (for a server), "paused", "ended", "failed" */
  state = "empty";
  problem = null; // why it waits or has failed
  seed = ""; // as the server has it

  #server;
  #onChange;
  #settings = null;
  #model = "";
  #run = null; // a promise while there is a run
  #call = null;
  #place = null; // of the call
  #isHalting = false;
  #wake = () => {};
  #requests = 0; // to start, fork and so on: a later one replaces one that still waits for the end of a run
  #feed = null; // an entry that the model reads before it generates
  #begun = 0; // the index at which the present length begins to count
  #passesStop = false; // the text stands before a stop string that it shall pass
  #failures = 0;

  constructor(server, onChange) {
    this.#server = server;
    this.#onChange = onChange;
  }

  get branch() {
    return this.branches.current;
  }

  get isLive() {
    return this.#run !== null;
  }

  /** The last place that has a token, as a mark; null if there is none. */
  get lastMark() {
    const mark = this.branch?.markBefore(this.branch.length);
    return mark?.token ? mark : null;
  }

  /** Begins another text, with a prompt. */
  async start(model, prompt, settings) {
    if (!(await this.#isNextAfter(this.abort()))) return;
    const branch = this.branches.begin(`seed ${settings.seed}`);
    branch.entries = Array.from(prompt, (text) => ({ text, given: true }));
    branch.promptLength = branch.length;
    this.#go(model, settings);
  }

  /** Begins another text from a resume token (standard base64). Settings that are null are the token's. */
  async continueFrom(token, settings) {
    if (!(await this.#isNextAfter(this.abort()))) return;
    const branch = this.branches.begin("from a token");
    branch.usesStops = true; // perhaps
    branch.isFromToken = true;
    branch.mark(0, token, null);
    this.#go("", settings);
  }

  /** Goes on at the end of the text. */
  resume(settings) {
    if (this.isLive || !this.branch) return;
    this.#requests++;
    const isComplete = this.state === "ended" || this.branch.length >= this.#begun + (settings.length || Infinity);
    this.#passesStop = this.#passesStop && this.state === "ended";
    if (isComplete) this.#begun = this.branch.length;
    this.#launch(settings);
  }

  /** Lets settings act on the text, at once where it grows. */
  change(settings) {
    this.#settings = settings;
    this.#wake();
  }

  /** Ends the growth; the text can go on. */
  async pause() {
    this.#requests++;
    await this.#halt();
  }

  /** Returns to the first `index` characters, and goes on from there, after `feed` (an entry) if there is one. */
  async fork(index, cause, settings, feed = null) {
    if (!(await this.#isNextAfter(this.#halt()))) return;
    const isInPrompt = index < this.branch.promptLength;
    const branch = this.branches.fork(index, cause);
    if (feed && isInPrompt) branch.promptLength = branch.entries.push(feed);
    this.#feed = isInPrompt ? null : feed;
    this.#begun = index;
    this.#passesStop = false;
    this.#launch(settings);
  }

  /** Shows another branch, and does not go on. */
  async select(branch) {
    if (!(await this.#isNextAfter(this.#halt()))) return;
    this.branches.select(branch);
    this.#begun = branch.length;
    this.#passesStop = false;
    this.#feed = null;
    this.#become("paused");
  }

  /** Ends the growth, whatever becomes of the text. */
  async abort() {
    this.#isHalting = true;
    this.#call?.close();
    this.#wake();
    await this.#run;
  }

  /** Waits for the end of a run; returns whether nothing else was asked for meanwhile. */
  async #isNextAfter(end) {
    const request = ++this.#requests;
    await end;
    return request === this.#requests;
  }

  async #halt() {
    if (!this.isLive) return;
    this.#isHalting = true;
    this.#wake();
    if (this.state !== "running") this.#call?.close();
    const patience = setTimeout(() => this.#call?.close(), PAUSE_PATIENCE); // the gateway may be looking for a server
    await this.#run;
    clearTimeout(patience);
  }

  #go(model, settings) {
    this.#model = model;
    this.#feed = null;
    this.#begun = this.branch.length;
    this.#passesStop = false;
    this.#launch(settings);
  }

  #launch(settings) {
    this.#settings = settings;
    this.#isHalting = false;
    this.#failures = 0;
    this.meter.begin(performance.now());
    this.#run = this.#attempts().finally(() => {
      this.#run = null;
      this.#onChange();
    });
  }

  #become(state, problem = null) {
    [this.state, this.problem] = [state, problem];
    this.#onChange();
  }

  async #attempts() {
    this.#become("starting");
    while (true) {
      try {
        const isComplete = await this.#callOnce();
        return this.#become(isComplete ? "ended" : "paused");
      } catch (error) {
        if (!(error instanceof Problem)) {
          this.#become("failed", new Problem("This page has a fault: the browser's console has more."));
          throw error;
        }
        if (this.#isHalting) return this.#become("paused");
        if (!this.#mayRetry(error)) return this.#become("failed", error);
        if (this.#failures++) {
          this.#become("waiting", error);
          await this.#woken(Math.min(LONGEST_WAIT, 125 * 2 ** this.#failures));
          if (this.#isHalting) return this.#become("paused");
        }
      }
    }
  }

  /** Whether another call may help: the server comes back, or can do without a token that it cannot read. */
  #mayRetry(error) {
    const { branch } = this;
    if (error.isOfTokens && !branch.isFromToken && this.#failures < MOST_REPLAYS) {
      branch.marks = []; // a server that was started again may have another key: the text is made again from its prompt
      return true;
    }
    const mark = branch.markBefore(branch.length);
    return error.passing && (mark?.token || branch.length > branch.promptLength);
  }

  /** Makes one call; returns whether the text is complete, and not just paused. */
  async #callOnce() {
    const { branch } = this;
    const call = new Call();
    this.#call = call;
    try {
      const isFresh = await this.#open(call, branch);
      return await this.#grow(call, branch, isFresh);
    } catch (error) {
      if (error.code !== "UNREACHED") throw error;
      await this.#server.check(); // a browser does not say why a WebSocket was refused
      throw error;
    } finally {
      call.close();
      this.#call = null;
    }
  }

  /** Brings a call to the end of the text as it is; returns whether nothing was generated before. */
  async #open(call, branch) {
    branch.truncate(branch.length); // no token of a place that the text has not reached
    if (!branch.markBefore(branch.length)) await this.#readPrompt(branch);
    const mark = branch.markBefore(branch.length);
    const isFresh = mark.position === 0 && mark.index === branch.length;
    if (isFresh) branch.change(samplingOf(this.#settings));
    const opened = await call.open({
      model: this.#model || undefined,
      resumeToken: mark.token || undefined,
      sampling: mark.position === 0 ? branch.samplingAt(mark.index) : undefined,
    });
    this.seed = opened.seed ?? "0";
    if (mark.position === null) mark.position = Number((await call.snapshot()).position ?? 0); // of a pasted token
    const place = new Place(mark.index, mark.position);
    this.#place = place;
    call.onSnapshot = ({ resumeToken, position }) => {
      branch.mark(place.indexOf(Number(position ?? 0)), resumeToken, Number(position ?? 0));
    };
    await replay(call, branch, place);
    return isFresh;
  }

  /** Lets the model read the prompt: the first mark. Its token does not say how to choose characters. */
  async #readPrompt(branch) {
    if (!branch.promptLength) return branch.mark(0, "", 0); // the model begins by itself
    const { token, entries } = await this.#server.read(this.#model, branch.text(0, branch.promptLength));
    const hadBegun = this.#begun >= branch.length; // the length begins to count behind the prompt
    branch.describePrompt(entries);
    if (hadBegun) this.#begun = branch.length;
    return branch.mark(branch.promptLength, token, 0);
  }

  /** Lets the text grow until it is complete or is to pause. */
  async #grow(call, branch, isFresh) {
    let marked = { length: branch.length, time: performance.now() };
    call.onOutput = (output) => {
      if (output.finishReason) branch.matches = output.usage?.matches;
      this.#add(branch, output);
      if (!isMarkDue(branch.length - marked.length, performance.now() - marked.time)) return;
      marked = { length: branch.length, time: performance.now() };
      call.snapshot().catch(() => {}); // `generate` says why
    };
    if (this.#feed) await this.#read(call, branch);
    let applied = isFresh ? this.#settings : null;
    let reason = null;
    branch.hasEnded = false;
    branch.matches = undefined;
    if (applied) call.snapshot().catch(() => {}); // a token with these settings
    while (true) {
      const settings = this.#settings;
      if (!applied || !sameSampling(applied, settings)) await this.#apply(call, branch, settings);
      applied = settings;
      const left = Math.min(settings.length ? this.#begun + settings.length : MOST, MOST) - branch.length;
      const isComplete = left <= 0 || reason === STOP;
      if (this.#isHalting || isComplete) {
        await call.snapshot();
        this.#passesStop = reason === STOP;
        branch.hasEnded = reason === STOP && settings.stop?.length === 0;
        return isComplete;
      }
      reason = await this.#generate(call, settings, left);
    }
  }

  /**
   * Changes how characters are chosen, from here on; a token of this place comes between what was and what will be.
   * A constraint that the text has is not sent again: it would begin anew.
   */
  async #apply(call, branch, settings) {
    const hasConstraint = settings.constraint === branch.constraintAt(branch.length);
    const sampling = samplingOf(hasConstraint ? { ...settings, constraint: null } : settings);
    if (Object.keys(sampling).length) call.update(sampling);
    await call.snapshot();
    branch.change(sampling);
  }

  /** Generates until the end or a change; returns why it ended, or null. */
  async #generate(call, settings, left) {
    const { branch } = this;
    const stop = stopsOf(settings.stop, branch);
    branch.usesStops ||= stop.length > 0;
    const passes = this.#passesStop && settings.stop?.length;
    const most = passes ? Math.min(left, Math.max(...settings.stop.map((text) => Array.from(text).length))) : left;
    this.#passesStop = false;
    const generation = call.generate({
      maxChars: String(most),
      stop,
      includeStop: Boolean(passes),
      logprobs: settings.alternatives ?? undefined,
      charsPerSecond: settings.pace || undefined,
    });
    this.#become("running");
    const isOther = () => this.#isHalting || !sameSampling(settings, this.#settings) || !sameGeneration(settings, this.#settings);
    while (true) {
      const woken = this.#woken().then(() => CHANGED);
      const reason = isOther() ? CHANGED : await Promise.race([generation, woken]);
      if (reason !== CHANGED) return passes ? null : reason;
      if (!isOther()) continue;
      await call.pause();
      return generation.then((end) => (passes ? null : end));
    }
  }

  /** Lets the model read what shall stand at the end of the text. */
  async #read(call, branch) {
    await call.feed(this.#feed.text);
    this.#place.passGiven(branch.length);
    await call.snapshot(); // if the call breaks before, the text is read again
    branch.entries.push(this.#feed);
    this.#feed = null;
  }

  #add(branch, { text = "", position, logprobs, symbolLengths }) {
    if (!text) return;
    branch.hasLongSymbols ||= Boolean(symbolLengths?.length);
    const before = branch.length;
    if (this.#place.indexOf(Number(position ?? 0)) !== before) {
      throw new Problem("The gateway left out some of the text.", { passing: true });
    }
    if (logprobs?.length) branch.entries.push(...logprobs.map(entryOf));
    else branch.entries.push(...symbolsOf(text, symbolLengths).map((symbol) => ({ text: symbol })));
    this.meter.add(branch.length - before, performance.now());
    this.#failures = 0;
  }

  /** Waits until `change`, `pause` or `abort` is called, for at most so many milliseconds. */
  #woken(most) {
    return new Promise((resolve) => {
      this.#wake = resolve;
      if (most !== undefined) setTimeout(resolve, most);
    });
  }
}

function isMarkDue(characters, milliseconds) {
  const sooner = characters >= MARK_SOONER.characters && milliseconds >= MARK_SOONER.milliseconds;
  return sooner || characters >= MARK_CHARACTERS;
}

/** A CharLogprob as an entry; protobuf's JSON leaves out what is 0. */
function entryOf({ character, logprob, alternatives = [] }) {
  return {
    text: character,
    logprob: Number(logprob ?? 0),
    alternatives: alternatives.map((other) => ({ text: other.character, logprob: Number(other.logprob ?? 0) })),
  };
}
