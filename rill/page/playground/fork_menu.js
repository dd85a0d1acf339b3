// The menu at a character: in which ways the text can go on from there.

import { percent, visible } from "../shared/text_view.js";

/** Asks how to go on from a character. One menu is open at a time. */
export class ForkMenu {
  #element = document.createElement("div");
  #returnTo = null;
  #entry = null;
  #choose = () => {};

  constructor() {
    this.#element.className = "fork-menu";
    this.#element.setAttribute("role", "dialog");
    this.#element.hidden = true;
    document.body.append(this.#element);
    this.#element.addEventListener("keydown", (event) => this.#key(event));
    document.addEventListener("pointerdown", (event) => {
      if (!this.#element.contains(event.target)) this.close();
    });
  }

  get isOpen() {
    return !this.#element.hidden;
  }

  /** Opens the menu at the character's box. `choose` gets { isNewSeed: true or false }, or { alternative }. */
  open(view, position, entry, choose) {
    [this.#returnTo, this.#entry, this.#choose] = [view, entry, choose];
    const title = document.createElement("h3");
    title.textContent = `Fork before ${quoted(entry.text)} at ${(position + 1).toLocaleString("en")}`;
    this.#element.setAttribute("aria-label", title.textContent);
    const seeds = document.createElement("div");
    seeds.className = "row";
    seeds.append(
      button("New seed", () => this.#done({ isNewSeed: true }), "primary"),
      button("Same seed", () => this.#done({ isNewSeed: false })),
    );
    this.#element.replaceChildren(title, seeds, ...this.#alternatives());
    this.#element.hidden = false;
    this.#place(view.box(position));
    seeds.firstElementChild.focus();
  }

  close() {
    if (!this.isOpen) return;
    const hadFocus = this.#element.contains(document.activeElement);
    this.#element.hidden = true;
    if (hadFocus) this.#returnTo.focus({ preventScroll: true });
  }

  #alternatives() {
    const others = this.#entry.alternatives ?? [];
    if (!others.length) return [];
    const label = document.createElement("p");
    label.className = "note";
    label.textContent = "or with another symbol";
    const list = document.createElement("div");
    list.className = "row alternatives";
    for (const alternative of others) {
      const choice = button("", () => this.#done({ alternative }));
      const symbol = document.createElement("span");
      symbol.className = "mono";
      symbol.textContent = visible(alternative.text);
      const share = document.createElement("span");
      share.className = "note numbers";
      share.textContent = percent(alternative.logprob);
      choice.append(symbol, share);
      if (alternative.text === this.#entry.text) choice.setAttribute("aria-current", "true");
      list.append(choice);
    }
    return [label, list];
  }

  #done(choice) {
    const choose = this.#choose;
    this.close();
    choose(choice);
  }

  #key(event) {
    const others = this.#element.querySelectorAll(".alternatives button");
    const buttons = [...this.#element.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    if (event.key === "Escape") this.close();
    else if (/^[1-9]$/.test(event.key) && others[event.key - 1]) others[event.key - 1].click();
    else if (event.key === "ArrowRight" || event.key === "ArrowDown") buttons[(at + 1) % buttons.length].focus();
    else if (event.key === "ArrowLeft" || event.key === "ArrowUp") buttons.at(at - 1).focus();
    else if (event.key === "Tab") this.#tab(event, buttons, at);
    else return;
    if (event.key !== "Tab") event.preventDefault();
    event.stopPropagation();
  }

  /** The focus leaves the menu as if it stood behind the text. */
  #tab(event, buttons, at) {
    if (event.shiftKey ? at === 0 : at === buttons.length - 1) {
      event.preventDefault();
      this.close();
    }
  }

  #place(box) {
    const { offsetWidth: width, offsetHeight: height } = this.#element;
    const below = box.bottom + 6;
    const top = below + height > window.innerHeight ? box.top - height - 6 : below;
    this.#element.style.left = `${Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8))}px`;
    this.#element.style.top = `${Math.max(8, top)}px`;
  }
}

/** A character between quotation marks, as it can be seen. */
export function quoted(text) {
  return `“${visible(text)}”`;
}

function button(text, onClick, className = "") {
  const made = document.createElement("button");
  made.type = "button";
  made.className = className;
  made.textContent = text;
  made.addEventListener("click", onClick);
  return made;
}
