// The symbols of a text: characters, unless the model has longer ones. Their lengths are in characters (code points).

/** Splits a text into symbols of these lengths; without lengths, into characters. */
export function symbolsOf(text, lengths) {
  const characters = Array.from(text);
  if (!lengths?.length) return characters;
  let at = 0;
  return lengths.map((length) => characters.slice(at, (at += length)).join(""));
}
