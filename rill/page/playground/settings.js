// What a text is made with, as a plain object, and its forms in requests. Names are those of rill.proto's JSON.
//
//   { temperature, topK, topP, minP, seed, constraint, stop, pace, length }
//
// `seed` is a string of digits, since numbers of JavaScript hold 53 bits; `constraint` is a JSON text; `pace` is in characters/s, 0 without a limit;
// `length` is how many characters to generate, 0 without an end. A value that is null is not set: a text that continues
// from a token then keeps the token's.

import { MAX_SEED } from "../shared/philox.js";

import { FREE } from "./constraint.js";

export const DEFAULTS = Object.freeze({
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  seed: "0",
  constraint: FREE,
  stop: Object.freeze([]),
  pace: 0,
  length: 1000,
});

/** What a request says of these where a text continues from a token and nobody has changed anything. */
export const OF_THE_TOKEN = Object.freeze({
  temperature: null,
  topK: null,
  topP: null,
  minP: null,
  seed: null,
  constraint: null,
  stop: null,
});

const SAMPLING = ["temperature", "topK", "topP", "minP", "seed", "constraint"];
// Where a list without strings would mean those of the token: a stop that occurs in no text. Where texts are cut into
// longer symbols it must be cut, too.
const UNUSED_STOP = "\0";
const UNLIKELY_REPEATS = 200;

/** Returns a Sampling message with what is set. */
export function samplingOf(settings) {
  const set = Object.fromEntries(SAMPLING.filter((name) => settings[name] !== null).map((name) => [name, settings[name]]));
  return set.constraint === undefined ? set : { ...set, constraint: JSON.parse(set.constraint) };
}

/** Returns whether two settings choose characters alike. */
export function sameSampling(one, other) {
  return SAMPLING.every((name) => one[name] === other[name]);
}

/** Returns whether a generation with one of them may go on for the other: pace and stop strings are those of a call. */
export function sameGeneration(one, other) {
  return one.pace === other.pace && one.length === other.length && sameStops(one.stop, other.stop);
}

function sameStops(one, other) {
  return one === other || (!!one && !!other && one.length === other.length && one.every((text, at) => text === other[at]));
}

/** Returns the stop strings for a generate action on a branch, an earlier one of which may have had some. */
export function stopsOf(stop, branch) {
  if (stop === null) return [];
  return stop.length || !branch.usesStops ? [...stop] : [unusedStop(branch)];
}

function unusedStop({ hasLongSymbols, entries }) {
  const made = hasLongSymbols && entries.findLast(({ given }) => !given);
  return made ? made.text.repeat(UNLIKELY_REPEATS) : UNUSED_STOP;
}

/** Draws a seed; short enough to be read out. */
export function drawSeed() {
  return String(crypto.getRandomValues(new Uint32Array(1))[0]);
}

/** Describes what is wrong with settings, as a sentence; an empty text if nothing is. */
export function faultOf(settings) {
  const { seed, stop, length } = settings;
  if (seed !== null && !(/^\d{1,20}$/.test(seed) && BigInt(seed) <= MAX_SEED)) {
    return `The seed must be a whole number from 0 to ${MAX_SEED}.`;
  }
  if (stop !== null && stop.length > 32) return `There are ${stop.length} stop strings; servers take at most 32.`;
  if (!Number.isSafeInteger(length) || length < 0) return "The length must be a whole number; 0 has no end.";
  return "";
}
