// A state in a file: with the bundle's model, all that is needed to go on with its text.

import { seedOf } from "./shared/philox.js";

const FORMAT = 1;

/** A stream as JSON. `state` is the one before the text's last character, as in a server's resume tokens. */
export function toFile(description, { text, ids, state, position, settings }) {
  const states = description.parts.map((name, part) => {
    const values = state.slice(part * description.partSize, (part + 1) * description.partSize);
    return [name, { shape: [description.model.layers, 1, description.model.hidden], float32: base64(values) }];
  });
  const content = {
    rill_page_state: FORMAT,
    about: "The state before the last character of the text; float32 is little-endian, in base64.",
    model: description.name,
    model_id: description.model_id,
    text,
    ...(description.areCharacters ? {} : { ids }), // which the text need not be cut into
    position,
    seed: String(settings.seed),
    sampling: settings.sampling,
    states: Object.fromEntries(states),
    ...(description.context ? { context: Array.from(state.subarray(description.units)) } : {}),
  };
  return `${JSON.stringify(content, null, 1)}\n`;
}

/** Reads what `toFile` wrote. Throws Error with a sentence for people. */
export function fromFile(description, content) {
  let saved;
  try {
    saved = JSON.parse(content);
  } catch {
    throw new Error("This file is not JSON.");
  }
  if (saved?.rill_page_state !== FORMAT) throw new Error("This file is not a state that this page saved.");
  if (saved.model_id !== description.model_id) throw new Error(`This state is of another model (${saved.model}).`);
  const { text, position, sampling } = saved;
  const state = new Float32Array(description.stateSize);
  const isSymbol = (id) => Number.isInteger(id) && id >= 0 && id < description.vocabulary.length;
  let seed;
  try {
    seed = seedOf(saved.seed);
    description.parts.forEach((name, part) => state.set(floats(saved.states[name].float32, description.partSize), part * description.partSize));
  } catch {
    throw new Error("The state in this file is damaged.");
  }
  const { context } = description;
  if (context) {
    const isContext = Array.isArray(saved.context) && saved.context.length === context && saved.context.every(isSymbol);
    if (!isContext) throw new Error("The state in this file is damaged.");
    state.set(saved.context, description.units);
  }
  const isWhole = typeof text === "string" && text && Number.isSafeInteger(position) && position >= 0;
  const isNumbers = sampling && ["temperature", "topK", "topP", "minP"].every((name) => Number.isFinite(sampling[name]));
  const isBans = Array.isArray(sampling?.banned) && sampling.banned.every(isSymbol);
  if (!isWhole || !isNumbers || !isBans || !state.every(Number.isFinite)) {
    throw new Error("The state in this file is damaged.");
  }
  return { ids: idsOf(description, saved, isSymbol), position, seed, sampling, state };
}

function idsOf(description, { text, ids }, isSymbol) {
  if (description.areCharacters) return description.encode(text);
  const isText = Array.isArray(ids) && ids.every(isSymbol) && ids.map((id) => description.symbol(id)).join("") === text;
  if (!isText) throw new Error("The state in this file is damaged.");
  return ids;
}

function base64(values) {
  const bytes = new Uint8Array(4 * values.length);
  const view = new DataView(bytes.buffer);
  values.forEach((value, index) => view.setFloat32(4 * index, value, true));
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}

function floats(text, count) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  if (bytes.length !== 4 * count) throw new Error("the wrong size");
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: count }, (_, index) => view.getFloat32(4 * index, true));
}
