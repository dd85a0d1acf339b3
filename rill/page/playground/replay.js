// Making a text again from one of its marks, exactly: for a call that shall go on where another broke, and for forks.

import { Problem } from "./problem.js";
import { stopsOf } from "./settings.js";
import { symbolsOf } from "./symbols.js";

/** Where a call stands in a text: after `index` entries, of which `position` were generated. */
export class Place {
  constructor(index, position) {
    this.index = index;
    this.position = position;
  }

  /** Returns the index of an entry by its position among the generated ones. */
  indexOf(position) {
    return this.index + position - this.position;
  }

  /** The model reads an entry that was not generated, after those up to `index`. */
  passGiven(index) {
    this.position += index - this.index;
    this.index = index + 1;
  }
}

/** Brings a call from a mark to the end of a branch; `place` is where it stands. Throws a Problem if texts differ. */
export async function replay(call, branch, place) {
  const start = place.index;
  let at = start;
  while (at < branch.length) {
    for (const { index, sampling } of branch.changes) {
      if (index === at && at > start) call.update(sampling);
    }
    if (branch.entries[at].given) {
      await call.feed(branch.entries[at].text);
      place.passGiven(at);
      at++;
    } else {
      const end = endOfSegment(branch, at);
      await generateAgain(call, branch, at, end);
      at = end;
    }
  }
}

/** The index after `start` at which something else than generating happened, or the text ends. */
function endOfSegment(branch, start) {
  const change = branch.changes.find(({ index }) => index > start)?.index ?? Infinity;
  let end = start;
  while (end < Math.min(branch.length, change) && !branch.entries[end].given) end++;
  return end;
}

async function generateAgain(call, branch, start, end) {
  let at = start;
  call.onOutput = ({ text = "", symbolLengths }) => {
    for (const symbol of symbolsOf(text, symbolLengths)) {
      if (branch.entries[at++]?.text !== symbol) {
        throw new Problem("The server continues with another text: it has another model, or computes it in another way.");
      }
    }
  };
  await call.generate({ maxChars: String(end - start), stop: stopsOf([], branch) });
  if (at !== end) throw new Problem("The server ends the text earlier than before.");
}
