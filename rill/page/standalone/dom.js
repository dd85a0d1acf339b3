// Small helpers: elements, numbers and notes.

export const element = (id) => document.getElementById(id);

/** A whole number for people. */
export function number(value) {
  return Math.round(value).toLocaleString("en-US");
}

/** A number with its sign. */
export function signed(value, digits = 3) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
}

/** Shows a message in an element, which is hidden while there is none. */
export function showNote(id, message) {
  element(id).textContent = message;
  element(id).hidden = !message;
}
