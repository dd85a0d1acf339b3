// How a text becomes the symbols of a model: Vocabulary.cut of rill/vocabulary.py in JavaScript.

/** Returns a function from a text to the ids of its symbols, which throws RangeError for what is not a symbol. */
export function tokenizerOf({ tokenizer, pattern, vocabulary, never_ids: never, end_ids: ends, unknown_id: unknown }) {
  const special = new Set([...never, ...ends]);
  const ids = new Map(vocabulary.map((symbol, id) => [symbol, id]).filter(([, id]) => !special.has(id)));
  const unknownIn = (characters, at) => {
    if (unknown === null) throw new RangeError(sentenceFor(characters[at], at, tokenizer));
    return unknown;
  };
  if (tokenizer === "longest") return cutByLengths(ids, unknownIn);
  if (tokenizer === "regex") return cutByPattern(ids, new RegExp(`(?:${pattern})|[^]`, "uy"), unknownIn);
  return (text) => Array.from(text).map((character, at, all) => ids.get(character) ?? unknownIn(all, at));
}

function sentenceFor(character, at, tokenizer) {
  const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  const named = `${character} (U+${code}) at position ${at + 1}`;
  if (tokenizer === "characters") return `The model does not know the character ${named}.`;
  return `The character ${named} does not begin a symbol of the model.`;
}

/** At each position the longest symbol that fits. */
function cutByLengths(ids, unknownIn) {
  const lengths = new Map(); // of symbols, the longest first, by their first character
  for (const symbol of ids.keys()) {
    const [first, ...rest] = symbol;
    lengths.set(first, (lengths.get(first) ?? new Set()).add(1 + rest.length));
  }
  for (const [first, found] of lengths) lengths.set(first, [...found].sort((one, other) => other - one));
  return (text) => {
    const characters = Array.from(text);
    const cut = [];
    for (let at = 0; at < characters.length; ) {
      const fitting = (length) => ids.get(characters.slice(at, at + length).join(""));
      const length = lengths.get(characters[at])?.find((length) => fitting(length) !== undefined);
      cut.push(length ? fitting(length) : unknownIn(characters, at));
      at += length ?? 1;
    }
    return cut;
  };
}

/** What the pattern matches, if it is a symbol; else one unknown character, behind which the text is cut anew. */
function cutByPattern(ids, pattern, unknownIn) {
  return (text) => {
    const characters = Array.from(text);
    const cut = [];
    let position = 0; // in characters; the pattern's is in UTF-16
    for (pattern.lastIndex = 0; position < characters.length; ) {
      const begin = pattern.lastIndex;
      const [symbol] = pattern.exec(text);
      const id = ids.get(symbol);
      cut.push(id ?? unknownIn(characters, position));
      const length = id === undefined ? 1 : Array.from(symbol).length;
      pattern.lastIndex = begin + (id === undefined ? characters[position].length : symbol.length);
      position += length;
    }
    return cut;
  };
}
