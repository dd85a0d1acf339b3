// Keys that act wherever the focus is; those of the text and of the menu are theirs.

/** Calls `actions.start`, `.pause`, `.goOn` and `.back`. */
export function listen(actions, menu) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || menu.isOpen) return;
    const action = actionOf(event);
    if (!action) return;
    event.preventDefault();
    actions[action]();
  });
}

function actionOf({ key, ctrlKey, metaKey, altKey, shiftKey }) {
  if (shiftKey) return null;
  if (key === "Enter" && (ctrlKey || metaKey) && !altKey) return "start";
  if (key === "Enter" && altKey && !ctrlKey && !metaKey) return "goOn";
  if (key === "Escape" && !ctrlKey && !metaKey && !altKey) return "pause";
  if (key === "Backspace" && altKey && !ctrlKey && !metaKey) return "back";
  return null;
}
