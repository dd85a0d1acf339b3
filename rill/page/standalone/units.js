// Units that follow something in the text: the larger the correlation, the better one sees it in the unit's course.

const LONGEST = 3000; // characters that are looked at, the last ones

/** What a unit may follow: a value for each character of a text, given as its symbols. */
export const FEATURES = {
  line: { label: "position in the line", values: (symbols) => run(symbols, (symbol) => symbol !== "\n") },
  word: { label: "letters in a row", values: (symbols) => run(symbols, isLetter) },
  letter: { label: "letter or not", values: (symbols) => symbols.map((symbol) => Number(isLetter(symbol))) },
  capital: { label: "capitals", values: (symbols) => symbols.map((symbol) => Number(/\p{Lu}/u.test(symbol))) },
  vowel: { label: "vowels", values: (symbols) => symbols.map((symbol) => Number(/[aeiouyáéíóúäëïöüæøå]/iu.test(symbol))) },
  space: { label: "spaces and line ends", values: (symbols) => symbols.map((symbol) => Number(/\s/.test(symbol))) },
  mark: { label: "punctuation", values: (symbols) => symbols.map((symbol) => Number(/\p{P}/u.test(symbol))) },
};

const isLetter = (symbol) => /\p{L}/u.test(symbol);

/** How many characters in a row, up to each, fulfil a condition. */
function run(symbols, condition) {
  let length = 0;
  return symbols.map((symbol) => (length = condition(symbol) ? length + 1 : 0));
}

/**
 * The place in a state whose values correlate best with a feature, of either sign: {place, correlation}, or null where
 * nothing varies. `state(position)` and `symbol(position)` are those of a text of `length` characters.
 */
export function unitFor(feature, { length, symbol, state }) {
  const positions = [];
  for (let position = Math.max(0, length - LONGEST); position < length; position++) if (state(position)) positions.push(position);
  if (positions.length < 3) return null;
  const values = standardized(FEATURES[feature].values(positions.map(symbol)));
  if (!values) return null;
  const states = positions.map(state);
  const size = states[0].length;
  const [sums, squares, products] = Array.from({ length: 3 }, () => new Float64Array(size));
  states.forEach((numbers, index) => {
    for (let place = 0; place < size; place++) {
      sums[place] += numbers[place];
      squares[place] += numbers[place] ** 2;
      products[place] += numbers[place] * values[index];
    }
  });
  let best = null;
  for (let place = 0; place < size; place++) {
    const variance = squares[place] / states.length - (sums[place] / states.length) ** 2;
    const correlation = variance > 1e-9 ? products[place] / states.length / Math.sqrt(variance) : 0;
    if (correlation && Math.abs(correlation) > Math.abs(best?.correlation ?? 0)) best = { place, correlation };
  }
  return best;
}

/** Values with mean 0 and variance 1; null if they are all the same. */
function standardized(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const deviation = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
  return deviation ? values.map((value) => (value - mean) / deviation) : null;
}
