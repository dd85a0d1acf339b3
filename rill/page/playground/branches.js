// The versions of a text. A fork is a branch: it shares the beginning of another and goes on differently.
//
// A branch has entries, one for each symbol (a character, unless the model has longer ones), the given ones (a prompt, what was fed) included, and marks: resume
// tokens of the places that it passed. From any of them, what follows can be made again, exactly: by generating, by
// reading the given entries, and by changing parameters where they were changed.

/** One version of a text. */
export class Branch {
  entries = []; // { text, logprob, alternatives, given }, as <rill-text> has them
  marks = []; // { index, token, position } by index: after `index` entries, of which `position` were generated
  changes = []; // { index, sampling }: how characters are chosen after `index` entries; what is not named stays
  promptLength = 0; // so many of the first entries were read as a prompt
  isFromToken = false; // it began with a token that was pasted, instead of a prompt
  usesStops = false; // a token of it may have stop strings
  hasLongSymbols = false; // symbols may be longer than a character
  hasEnded = false; // the model has ended it, by an end symbol
  matches = undefined; // whether the text of the last generation matches its constraint, if it has one
  version = 0; // changes when entries that were shown have changed

  constructor(id, parent, start, cause) {
    this.id = id;
    this.parent = parent; // another branch, or null
    this.start = start; // how many entries it shares with its parent
    this.cause = cause; // why it is there, for people
  }

  get length() {
    return this.entries.length;
  }

  /** The text of entries, all or those from `start` to `end`. */
  text(start = 0, end = this.length) {
    let text = "";
    for (let index = start; index < end; index++) text += this.entries[index].text;
    return text;
  }

  /** Adds a mark. A later one at the same place replaces it: a change of parameters came between them. */
  mark(index, token, position) {
    let at = this.marks.length;
    while (at > 0 && this.marks[at - 1].index > index) at--;
    const replaces = at > 0 && this.marks[at - 1].index === index;
    this.marks.splice(replaces ? at - 1 : at, replaces ? 1 : 0, { index, token, position });
  }

  /** Returns the last mark at or before an entry; undefined if there is none. */
  markBefore(index) {
    return this.marks.findLast((mark) => mark.index <= index);
  }

  /** From the end of the text on, characters are chosen in another way. */
  change(sampling) {
    this.changes.push({ index: this.length, sampling });
  }

  /** Returns how characters are chosen after `index` entries. */
  samplingAt(index) {
    return Object.assign({}, ...this.changes.filter((change) => change.index <= index).map(({ sampling }) => sampling));
  }

  /** Returns what the text must match after `index` entries, as settings have it; undefined if a token alone knows. */
  constraintAt(index) {
    return JSON.stringify(this.samplingAt(index).constraint);
  }

  /** Replaces the entries of the prompt by the model's symbols of the same text, of which more is known. */
  describePrompt(entries) {
    this.entries.splice(0, this.promptLength, ...entries);
    this.promptLength = entries.length;
    this.version++;
  }

  /** Forgets everything from `index` on. */
  truncate(index) {
    this.entries.length = Math.min(this.entries.length, index);
    this.marks = this.marks.filter((mark) => mark.index <= index);
    this.changes = this.changes.filter((change) => change.index <= index);
  }
}

/** The branches of a text and the one that is shown. */
export class Branches {
  #list = [];
  #count = 0;

  current = null;

  get all() {
    return [...this.#list];
  }

  /** Begins another text, which has nothing in common with those before: they are forgotten. */
  begin(cause) {
    this.#list = [];
    this.#count = 0;
    return this.#add(null, 0, cause);
  }

  /** Leaves the present branch after `index` entries. */
  fork(index, cause) {
    const parent = this.current;
    const branch = this.#add(parent, index, cause);
    branch.entries = parent.entries.slice(0, index);
    branch.marks = parent.marks.filter((mark) => mark.index <= index);
    branch.changes = parent.changes.filter((change) => change.index <= index);
    branch.promptLength = Math.min(parent.promptLength, index);
    branch.isFromToken = parent.isFromToken;
    branch.usesStops = parent.usesStops;
    branch.hasLongSymbols = parent.hasLongSymbols;
    return branch;
  }

  /** Shows another branch. */
  select(branch) {
    this.current = branch;
  }

  /** Returns to the branch that the present one left; returns it, or null if there is none. */
  back() {
    if (!this.current?.parent) return null;
    this.current = this.current.parent;
    return this.current;
  }

  /** How many forks lie between a branch and the first one. */
  depth(branch) {
    let depth = 0;
    for (let at = branch.parent; at; at = at.parent) depth++;
    return depth;
  }

  #add(parent, start, cause) {
    this.current = new Branch(++this.#count, parent, start, cause);
    this.#list.push(this.current);
    return this.current;
  }
}
