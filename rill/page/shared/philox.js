// The uniforms of a stream: numpy.random.Generator(numpy.random.Philox(key=seed)).random(dtype=float32).
// Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011): Philox4x64 with 10 rounds.

const MASK = (1n << 64n) - 1n;
const MULTIPLIERS = [0xd2e7470ee14c6c93n, 0xca5a826395121157n];
const WEYL = [0x9e3779b97f4a7c15n, 0xbb67ae8584caa73bn];
const ROUNDS = 10;
const PER_BLOCK = 8; // four words of 64 bits, each of which gives two float32

/** The largest seed. */
export const MAX_SEED = MASK;

/** Returns the four 64-bit words of a block: `counter` and `key` are BigInts of 64 bits, the other words are 0. */
export function philoxBlock(counter, key) {
  let [c0, c1, c2, c3] = [counter & MASK, 0n, 0n, 0n];
  let [k0, k1] = [key & MASK, 0n];
  for (let round = 0; round < ROUNDS; round++) {
    const [a, b] = [MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2];
    [c0, c1, c2, c3] = [(b >> 64n) ^ c1 ^ k0, b & MASK, (a >> 64n) ^ c3 ^ k1, a & MASK];
    [k0, k1] = [(k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK];
  }
  return [c0, c1, c2, c3];
}

/** The uniforms of one seed, a BigInt from 0 to MAX_SEED. Throws RangeError for another. */
export class Uniforms {
  #seed;
  #block = -1;
  #values = new Float32Array(PER_BLOCK);

  constructor(seed) {
    if (typeof seed !== "bigint" || seed < 0n || seed > MAX_SEED) {
      throw new RangeError(`a seed must be a BigInt from 0 to ${MAX_SEED}, not ${seed}`);
    }
    this.#seed = seed;
  }

  /** Returns value `position` (0, 1, …): a float32 in [0, 1). */
  at(position) {
    const block = Math.floor(position / PER_BLOCK);
    if (block !== this.#block) {
      // NumPy counts before each block, so the first has counter 1.
      philoxBlock(BigInt(block) + 1n, this.#seed).forEach((word, index) => {
        this.#values[2 * index] = (Number(word & 0xffffffffn) >>> 8) * 2 ** -24;
        this.#values[2 * index + 1] = (Number(word >> 32n) >>> 8) * 2 ** -24;
      });
      this.#block = block;
    }
    return this.#values[position % PER_BLOCK];
  }
}

/** Reads a seed that a person typed: a whole number from 0 to 2^64 - 1. Returns a BigInt; throws RangeError. */
export function seedOf(text) {
  const digits = String(text).trim();
  if (/^\d{1,20}$/.test(digits) && BigInt(digits) <= MAX_SEED) return BigInt(digits);
  throw new RangeError(`a seed must be a whole number from 0 to ${MAX_SEED}, not ${JSON.stringify(digits.slice(0, 40))}`);
}
