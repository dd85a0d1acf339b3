// The bearer token: in the tab's session storage, in a header or a subprotocol, and nowhere else.

import { encodeText } from "./base64.js";

const KEY = "rill.bearer";

/** The bearer token, or an empty text. */
export function bearerToken() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return kept; // storage is switched off
  }
}

let kept = "";

/** Keeps a bearer token for as long as the tab lives; an empty one is forgotten. */
export function keepBearerToken(token) {
  kept = token;
  try {
    if (token) sessionStorage.setItem(KEY, token);
    else sessionStorage.removeItem(KEY);
  } catch {
    // `kept` has it
  }
}

/** Returns the headers of a request. */
export function headers() {
  const token = bearerToken();
  return token ? { authorization: `Bearer ${token}` } : {};
}

/** Returns the subprotocols of a WebSocket. */
export function subprotocols() {
  const token = bearerToken();
  return ["rill.v1", ...(token ? [`rill.bearer.${encodeText(token)}`] : [])];
}
