// The list of a text's branches.

const LONGEST_CAUSE = 60;
const DEEPEST = 8; // indentation

/** Shows the branches of sessions that have more than one; `onSelect` gets a session and the branch that was chosen. */
export function drawVersions(place, sessions, onSelect) {
  const focused = [...place.querySelectorAll("button")].indexOf(document.activeElement);
  place.replaceChildren(...sessions.map((session) => listOf(session, onSelect)));
  place.querySelectorAll("button")[focused]?.focus();
}

function listOf(session, onSelect) {
  const { branches } = session;
  const list = document.createElement("ul");
  list.className = "versions";
  for (const branch of branches.all) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    if (branch === branches.current) button.setAttribute("aria-current", "true");
    const place = branch.parent ? ` at ${(branch.start + 1).toLocaleString("en")}` : "";
    button.textContent = `${branch.id}  ${branch.cause.slice(0, LONGEST_CAUSE)}${place}`;
    button.addEventListener("click", () => onSelect(session, branch));
    const item = document.createElement("li");
    item.style.setProperty("--depth", Math.min(branches.depth(branch), DEEPEST));
    item.append(button);
    list.append(item);
  }
  return list;
}
