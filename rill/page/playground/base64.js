// Base64 in both alphabets: protobuf's JSON has the one with + and /, addresses and subprotocols the other.

/** Encodes bytes that were given as standard base64 in the alphabet for addresses, without padding. */
export function toUrlAlphabet(standard) {
  return standard.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

/** Reads base64 in either alphabet, with or without padding and white space; returns standard base64. Throws Error. */
export function toStandardAlphabet(text) {
  const digits = text.replace(/\s/g, "").replaceAll("-", "+").replaceAll("_", "/").replace(/=+$/, "");
  if (!/^[A-Za-z0-9+/]*$/.test(digits) || digits.length % 4 === 1) {
    throw new Error("This is not a resume token: a token consists of the letters, digits and signs of base64.");
  }
  return digits + "=".repeat((4 - (digits.length % 4)) % 4);
}

/** Encodes a text, as UTF-8, in the alphabet for addresses. */
export function encodeText(text) {
  const bytes = new TextEncoder().encode(text);
  return toUrlAlphabet(btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")));
}
