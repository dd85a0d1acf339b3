// How a character is chosen from logits: rill/sampling.py in JavaScript, in float32 and in the same order.

const GREEDY_TEMPERATURE = 2 ** -126; // the smallest normal float32, so low that only the largest logits keep any mass
const round = Math.fround;

export const PLAIN = Object.freeze({ temperature: 1, topK: 0, topP: 1, minP: 0, banned: [] });

/**
 * Returns the id that `sampling` chooses from logits, a Float32Array, with the uniform `u` in [0, 1). Never one of
 * `banned`, as with a server's logit bias of -infinity, nor one of `neverIds`.
 */
export function choose(logits, u, sampling = PLAIN, neverIds = []) {
  const temperature = Math.max(round(sampling.temperature), GREEDY_TEMPERATURE);
  const out = new Set([...sampling.banned, ...neverIds]);
  let largest = -Infinity;
  for (let id = 0; id < logits.length; id++) if (!out.has(id) && logits[id] > largest) largest = logits[id];
  const mass = new Float32Array(logits.length); // not normalised: the largest is 1
  for (let id = 0; id < logits.length; id++) {
    if (!out.has(id)) mass[id] = Math.exp(round(round(logits[id] - largest) / temperature));
  }
  const least = threshold(mass, sampling);
  let total = 0;
  for (let id = 0; id < mass.length; id++) if (mass[id] >= least) total = round(total + mass[id]);
  const goal = sampling.temperature > 0 ? round(round(u) * total) : 0;
  let sum = 0;
  for (let id = 0; id < mass.length; id++) {
    if (mass[id] >= least) sum = round(sum + mass[id]);
    if (sum > goal) return id;
  }
  throw new Error("the model's logits are not numbers");
}

/** The smallest mass that top-k, top-p and min-p keep: equal masses are kept or dropped together. */
function threshold(mass, { topK, topP, minP }) {
  const ofMinP = round(minP);
  if (!topK && topP >= 1) return ofMinP;
  const ordered = mass.slice().sort().reverse();
  const ofTopK = ordered[Math.min(topK || mass.length, mass.length) - 1];
  if (topP >= 1) return Math.max(ofTopK, ofMinP);
  const kept = (value) => (value >= ofTopK ? value : 0);
  let total = 0;
  for (const value of ordered) total = round(total + kept(value));
  const goal = round(round(topP) * total);
  let sum = 0;
  let at = 0;
  for (; at < ordered.length - 1; at++) {
    sum = round(sum + kept(ordered[at]));
    if (!(sum < goal)) break;
  }
  return Math.max(ofTopK, ordered[at], ofMinP);
}

/** The logarithms, in nats, of the model's own probabilities: temperature 1, no filters. */
export function logProbabilities(logits) {
  let largest = -Infinity;
  for (const logit of logits) if (logit > largest) largest = logit;
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - largest);
  const shift = largest + Math.log(sum);
  return logits.map((logit) => logit - shift);
}

/** The ids of the `count` most probable symbols without `neverIds`, the most probable first. */
export function mostProbable(logprobs, count, neverIds = []) {
  const ids = [];
  for (let id = 0; id < logprobs.length; id++) {
    if (neverIds.includes(id) || (ids.length === count && logprobs[id] <= logprobs[ids[count - 1]])) continue;
    let at = ids.length;
    while (at > 0 && logprobs[ids[at - 1]] < logprobs[id]) at--;
    ids.splice(at, 0, id);
    if (ids.length > count) ids.pop();
  }
  return ids;
}
