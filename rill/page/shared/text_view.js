// <rill-text>: a text that grows, each character shaded, with its probability and alternatives in a tip.
//
//   view.add([{ text, logprob, alternatives: [{ text, logprob }], given }])   logprob in nats, or null; given: prompt
//   view.truncate(length); view.clear(); view.length; view.text
//   view.shade = null | (position) => a number from -1 to 1, or null;  view.reshade()   null: bits of surprise
//   view.describe = null | (position) => a line for the tip
//   view.marked = the position of a character that stands out, or -1
//   view.box(position): where a character is in the window
//
// Events, with detail.position: "inspect" when the pointer or the cursor reaches a character, "choose" for a click or
// Enter. The arrow keys, Home, End, Page Up and Page Down move the cursor; Escape hides the tip.
// Positions count appended entries: characters, or a model's longer symbols.

const SURPRISES = 8; // shades .b0 … .b7: bits
const VALUES = 16; // shades .u0 … .u16
const PART = 2048; // characters after which a line end begins a new part, so that a change lays out little
const LONGEST_LINE = 8192; // a part ends here without a line end
const TIP_ROWS = 8;
const NAMES = { "\n": "↵", "\t": "⇥", " ": "␣", "\r": "␍", "\u00a0": "⍽", "\u3000": "□" };
// Characters that would be invisible, or change how others are shown; joiners and variation selectors are needed.
const UNSEEN = /^(?![\n\t\u200c\u200d])[\p{C}\p{Zl}\p{Zp}]$/u;
const LINE_END = /[\n\r\u2028\u2029]/;

/** A symbol as it can be seen: spaces and line ends by a sign. */
export function visible(text) {
  if (!text) return "";
  if (NAMES[text]) return NAMES[text];
  const code = text.codePointAt(0);
  if (text.length > String.fromCodePoint(code).length) return Array.from(text, visible).join(""); // a longer symbol
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code === 0x7f) return "␡";
  const unseen = /^[\p{C}\p{Z}\p{M}]$/u.test(text);
  return unseen ? `U+${code.toString(16).toUpperCase().padStart(4, "0")}` : text;
}

/** A probability, given in nats, for people. */
export function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share >= 10 ? `${share.toFixed(0)} %` : share >= 0.1 ? `${share.toFixed(1)} %` : "< 0.1 %";
}

export class TextView extends HTMLElement {
  #entries = [];
  #spans = [];
  #part = null;
  #partLength = 0;
  #shade = null;
  #cursor = -1;
  #marked = -1;
  #tip = null;
  #spoken = null;

  describe = null;

  connectedCallback() {
    if (this.#tip) return;
    this.tabIndex = 0;
    if (!this.hasAttribute("role")) this.setAttribute("role", "group");
    this.#tip = document.createElement("div");
    this.#tip.className = "text-tip";
    this.#tip.hidden = true;
    this.#tip.setAttribute("aria-hidden", "true");
    this.#spoken = document.createElement("div");
    this.#spoken.className = "hidden-text";
    this.#spoken.setAttribute("aria-live", "polite");
    this.after(this.#tip, this.#spoken);
    this.addEventListener("pointerover", (event) => this.#over(event));
    this.addEventListener("pointerleave", () => this.#hide());
    this.addEventListener("scroll", () => this.#hide(), { passive: true });
    this.addEventListener("blur", () => this.#hide());
    this.addEventListener("click", (event) => this.#click(event));
    this.addEventListener("keydown", (event) => this.#key(event));
    this.addEventListener("copy", (event) => this.#copy(event));
  }

  get length() {
    return this.#entries.length;
  }

  get text() {
    return this.#entries.map((entry) => entry.text).join("");
  }

  get shade() {
    return this.#shade;
  }

  set shade(shade) {
    this.#shade = shade;
    this.reshade();
  }

  get marked() {
    return this.#marked;
  }

  set marked(position) {
    if (position === this.#marked) return;
    this.#spans[this.#marked]?.classList.remove("marked");
    this.#marked = position;
    this.#spans[position]?.classList.add("marked");
  }

  /** Returns the box of a character in the window, as a DOMRect. */
  box(position) {
    return this.#spans[position].getBoundingClientRect();
  }

  /** Adds characters at the end; a view that stood at its end stays there. */
  add(entries) {
    if (!entries.length) return;
    const follows = this.scrollHeight - this.scrollTop - this.clientHeight < 48;
    for (const entry of entries) this.#append(entry);
    if (follows) this.scrollTop = this.scrollHeight;
  }

  /** Removes all characters from position `length` on. */
  truncate(length) {
    for (const span of this.#spans.splice(length)) span.remove();
    this.#entries.length = Math.min(this.#entries.length, length);
    for (let last = this.lastElementChild; last && !last.firstChild; last = this.lastElementChild) last.remove();
    this.#part = this.lastElementChild;
    this.#partLength = this.#part ? this.#part.childNodes.length : 0;
    if (this.#cursor >= length) this.#cursor = -1;
    if (this.#marked >= length) this.#marked = -1;
    this.#hide();
  }

  clear() {
    this.truncate(0);
  }

  /** Computes the shades from position `start` on again. */
  reshade(start = 0) {
    for (let position = start; position < this.#spans.length; position++) {
      this.#spans[position].className = this.#classes(position);
    }
  }

  /** Puts the cursor on a character and shows it, without taking the focus. */
  show(position) {
    if (position < 0 || position >= this.#spans.length) return;
    this.#spans[this.#cursor]?.classList.remove("cursor");
    this.#cursor = position;
    this.#spans[position].classList.add("cursor");
    this.#spans[position].scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  #append(entry) {
    const previous = this.#entries.at(-1)?.text ?? "";
    const isFull = this.#partLength >= PART && LINE_END.test(previous);
    if (!this.#part || isFull || this.#partLength >= LONGEST_LINE) {
      this.#part = document.createElement("div");
      this.#part.className = "part";
      this.#partLength = 0;
      this.append(this.#part);
    }
    const span = document.createElement("span");
    span.textContent = entry.text;
    if (UNSEEN.test(entry.text)) span.dataset.sign = visible(entry.text);
    span.position = this.#entries.length;
    this.#entries.push(entry);
    this.#spans.push(span);
    span.className = this.#classes(span.position);
    this.#part.append(span);
    this.#partLength++;
  }

  #classes(position) {
    const entry = this.#entries[position];
    const given = entry.given ? " given" : "";
    const cursor = position === this.#cursor ? " cursor" : "";
    const marked = position === this.#marked ? " marked" : "";
    return this.#level(entry, position) + given + cursor + marked;
  }

  #level(entry, position) {
    if (this.#shade) {
      const value = this.#shade(position);
      if (value === null || Number.isNaN(value)) return "";
      return `u${Math.round(((Math.min(1, Math.max(-1, value)) + 1) / 2) * VALUES)}`;
    }
    if (entry.logprob === null || entry.logprob === undefined) return "";
    return `b${Math.min(SURPRISES - 1, Math.floor(-entry.logprob / Math.LN2))}`;
  }

  #over(event) {
    const position = event.target.position;
    if (position === undefined) return this.#hide();
    this.#inspect(position, false);
  }

  #click(event) {
    const position = event.target.position;
    if (position === undefined || !document.getSelection().isCollapsed) return; // a text that is being copied
    this.show(position);
    this.#send("choose", position);
  }

  /** Copies what is selected without the breaks between parts. */
  #copy(event) {
    const selection = document.getSelection();
    if (selection.isCollapsed) return;
    const range = selection.getRangeAt(0);
    const chosen = this.#spans.filter((span) => range.intersectsNode(span) && !isOutside(range, span));
    event.clipboardData.setData("text/plain", chosen.map((span) => span.textContent).join(""));
    event.preventDefault();
  }

  #key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -400, PageDown: 400 }[event.key];
    const last = this.#spans.length - 1;
    if (event.key === "Escape") {
      if (!this.#tip.hidden) event.preventDefault(); // for this key, the tip comes first
      return this.#hide();
    }
    if (last < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const here = this.#cursor < 0 ? last : this.#cursor;
    if (event.key === "Enter" || event.key === " ") {
      if (this.#cursor >= 0) this.#send("choose", this.#cursor);
    } else if (event.key === "Home" || event.key === "End") {
      this.#move(event.key === "Home" ? 0 : last);
    } else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      this.#move(this.#besideLine(here, event.key === "ArrowUp" ? -1 : 1));
    } else if (step) {
      this.#move(Math.min(last, Math.max(0, here + (this.#cursor < 0 && step > 0 ? 0 : step))));
    } else return;
    event.preventDefault();
  }

  /** The position above (-1) or below (1) a character. */
  #besideLine(position, direction) {
    const from = this.#spans[position].getBoundingClientRect();
    const isFar = (box, top) => Math.abs(box.top - top) >= from.height / 2;
    let [best, distance, row] = [position, Infinity, null];
    for (let at = position + direction; at >= 0 && at < this.#spans.length; at += direction) {
      const box = this.#spans[at].getBoundingClientRect();
      if (!isFar(box, from.top)) continue;
      row ??= box.top;
      if (isFar(box, row)) break;
      if (Math.abs(box.left - from.left) < distance) [best, distance] = [at, Math.abs(box.left - from.left)];
    }
    return best;
  }

  #move(position) {
    this.show(position);
    this.#inspect(position, true);
  }

  #inspect(position, speaks) {
    this.#fillTip(position);
    const box = this.#spans[position].getBoundingClientRect();
    this.#tip.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = this.#tip;
    const below = box.bottom + 6;
    const top = below + height > window.innerHeight ? box.top - height - 6 : below;
    this.#tip.style.left = `${Math.max(8, Math.min(box.left, window.innerWidth - width - 8))}px`;
    this.#tip.style.top = `${Math.max(8, top)}px`;
    if (speaks) this.#spoken.textContent = this.#tip.firstElementChild.textContent;
    this.#send("inspect", position);
  }

  #fillTip(position) {
    const { text, logprob, alternatives } = this.#entries[position];
    const line = document.createElement("div");
    const chance = logprob === null || logprob === undefined ? "" : `, ${percent(logprob)}`;
    line.textContent = `${visible(text)}  at ${position + 1}${chance}`;
    this.#tip.replaceChildren(line);
    const more = this.describe?.(position);
    if (more) {
      const description = document.createElement("div");
      description.textContent = more;
      this.#tip.append(description);
    }
    if (alternatives?.length) this.#tip.append(table(text, alternatives.slice(0, TIP_ROWS)));
  }

  #hide() {
    if (this.#tip) this.#tip.hidden = true;
  }

  #send(name, position) {
    this.dispatchEvent(new CustomEvent(name, { detail: { position } }));
  }
}

/** Whether a range only touches the end or the beginning of a character. */
function isOutside(range, span) {
  const inside = document.createRange();
  inside.selectNodeContents(span);
  const { START_TO_END, END_TO_START } = Range;
  return range.compareBoundaryPoints(START_TO_END, inside) <= 0 || range.compareBoundaryPoints(END_TO_START, inside) >= 0;
}

function table(taken, alternatives) {
  const body = document.createElement("table");
  for (const { text, logprob } of alternatives) {
    const row = body.insertRow();
    if (text === taken) row.className = "taken";
    const symbol = row.insertCell();
    symbol.className = "symbol";
    symbol.textContent = visible(text);
    const share = row.insertCell();
    share.className = "share";
    share.textContent = percent(logprob);
    const bar = document.createElement("div");
    bar.className = "bar";
    bar.style.width = `${5 * Math.exp(logprob)}rem`;
    row.insertCell().append(bar);
  }
  return body;
}

customElements.define("rill-text", TextView);
