// The list of saved texts: each can be put back, downloaded and removed.

import { element, number } from "./dom.js";

const LONGEST = 12; // entries; the oldest is dropped
const TAIL = 28; // characters that are shown

export class SavedList {
  #entries = [];
  #acts;

  /** `acts`: putBack(entry); content(entry) and name(entry) of a file. */
  constructor(acts) {
    this.#acts = acts;
  }

  /** Adds an entry: {label, timeline, settings, tail}, `tail` with the text's end. */
  add(entry) {
    const tail = Array.from(entry.tail).slice(-TAIL).join("").replaceAll("\n", "↵");
    this.#entries.unshift({ ...entry, tail });
    this.#entries.length = Math.min(this.#entries.length, LONGEST);
    this.#show();
  }

  #remove(entry) {
    this.#entries = this.#entries.filter((other) => other !== entry);
    this.#show();
    element("save").focus();
  }

  #download(entry) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([this.#acts.content(entry)], { type: "application/json" }));
    link.download = this.#acts.name(entry);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  #show() {
    element("saved").replaceChildren(...this.#entries.map((entry) => this.#item(entry)));
  }

  #item(entry) {
    const about = `${number(entry.timeline.length)} characters, ${entry.label}`;
    const row = document.createElement("div");
    row.className = "row";
    row.append(
      button("Put back", about, () => this.#acts.putBack(entry)),
      button("Download", about, () => this.#download(entry)),
      button("Remove", about, () => this.#remove(entry)),
    );
    const item = document.createElement("li");
    item.append(paragraph("tail", `…${entry.tail}`), paragraph("note", about), row);
    return item;
  }
}

function paragraph(kind, text) {
  const made = document.createElement("p");
  made.className = kind;
  made.textContent = text;
  return made;
}

function button(label, about, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = label;
  made.setAttribute("aria-label", `${label}: ${about}`);
  made.addEventListener("click", act);
  return made;
}
