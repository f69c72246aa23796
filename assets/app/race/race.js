// The race: payloads of selfspan_core/serve/feed.py in, one run at a time on the screen. The function whose body this is
// gets (element, trigger, props, server, upload, watch) when the component loads; props.value is one payload, a JSON
// string.

const HIDDEN_FRAME_MS = 300;
const ENDINGS = { stopped: "stopped", length: "out of tokens" };
const BUSY = ["waiting", "starting", "running"];

const root = document.querySelector("#stage .ss");
const below = find(element, ".ss");
const status = find(root, ".ss-status");
const template = find(below, "template");
const source = new Source(find(below, ".ss-source"));
const beginning = find(root, ".ss-begin");
const panes = {};
for (const lane of ["dense", "sparse"]) {
  find(below, ".ss-panes").append(template.content.cloneNode(true));
  panes[lane] = new Pane(below.querySelectorAll(".ss-pane")[Object.keys(panes).length], lane, source);
}
find(panes.dense.root, ".ss-name").textContent = "Dense attention";
find(panes.sparse.root, ".ss-name").textContent = "Self-selected attention";

const stage = new Stage(root, panes);
const headline = new Headline(root);

let run = null; // the newest run: payloads of any other are late and ignored
let started = null; // the run that the panes show
let stopped = null; // the run that Stop ended: what is still under way of it is late
let asked = { box: "", button: "" }; // where the newest run's input was typed, and the button that began it
let patience = 0;
let player = null; // of the recorded run, until the visitor runs something
let better = ""; // of a long article that is summarized poorly: the part that would be summarized better

function setState(state, text) {
  for (const part of [root, below]) part.dataset.state = state;
  if (status.textContent !== text) status.textContent = text;
  markStops(BUSY.includes(state));
  clearTimeout(patience);
}

// A short wait goes unmentioned; a long one is explained.
function wait(state, after, text) {
  setState(state, "Starting…");
  patience = setTimeout(() => setState(state, text), after);
}

function begin(payload) {
  started = payload.run;
  for (const part of [root, below]) part.dataset.begun = "";
  const start = payload.start;
  for (const node of document.querySelectorAll(".ss-for-load")) node.hidden = (start.load ?? 1) === 1;
  for (const part of [root, below]) Object.assign(part.dataset, { task: start.task, pane: start.view.pane });
  source.start(start, start.lanes.some((lane) => lane.adapter !== "plain"));
  better = start.caution?.beginning ?? "";
  beginning.hidden = true;
  const paidFor = start.lanes.some((lane) => lane.id === "dense" && lane.adapter === "plain");
  for (const lane of start.lanes) panes[lane.id]?.start(lane, start, paidFor);
  stage.start(start.lanes);
  headline.start(start, paidFor);
  if (payload.kind === "recorded") return setState("playing", "A recorded run, at its own pace. Press Run to do it here.");
  setState("running", "Running.");
  collapseForms();
  show();
}

// A race that starts, or an error that appears, beyond the edge of the screen would be missed.
function show() {
  const box = root.getBoundingClientRect();
  if (box.top >= 0 && box.bottom <= window.innerHeight) return;
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  root.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
}

function end(payload) {
  const finished = payload.end;
  for (const [lane, result] of Object.entries(finished.lanes)) {
    panes[lane]?.finish(result, finished.headline.differs_at);
    settle(lane, finished.read_share);
  }
  headline.end(finished);
  setState(payload.kind === "recorded" ? "played" : "done", finished.headline.text);
}

// One share for the headline, the bar and the map.
function settle(lane, share) {
  if (!panes[lane]?.paidFor) return;
  panes[lane].settle(share);
  stage.settle(lane, lane === "dense" ? 1 : share);
}

// What was found out about the run that is shown, which another input is about to replace.
function forget() {
  headline.clear();
  better = "";
  for (const part of [root, below]) delete part.dataset.begun;
  for (const pane of Object.values(panes)) pane.conclude({});
}

function halt(state, text) {
  const shown = started === run;
  if (shown) for (const pane of Object.values(panes)) if (pane.finished === null) pane.halt(state);
  if (state === "failed" && !shown) headline.clear();
  setState(state, text);
  if (state !== "failed") return;
  openForms();
  root.scrollIntoView({ block: "nearest" });
}

// An article that is too long: the part of it that fits goes into the box, from where it can be run.
function offer(text) {
  beginning.hidden = !text;
  beginning.onclick = () => {
    const box = document.querySelector(`#${CSS.escape(asked.box)} textarea`);
    if (!box) return;
    box.value = text;
    box.dispatchEvent(new Event("input", { bubbles: true }));
    beginning.hidden = true;
    forget();
    setState("idle", `The beginning is in the box. Press ${asked.button}.`);
    box.scrollIntoView({ block: "center" });
  };
}

function handle(payload, draw) {
  const { kind } = payload;
  if (kind === "recorded") return arrive(payload);
  player?.stop();
  if (stopped !== null && payload.run === stopped) return;
  if (kind === "waiting" && payload.message) {
    if (payload.run === run) setState("waiting", payload.message);
    return;
  }
  if (kind === "waiting") {
    run = payload.run;
    asked = { box: payload.box, button: payload.button };
    return wait("waiting", 700, "Waiting: another run has the device. Yours starts by itself.");
  }
  if (kind === "halted") {
    // A run that never got its turn; it does not know its name.
    if (BUSY.includes(root.dataset.state)) {
      halt("failed", "The run could not start: too many are waiting. Try again in a moment.");
    }
    return;
  }
  if (run !== null && Number(payload.run) < Number(run)) return;
  run = payload.run;
  beginning.hidden = true;
  if (kind === "stopped") {
    stopped = run;
    return halt("stopped", "Stopped.");
  }
  if (kind === "starting") return setState("starting", payload.message);
  if (kind === "failed") {
    halt("failed", payload.message);
    return offer(payload.beginning);
  }
  if (["stopped", "failed"].includes(root.dataset.state) && started === run) return;
  if (started !== run && !payload.start) return; // a later, full payload begins it
  apply(payload, draw);
}

// The recorded run, as the page loads: it plays, or rests where the visitor wants no motion.
function arrive(recorded) {
  if (run !== null || player) return;
  player = new Player(root, recorded, apply);
  if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) player.rest();
  else player.play();
}

// A payload of the run that is shown, or the first of another.
function apply(payload, draw) {
  if (started !== payload.run) begin(payload);
  for (const [lane, news] of Object.entries(payload.lanes ?? {})) {
    panes[lane].finished = news.done ? news.finish : null;
    panes[lane].update(news, draw);
    stage.update(lane, news, draw);
    panes[lane].flag(news.done ? (ENDINGS[news.finish] ?? "finished") : "");
  }
  if (draw && payload.lanes) {
    headline.update(payload.lanes, panes.dense.paidFor);
    stage.draw(payload.end !== undefined);
    stage.describe(payload.lanes);
    for (const lane of Object.keys(payload.lanes)) panes[lane].keepUp();
  }
  if (!payload.end) return;
  end(payload);
  offer(better);
}

// Payloads that arrive faster than this machine draws are drawn together: one layout for all of them.
const arrived = [];
let timer = null;

function receive(value) {
  if (!value) return;
  arrived.push(JSON.parse(value));
  if (timer !== null) return;
  timer = setTimeout(drain, HIDDEN_FRAME_MS); // a tab in the background gets no animation frame
  requestAnimationFrame(drain);
}

function drain() {
  clearTimeout(timer);
  timer = null;
  const payloads = arrived.splice(0);
  const newest = payloads.findLastIndex((payload) => payload.lanes);
  payloads.forEach((payload, i) => handle(payload, i === newest || payload.end !== undefined));
}

// Somebody points at a number or a sentence of the source: the steps that read it.
function pointAtSource(event) {
  const segment = event.target.closest?.(".ss-source .ss-seg[data-name]");
  for (const pane of Object.values(panes)) pane.reading.point(segment?.dataset.name ?? null);
}

below.addEventListener("pointermove", (event) => event.pointerType !== "touch" && moved(event) && pointAtSource(event));
below.addEventListener("pointerleave", (event) => moved(event) && pointAtSource(event));
below.addEventListener("click", pointAtSource);

// Escape undoes what it may where the focus is, as a step that is held; else it stops the run.
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.defaultPrevented && !event.isComposing) pressStop();
});
watch("value", () => receive(props.value));
receive(props.value);
