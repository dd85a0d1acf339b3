// Copying, also where a page that came by plain HTTP may not use the clipboard's API.

const SHOWN = 1500; // ms

/** Copies a text, and says so on the button that was pressed. */
export async function copy(text, button) {
  const isCopied = await write(text);
  const label = (button.dataset.label ??= button.textContent);
  button.textContent = isCopied ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = label), SHOWN);
}

async function write(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return writeBySelection(text);
  }
}

function writeBySelection(text) {
  const field = document.createElement("textarea");
  field.className = "hidden-text";
  field.value = text;
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  focused?.focus({ preventScroll: true });
  return isCopied;
}
