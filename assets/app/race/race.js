// The race: payloads of selfspan_core/serve/feed.py in, one run at a time on the screen. The function whose body this is
// gets (element, trigger, props, server, upload, watch) when the component loads. Payloads, JSON strings, come by way of
// `feed.js`; `facts` are of this server, see selfspan_core/serve/page_files.py.

const HIDDEN_FRAME_MS = 300;
const SLOW_MS = 25; // of a drawing
const MOST_REST_MS = 100;
const DESCRIBE_MS = 1000; // pictures in words, for who hears the page: what they say changes no faster
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
const chart = new Chart(root);
const headline = new Headline(root);
new Large(root, facts.large);
const asks = new Asks(facts.known);
const address = new Address(asks);
const views = Object.fromEntries(asks.known.map(({ task }) => [task, new View(task)]));

let shown = views[asks.shown]; // of the tab in sight
let live = shown; // of the newest run
let run = null; // the newest run: payloads of any other are late and ignored
let stopped = null; // the run that Stop ended: what is still under way of it is late
let patience = 0;
let player = null; // of the recorded run, until the visitor runs something

const keep = new Keep(root, address, () => ({ ...shown, maps: stage.maps }));
const again = async (one) => {
  const changed = await asks.fill(one);
  if (changed) keep.say(asks.filled(one.task, "The input", changed).join(" "));
};
const history = new History(find(root, ".ss-history"), asks, again, (text) => keep.say(text));

function setState(view, state, text) {
  Object.assign(view, { state, text });
  if (view === shown) showState();
  if (view !== live) return;
  markStops(BUSY.includes(state));
  clearTimeout(patience);
}

function showState() {
  for (const part of [root, below]) part.dataset.state = shown.state;
  if (status.textContent !== shown.text) status.textContent = shown.text;
  find(root, ".ss-replay").hidden = !["playing", "played"].includes(shown.state);
  for (const part of [root, below]) find(part, ".ss-previous").hidden = !shown.isPrevious;
  beginning.hidden = !shown.offered;
  keep.offer();
}

// A short wait goes unmentioned; a long one is explained.
function wait(state, after, text) {
  setState(live, state, "Starting…");
  patience = setTimeout(() => {
    setState(live, state, text);
    if (live === shown) show();
  }, after);
}

function begin(payload) {
  const view = views[payload.start.task];
  const isRecorded = payload.kind === "recorded";
  view.account = new Account(payload, isRecorded ? { date: player.recorded.date, machine: player.recorded.machine } : null);
  view.account.model = asks.of(view.task).models[0];
  Object.assign(view, { offered: "", stale: "" });
  if (view === shown) lay(view.account);
  if (isRecorded) return setState(view, "playing", "A recorded run, at its own pace. Press Run to do it here.");
  view.tenth = null;
  setState(view, "running", "Running.");
  if (view !== shown) return;
  collapseForms();
  show();
}

// The start of a run: what both lanes read, and nothing written yet.
function lay({ start, isPaidFor }) {
  for (const part of [root, below]) part.dataset.begun = "";
  for (const node of document.querySelectorAll(".ss-for-load")) node.hidden = (start.load ?? 1) === 1;
  for (const part of [root, below]) Object.assign(part.dataset, { task: start.task, pane: start.view.pane });
  source.start(start, start.lanes.some((lane) => lane.adapter !== "plain"));
  for (const lane of start.lanes) {
    panes[lane.id]?.start(lane, start, isPaidFor);
    judgeReads(lane.id, null);
  }
  stage.start(start.lanes);
  chart.start(start.view.step);
  headline.start(start, isPaidFor);
}

// A race that starts, or an error that appears, beyond the edge of the screen would be missed.
function show() {
  const box = root.getBoundingClientRect();
  if (box.top >= 0 && box.bottom <= window.innerHeight) return;
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  root.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
}

function showEnd(account) {
  const { end } = account;
  for (const [lane, result] of Object.entries(end.lanes)) {
    panes[lane]?.finish(result, end.headline.differs_at);
    panes[lane]?.offerCopy(wordsOf(account, lane));
    if (account.isPaidFor) settle(lane, account.share(lane));
    judgeReads(lane, lane === "sparse" ? end.headline.judged.share : null);
  }
  headline.end(end);
}

function showHalt(state) {
  for (const pane of Object.values(panes)) if (pane.finished === null) pane.halt(state);
  headline.halt();
}

// One share for the headline, the bar and the map.
function settle(lane, share) {
  panes[lane]?.settle(share);
  stage.settle(lane, share);
}

// The colour of the headline's verdict for the bar and the map, too: 1, 0 or -1; null: the lane's own colour.
function judgeReads(lane, judged) {
  for (const part of [panes[lane]?.root, stage.maps[lane]?.root]) if (part) part.dataset.judged = judged ?? "";
}

// What was found out about a run says nothing of the newest input of its task: one that was refused, or one that is about
// to replace the run's.
function hideStale() {
  if (!shown.stale) return;
  headline.clear();
  if (shown.stale !== "replaced") return;
  for (const part of [root, below]) delete part.dataset.begun;
  for (const pane of Object.values(panes)) pane.conclude({});
}

function halt(state, text) {
  const isLaid = live.has(run);
  if (isLaid) live.account.halted = state;
  else if (state === "failed") live.stale ||= "refused";
  if (live === shown) {
    if (isLaid) showHalt(state);
    hideStale();
  }
  setState(live, state, text);
  if (state !== "failed" || live !== shown) return;
  openForms();
  root.scrollIntoView({ block: "nearest" });
}

// Stopped before it began: what its tab shows of a run before stays as it was, and so does what was found out.
function takeBack() {
  if (player?.isOver && player.recorded.start.task === live.task && live.account?.recorded) player.again();
  const { account, stale } = live;
  if (account && !account.end) {
    account.halted ||= "stopped"; // a run that the one that waited was to replace
    if (live === shown) showHalt(account.halted);
  }
  const isWhole = account?.end && !stale;
  const state = !isWhole ? "stopped" : account.recorded ? "played" : "done";
  setState(live, state, `The waiting run was taken back.${isWhole ? ` ${account.end.headline.text}` : ""}`);
}

// An article that is too long: the part of it that fits goes into the box, from where it can be run.
beginning.addEventListener("click", () => {
  const one = asks.of(shown.task);
  const box = asks.box(one);
  if (!box) return;
  asks.write(box, shown.offered);
  Object.assign(shown, { offered: "", stale: "replaced" });
  hideStale();
  setState(shown, "idle", `The beginning is in the box. Press ${one.run}.`);
  box.scrollIntoView({ block: "center" });
});

// What was said of an input's length says nothing of another, and the part of it would replace what has been typed.
document.addEventListener("input", ({ target }) => {
  if (!shown.offered || !target.matches?.(`${ASKS} textarea`)) return;
  offer(shown, "");
  if (shown.state === "failed") setState(shown, "idle", `Press ${asks.of(shown.task).run}.`);
});

function offer(view, text) {
  if (view.offered === (text ?? "")) return;
  view.offered = text ?? "";
  if (view === shown) showState();
}

function handle(payload, draw) {
  const { kind } = payload;
  if (kind === "recorded") return arrive(payload);
  if (stopped !== null && payload.run === stopped) return;
  if (kind === "waiting" && payload.message) {
    if (payload.run === run) setState(live, "waiting", payload.message);
    return;
  }
  if (kind === "waiting") {
    take(payload.run, payload.task);
    return wait("waiting", 700, "Waiting: another run has the device. Yours starts by itself.");
  }
  if (kind === "halted") {
    // A run that never got its turn; it does not know its name.
    if (BUSY.includes(live.state)) halt("failed", "The run could not start: too many are waiting. Try again in a moment.");
    return;
  }
  if (run !== null && Number(payload.run) < Number(run)) return;
  if (run !== payload.run) take(payload.run, payload.start?.task ?? live.task);
  offer(live, "");
  if (kind === "stopped") {
    stopped = run;
    return live.has(run) ? halt("stopped", "Stopped.") : takeBack();
  }
  if (kind === "starting") return setState(live, "starting", payload.message);
  if (kind === "failed") {
    halt("failed", payload.message);
    return offer(live, payload.beginning);
  }
  if (["stopped", "failed"].includes(live.state) && live.has(run)) return;
  if (!live.has(run) && !payload.start) return; // a later, full payload begins it
  apply(payload, draw);
}

// The newest run, and its task.
function take(number, task) {
  const [before, last] = [live, run];
  run = number;
  live = views[task];
  if (player?.recorded.start.task === task) player.stop();
  keep.say("");
  if (!BUSY.includes(before.state)) return;
  // What the run before had written is all that there will be of it.
  if (before.has(last)) before.account.halted = "stopped";
  if (before !== live) setState(before, "stopped", "Stopped: another run began.");
  else if (before.has(last) && before === shown) showHalt("stopped");
}

// The recorded run, as the page loads: it plays, or rests where the visitor wants no motion.
function arrive(recorded) {
  if (run !== null || player) return;
  player = new Player(root, recorded, apply);
  if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) player.rest();
  else player.play();
}

// A payload of the run that a task's tab shows, or the first of another.
function apply(payload, draw) {
  const found = Object.values(views).find((view) => view.has(payload.run));
  if (!found) begin(payload);
  const view = found ?? views[payload.start.task];
  view.account.add(payload);
  if (view === shown) update(payload.lanes ?? {}, draw, payload.end !== undefined);
  if (!payload.end) return;
  if (view === shown) showEnd(view.account);
  const isRecorded = payload.kind === "recorded";
  setState(view, isRecorded ? "played" : "done", payload.end.headline.text);
  // Of a long article that is summarized poorly: the part that would be summarized better.
  offer(view, view.account.start.caution?.beginning);
  if (!isRecorded) history.add(view.account);
}

// While prompts are processed: in each pane, and a tenth at a time in the words that are read out.
function tellPrompts(lanes) {
  const read = readOf(lanes, { dense: panes.dense.promptSize, sparse: panes.sparse.promptSize });
  for (const [lane, news] of Object.entries(lanes)) panes[lane].readPrompt(news.prompt_done ?? null, read?.left);
  const tenth = read && Math.floor(10 * read.share);
  if (live !== shown || live.state !== "running" || tenth === live.tenth) return;
  live.tenth = tenth;
  setState(live, "running", read ? `Reading the prompt: ${10 * tenth}\u202f%, ${read.left}.` : "Running.");
}

function update(lanes, draw, isEnd) {
  for (const [lane, news] of Object.entries(lanes)) {
    panes[lane].finished = news.done ? news.finish : null;
    panes[lane].update(news, draw);
    stage.update(lane, news, draw);
    panes[lane].flag(news.done ? (ENDINGS[news.finish] ?? "finished") : "");
  }
  if (!draw || !Object.keys(lanes).length) return;
  tellPrompts(lanes);
  headline.update(lanes, panes.dense.paidFor);
  if (lanes.sparse?.tokens && !panes.dense.paidFor) judgeReads("sparse", judgeShare(lanes.sparse.share));
  stage.draw(isEnd);
  chart.draw(shown.account.lanes, isEnd);
  describe(lanes, isEnd);
  for (const lane of Object.keys(lanes)) panes[lane].keepUp();
}

let described = 0;
function describe(lanes, isEnd) {
  const now = performance.now();
  if (!isEnd && now - described < DESCRIBE_MS) return;
  described = now;
  stage.describe(lanes);
  chart.describe(shown.account.lanes);
}

// Another tab is in sight: what it shows is its own.
function turn(task) {
  if (shown.task === task) return;
  shown = views[task];
  openForms();
  // gradio draws a form when its tab is first in sight, and may draw all tabs anew.
  until(() => asks.box(asks.of(task))).then(() => markStops(BUSY.includes(live.state)));
  keep.say("");
  const { account } = shown;
  if (!account) blank();
  else {
    lay(account);
    update(account.whole, true, account.end !== null);
    if (account.end) showEnd(account);
    else if (account.halted) showHalt(account.halted);
    hideStale();
  }
  showState();
}

// No run of this task yet.
function blank() {
  for (const part of [root, below]) {
    delete part.dataset.begun;
    Object.assign(part.dataset, { task: shown.task, pane: "line" });
  }
  source.clear();
  for (const pane of Object.values(panes)) pane.blank();
  stage.start([]);
  chart.start("step");
  headline.blank();
}

// Payloads that arrive faster than this machine draws are drawn together: one layout for all of them. After a slow drawing
// none begins for as long as that one took, layout and paint included: else a phone would do nothing but draw what is
// old, while newer payloads wait to be read.
const arrived = [];
let timer = null;
let rested = 0; // when the next drawing may begin

function receive(value) {
  arrived.push(JSON.parse(value));
  if (timer !== null) return;
  const wait = Math.max(0, rested - performance.now());
  timer = setTimeout(drain, wait + HIDDEN_FRAME_MS); // a tab in the background gets no animation frame
  if (wait) setTimeout(() => requestAnimationFrame(drain), wait);
  else requestAnimationFrame(drain);
}

function drain() {
  clearTimeout(timer);
  timer = null;
  const began = performance.now();
  const payloads = arrived.splice(0);
  const newest = payloads.findLastIndex((payload) => payload.lanes);
  payloads.forEach((payload, i) => handle(payload, i === newest || payload.end !== undefined));
  setTimeout(() => {
    const now = performance.now();
    if (now - began > SLOW_MS) rested = now + Math.min(now - began, MOST_REST_MS);
  });
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
document.addEventListener("ss-payload", ({ detail }) => receive(detail));
document.dispatchEvent(new CustomEvent("ss-ready"));
asks.onTurn(turn);
address.follow().then((text) => text && keep.say(text));
