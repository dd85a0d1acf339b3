// The playground: what buttons, keys and settings do.

import { toStandardAlphabet, toUrlAlphabet } from "./base64.js";
import { Controls } from "./controls.js";
import { copy } from "./copy.js";
import { Difference } from "./difference.js";
import { ForkMenu, quoted } from "./fork_menu.js";
import { Pane } from "./pane.js";
import { RequestPanel } from "./request_panel.js";
import { Server } from "./server.js";
import { ServerPanel } from "./server_panel.js";
import { listen } from "./shortcuts.js";
import { drawVersions } from "./versions.js";

const element = (id) => document.getElementById(id);

const server = new Server();
const panes = [new Pane(server, changed), new Pane(server, changed)];
const difference = new Difference();
const forkMenu = new ForkMenu();
const controls = new Controls(settingsChanged);
const requestPanel = new RequestPanel(requestFrom);
const serverPanel = new ServerPanel(server, drawRequest);
let isFromToken = false; // the text on the page did not begin with a prompt
let compared = [null, null]; // the branches that `difference` has looked at
let isFrameAsked = false;

/** The panes that are shown. */
function shown() {
  return element("panes").classList.contains("two") ? panes : panes.slice(0, 1);
}

// What people do.

function start() {
  const prompt = element("prompt").value;
  if (!prompt.isWellFormed()) return showProblem("The prompt has half a character (a lone surrogate) in it; remove it.");
  controls.followForm();
  if (!isValid()) return;
  const [first, second] = [element("model").value, element("other-model").value];
  isFromToken = false;
  setPanes(second ? [first, second] : [first]);
  for (const pane of shown()) pane.session.start(pane.model, prompt, controls.settings);
}

function pause() {
  for (const { session } of shown()) session.pause();
}

function goOn() {
  if (isValid()) for (const { session } of shown()) session.resume(controls.settings);
}

function pauseOrGoOn() {
  if (shown().some(({ session }) => session.isLive)) pause();
  else goOn();
}

function fork(pane, position) {
  const { session, view } = pane;
  const entry = session.branch?.entries[position];
  if (!entry) return;
  forkMenu.open(view, position, serverPanel.withoutEnds(pane.model, entry), ({ isNewSeed, alternative }) => {
    if (isNewSeed) controls.drawSeed();
    if (!isValid()) return;
    const cause = alternative ? `${quoted(alternative.text)} for ${quoted(entry.text)}` : `seed ${controls.settings.seed ?? session.seed}`;
    const feed = alternative ? { ...entry, ...alternative, given: true } : null;
    session.fork(position, cause, controls.settings, feed);
    drawRequest();
  });
}

function back() {
  for (const { session } of shown()) {
    const parent = session.branch?.parent;
    if (parent) session.select(parent);
  }
}

function continueFromToken(event) {
  event.preventDefault();
  let token;
  try {
    token = toStandardAlphabet(element("pasted").value);
    if (!token) throw new Error("Paste a resume token first.");
  } catch (error) {
    element("pasted").setAttribute("aria-invalid", "true");
    return showProblem(error.message);
  }
  element("pasted").setAttribute("aria-invalid", "false");
  controls.followToken();
  if (!isValid()) return undefined;
  isFromToken = true;
  setPanes([""]);
  return panes[0].session.continueFrom(token, controls.settings);
}

function settingsChanged(settings) {
  if (isValid()) for (const { session } of shown()) session.change(settings);
  drawRequest();
}

// What is shown.

function setPanes(models) {
  const isTwo = models.length > 1;
  element("panes").classList.toggle("two", isTwo);
  if (!isTwo) panes[1].session.abort();
  element("panes").replaceChildren(...panes.slice(0, models.length).map((pane) => pane.element));
  models.forEach((model, at) => {
    panes[at].model = model;
    panes[at].name(isTwo ? model : "");
  });
  element("difference").hidden = true;
}

function isValid() {
  showProblem(controls.fault);
  controls.showConstraintProblem(controls.constraintFault);
  return !controls.fault && !controls.constraintFault;
}

function showProblem(sentence) {
  const problem = element("problem");
  if (problem.textContent !== sentence) problem.textContent = sentence;
  problem.hidden = !sentence;
}

/** A session has changed its state. */
function changed(pane) {
  if (!shown().includes(pane)) return;
  const sessions = shown().map(({ session }) => session);
  const isLive = sessions.some((session) => session.isLive);
  const failed = sessions.find((session) => session.state === "failed");
  const told = failed ?? sessions.find((session) => session.isLive) ?? sessions[0];
  const isOfConstraint = failed?.problem.isOfConstraint ?? false;
  showProblem(failed && !isOfConstraint ? failed.problem.message : "");
  controls.showConstraintProblem(isOfConstraint ? failed.problem.message : controls.constraintFault);
  if (failed?.problem.status === 401) serverPanel.askForBearerToken();
  element("status").dataset.state = told.state;
  const status = sentenceFor(told);
  if (element("status").textContent !== status) element("status").textContent = status;
  element("start").textContent = told.state === "empty" ? "Start" : "Start over";
  element("pause").disabled = !told.branch;
  element("pause").textContent = isLive ? "Pause" : "Go on";
  element("back").disabled = !sessions.some((session) => session.branch?.parent);
  drawTree();
  drawToken();
  drawRequest();
  askForFrame();
}

function sentenceFor({ state, branch, problem }) {
  const count = branch ? branch.length.toLocaleString("en") : 0;
  switch (state) {
    case "starting":
      return "Starting";
    case "running":
      return "The text grows";
    case "waiting":
      return `Waiting to go on: ${problem.message}`;
    case "paused":
      return `Paused after ${count} characters`;
    case "ended":
      if (branch.matches !== undefined) return `Complete: ${branch.matches ? "the text matches" : "not yet a match"}, after ${count}`;
      return branch.hasEnded ? `Complete: the model ended the text, after ${count}` : `Complete: ${count} characters`;
    case "failed":
      return "The text could not go on";
    default:
      return "";
  }
}

function drawTree() {
  const forked = shown().map(({ session }) => session).filter((session) => session.branches.all.length > 1);
  element("versions").hidden = !forked.length;
  drawVersions(element("version-list"), forked, (session, branch) => session.select(branch));
}

function drawToken() {
  const { session } = panes[0];
  const mark = session.lastMark;
  const token = mark ? toUrlAlphabet(mark.token) : "";
  if (element("token").value !== token) element("token").value = token;
  element("token-place").textContent = mark ? `after ${mark.index.toLocaleString("en")} characters` : "";
  element("copy-token").disabled = !token;
}

function drawRequest() {
  requestPanel.draw();
}

/** What a request from the prompt, or from the end of the text, would ask for; null if there is no such place. */
function requestFrom(origin) {
  const { settings } = controls;
  if (controls.fault || controls.constraintFault) return null;
  if (origin === "prompt" && !isFromToken) {
    return { model: element("model").value, prompt: element("prompt").value, token: "", settings };
  }
  const { branch, lastMark: mark } = panes[0].session;
  if (!mark) return null;
  const isOfToken = settings.constraint === branch.constraintAt(mark.index); // which a request would begin anew
  const constraint = isOfToken ? null : settings.constraint;
  return { model: panes[0].model, prompt: "", token: mark.token, settings: { ...settings, constraint } };
}

function askForFrame() {
  if (isFrameAsked) return;
  isFrameAsked = true;
  requestAnimationFrame(draw);
}

function draw(now) {
  isFrameAsked = false;
  const goesOn = shown().map((pane) => pane.draw(now));
  if (shown().length > 1) drawDifference();
  if (goesOn.some((more) => more)) askForFrame();
}

function drawDifference() {
  const branches = panes.map(({ session }) => session.branch);
  if (branches.some((branch, at) => branch !== compared[at])) difference.reset();
  compared = branches;
  const [one, other] = branches.map((branch) => branch?.entries ?? []);
  const at = difference.find(one, other);
  const note = element("difference");
  note.hidden = false;
  const length = Math.min(one.length, other.length).toLocaleString("en");
  const text = at === null
    ? `The texts are equal as far as both go: ${length} characters.`
    : `The first difference is at character ${(at + 1).toLocaleString("en")}.`;
  if (note.textContent !== text) note.textContent = text;
  for (const { view } of panes) view.marked = at !== null && at < view.length ? at : -1;
}

// The beginning.

setPanes([""]);
panes.forEach((pane) => pane.view.addEventListener("choose", (event) => fork(pane, event.detail.position)));
element("start").addEventListener("click", start);
element("pause").addEventListener("click", pauseOrGoOn);
element("back").addEventListener("click", back);
element("paste-form").addEventListener("submit", continueFromToken);
element("copy-token").addEventListener("click", (event) => copy(element("token").value, event.currentTarget));
element("model").addEventListener("change", drawRequest);
element("prompt").addEventListener("input", () => {
  const { length } = Array.from(element("prompt").value);
  element("prompt-length").textContent = length ? `${length.toLocaleString("en")} characters` : "";
  drawRequest();
});
element("shading").addEventListener("change", (event) => (element("legend").hidden = !event.target.checked));
listen({ start, pause, goOn, back }, forkMenu);
drawRequest();
serverPanel.look();
setInterval(drawToken, 1000);
