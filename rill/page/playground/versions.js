// The list of a text's branches.

const LONGEST_CAUSE = 60;

/** Shows the branches of a session; `onSelect` gets the one that was chosen. */
export function drawVersions(list, session, onSelect) {
  const { branches } = session;
  const focused = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  list.replaceChildren(
    ...branches.all.map((branch) => {
      const item = document.createElement("li");
      item.style.setProperty("--depth", Math.min(branches.depth(branch), 8));
      const button = document.createElement("button");
      button.type = "button";
      button.className = "quiet";
      if (branch === branches.current) button.setAttribute("aria-current", "true");
      const place = branch.parent ? ` at ${(branch.start + 1).toLocaleString("en")}` : "";
      button.textContent = `${branch.id}  ${branch.cause.slice(0, LONGEST_CAUSE)}${place}`;
      button.addEventListener("click", () => onSelect(branch));
      item.append(button);
      return item;
    }),
  );
  list.querySelectorAll("button")[focused]?.focus();
}
