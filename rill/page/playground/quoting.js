// Texts as literals of the languages that snippets are in.
//
// Characters that cannot be seen, or that change how others are shown, are written by their number: what is pasted is
// what is read.

const UNSEEN = /[\p{C}\p{Zl}\p{Zp}\p{Zs}\p{M}]/u;

/** A JSON text. BigInts become numbers with all their digits; names whose value is undefined are left out. */
export function json(value, indent = "") {
  if (typeof value === "bigint") return String(value);
  if (typeof value === "string") return jsonString(value);
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map((item) => json(item)).join(", ")}]`;
  const members = Object.entries(value)
    .filter(([, item]) => item !== undefined)
    .map(([name, item]) => `${jsonString(name)}: ${json(item)}`);
  if (!indent) return `{${members.join(", ")}}`;
  return `{\n${members.map((member) => indent + member).join(",\n")}\n}`;
}

function jsonString(text) {
  return `"${escaped(text, (character) => {
    return Array.from({ length: character.length }, (_, at) => hex("\\u", character.charCodeAt(at), 4)).join("");
  })}"`;
}

/** A string literal of Python. */
export function pythonString(text) {
  return `"${escaped(text, (character) => {
    const code = character.codePointAt(0);
    if (code < 0x100) return hex("\\x", code, 2);
    return code < 0x10000 ? hex("\\u", code, 4) : hex("\\U", code, 8);
  })}"`;
}

/** A literal of Python: strings, numbers, BigInts, lists and objects. */
export function python(value) {
  if (typeof value === "string") return pythonString(value);
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (value !== null && typeof value === "object") {
    const members = Object.entries(value).filter(([, item]) => item !== undefined);
    return `{${members.map(([name, item]) => `${pythonString(name)}: ${python(item)}`).join(", ")}}`;
  }
  if (value === true) return "True";
  if (value === false) return "False";
  return value === null ? "None" : String(value);
}

/** One word for a POSIX shell. */
export function shellWord(text) {
  return /^[A-Za-z0-9_./:@%+,=-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

function escaped(text, byNumber) {
  const signs = { '"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" };
  return Array.from(text, (character) => {
    if (signs[character]) return signs[character];
    return character !== " " && UNSEEN.test(character) ? byNumber(character) : character;
  }).join("");
}

function hex(prefix, number, digits) {
  return prefix + number.toString(16).padStart(digits, "0");
}
