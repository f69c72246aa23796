// The two panes. Runs as the body of a function (element, trigger, props, server, upload, watch) when the component
// loads. props.value is one payload of selfspan_core/serve/feed.py: a JSON string. All text reaches the page through
// textContent and Text.appendData, never through a template or innerHTML.

const KINDS = ["text", "ref", "go", "res", "end", "anchor", "newline"]; // the order of feed.py
const GLYPHS = {
  ref: ["reads", "<|ref|> opens a step: the names that it reads follow"],
  go: ["▸", "<|go|> ends the header: from here on the step sees only what it named"],
  res: ["⇒", "<|res|> from here on later steps may read this step"],
  end: ["▪", "<|end|> ends the step"],
};
const FOLLOW_SLACK_PX = 40;
const SIGNS = { "*": "×", "/": "÷", "-": "−" };
const WAYS = {
  dense: "reads everything",
  sparse: "reads what it named",
};
const HINT = "Point at a step, or tap it, to see what it read.";
const HIDDEN_FRAME_MS = 300;
const ENDINGS = { stopped: "stopped", length: "out of tokens" };
const BUSY = ["waiting", "starting", "running"];

const find = (root, selector) => root.querySelector(selector);
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const rounded = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));
const whole = (value) => Math.round(value).toLocaleString("en");
const seconds = (value) => {
  if (value < 59.95) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  return `${Math.floor(whole / 60)}m ${whole % 60}s`;
};
const percent = (share) => {
  const digits = share < 0.1 || (share > 0.99 && share < 0.9995) ? 1 : 0;
  return `${(100 * share).toFixed(digits)}\u202f%`;
};
const capital = (word) => word[0].toUpperCase() + word.slice(1);
const several = (word) => (word.endsWith("y") ? `${word.slice(0, -1)}ies` : `${word}s`);
const LINE = { pane: "line", answer: "answer", step: "step", typeset: false };
const times = (speedup) => (speedup && Number.isFinite(speedup) ? `${rounded(speedup)}×` : "–");
const brief = (text, most = 12) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const list = (names) => (names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`);

// An article that both panes read: shown once, beside them. Its sentences are lit by the self-selected lane, and by
// whichever sentence of a summary somebody looks at.
class Article {
  constructor(root) {
    this.root = root;
    this.box = find(root, ".ss-article-text");
    this.segments = new Map();
  }

  start(prompt) {
    this.segments.clear();
    this.box.replaceChildren();
    this.box.scrollTop = 0;
    this.root.classList.remove("focus", "everything", "peek");
    for (const part of prompt) {
      if (part.name === null) continue;
      const segment = make("span", "ss-seg");
      segment.append(make("span", "ss-chip", part.name), part.text.trim());
      segment.dataset.name = part.name;
      this.segments.set(part.name, segment);
      this.box.append(segment, " ");
    }
  }

  stage(name, on) {
    this.root.classList.toggle(name, on);
  }
}

class Pane {
  constructor(root, lane, article) {
    this.root = root;
    this.article = article;
    this.lane = lane;
    this.prompt = find(root, ".ss-prompt");
    this.scroll = find(root, ".ss-scroll");
    this.steps = find(root, ".ss-steps");
    this.caption = find(root, ".ss-caption");
    this.caption.id = `ss-caption-${lane}`;
    this.follow = find(root, ".ss-follow");
    this.copy = find(root, ".ss-copy");
    this.drafts = find(root, ".ss-drafts");
    this.following = true;
    this.streaming = false;
    this.view = LINE;
    this.figures = {};
    root.dataset.lane = lane;
    for (const node of root.querySelectorAll("[data-figure]")) this.figures[node.dataset.figure] = node;
    find(root, ".ss-way").textContent = WAYS[lane];
    this.clear();
    this.listen();
  }

  clear() {
    this.have = 0; // items drawn so far
    this.segments = new Map(); // name -> the element that the name stands for
    this.lit = new Set();
    this.peeked = new Set();
    this.peeking = null;
    this.pinned = null;
    this.line = null; // the step being written, as {node, text, names, result}
    this.records = new Map();
    this.liveCaption = "";
  }

  start(lane, { prompt, view, load = 1 }) {
    this.clear();
    this.view = view;
    this.typeset = (text) => (view.typeset ? text.replace(/[*/-]/g, (sign) => SIGNS[sign]) : text);
    this.dense = lane.attention === "dense";
    this.annotated = lane.adapter !== "plain";
    this.root.dataset.tokens = 0;
    this.root.classList.remove("focus", "everything", "peek", "peek-all");
    find(this.root, ".ss-name").textContent = lane.label.split(",")[0];
    find(this.root, ".ss-adapter").textContent = `${lane.adapter} adapter`;
    find(this.root, ".ss-flag").hidden = true;
    find(this.root, ".ss-verdict").hidden = true;
    find(this.root, ".ss-empty")?.remove();
    find(this.root, ".ss-load").textContent = load;
    for (const node of Object.values(this.figures)) node.textContent = "–";
    this.drafts.hidden = true;
    find(this.root, ".ss-kv-fill").style.width = "0";
    this.steps.replaceChildren();
    const box = this.prompt;
    box.replaceChildren();
    box.scrollTop = 0;
    this.copy.hidden = true;
    if (this.isDocument && this.annotated) this.segments = new Map(this.article.segments);
    for (const part of this.isDocument ? [] : prompt) {
      if (part.name === null || !this.annotated) {
        box.append(make("span", "ss-op", this.typeset(part.text)));
        continue;
      }
      const segment = make("span", "ss-seg ss-literal");
      segment.append(make("span", "ss-chip ss-own", part.name), this.typeset(part.text));
      segment.dataset.name = part.name;
      segment.dataset.value = this.typeset(part.text);
      this.segments.set(part.name, segment);
      box.append(segment);
    }
    this.following = true;
    this.streaming = true;
    this.follow.hidden = true;
    this.say("");
  }

  // Whether the prompt is a document that stands beside both panes, not a line in each of them.
  get isDocument() {
    return this.view.pane === "document";
  }

  get hint() {
    return this.isDocument ? "" : HINT;
  }

  // One lane of a payload: items from index `from` on (many of them known already), changed steps, figures.
  // `draw` false: a newer payload of the same frame draws the rest.
  update(lane, draw) {
    for (let i = Math.max(this.have - lane.from, 0); lane.from <= this.have && i < lane.items.length; i++) {
      const [text, kind, step, drafted] = lane.items[i];
      this.add(text, KINDS[kind], step, drafted === 1);
      this.have += 1;
    }
    for (const step of lane.steps) this.record(step);
    if (!draw) return;
    this.figure(lane);
    this.attend(lane.phase, lane.reading);
    this.root.dataset.tokens = lane.tokens;
    if (this.following) this.scroll.scrollTop = this.scroll.scrollHeight;
  }

  figure(lane) {
    const set = (key, text) => (this.figures[key].textContent = text);
    set("tokens", lane.tokens.toLocaleString("en"));
    if (lane.tokens > 0) {
      set("tokens_per_second", rounded(lane.tokens_per_second));
      set("ms_per_token", rounded(lane.ms_per_token));
      if (lane.tokens_per_pass) {
        const share = percent(lane.accepted_share);
        this.drafts.textContent = `${lane.tokens_per_pass.toFixed(1)} tokens per pass, ${share} of drafts right`;
        this.drafts.hidden = false;
      }
      set("share", `${percent(lane.share)} of dense`);
      if (lane.total_tokens_per_second) set("total_tokens_per_second", whole(lane.total_tokens_per_second));
      find(this.root, ".ss-kv-fill").style.width = `${Math.min(100 * lane.share, 100)}%`;
      find(this.root, ".ss-kv-track").setAttribute("aria-label", `KV read: ${percent(lane.share)} of dense`);
    }
    if (lane.first_token_ms !== null) set("first_token_ms", `${rounded(lane.first_token_ms)} ms`);
    set("elapsed_s", seconds(lane.elapsed_s));
  }

  add(text, kind, step, drafted) {
    if (kind === "newline") return void (this.line = null);
    if (kind === "ref" || this.line === null) this.open(step);
    const line = this.line;
    const tint = drafted ? " ss-drafted" : "";
    if (kind === "text") {
      this.write(this.typeset(text), drafted);
    } else if (kind === "anchor") {
      line.names.push(text);
      this.put(make("span", `ss-chip${tint}`, text));
    } else {
      const [glyph, title] = GLYPHS[kind];
      const mark = make("span", `ss-mark ss-${kind}${tint}`, glyph);
      mark.title = title;
      if (kind !== "ref") mark.ariaHidden = "true";
      if (kind === "go") this.closeHeader(mark);
      else if (kind === "res") this.openResult(mark);
      else if (kind === "end") this.closeStep(mark);
      else this.put(mark);
    }
  }

  open(step) {
    const node = make("li", "ss-step current");
    node.tabIndex = this.steps.childElementCount === 0 ? 0 : -1;
    node.dataset.step = step;
    node.dataset.line = this.steps.childElementCount + 1;
    this.steps.append(node);
    this.line = { node, into: node, text: null, names: [], step };
    this.flow(node);
    // What was written before is finished, however its step ended.
    node.previousElementSibling?.classList.remove("current");
  }

  // Text goes on in `node`, in a text node of its own.
  flow(node) {
    this.line.into = node;
    this.line.drafted = null;
    this.line.text = node.appendChild(document.createTextNode(""));
  }

  // Text that was drafted stands in a span of its own; what follows is written into the same one as long as it lasts.
  write(text, drafted) {
    const line = this.line;
    if (!drafted) {
      if (line.drafted) this.flow(line.into);
      return line.text.appendData(text);
    }
    if (!line.drafted) {
      const span = line.into.appendChild(make("span", "ss-drafted"));
      line.drafted = line.text = span.appendChild(document.createTextNode(""));
    }
    line.text.appendData(text);
  }

  put(node) {
    this.line.into.append(node);
    this.flow(this.line.into);
  }

  closeHeader(mark) {
    const { node, names } = this.line;
    const chips = node.querySelectorAll(".ss-chip");
    chips[chips.length - 1]?.classList.add("ss-own");
    node.append(mark);
    this.line.name = names.at(-1);
    this.line.body = node.appendChild(make("span", "ss-body"));
    this.flow(this.line.body);
  }

  openResult(mark) {
    if (!this.line.body) return this.put(mark);
    const result = this.line.body.appendChild(make("span", "ss-seg ss-result"));
    this.line.result = result;
    result.append(mark);
    this.flow(result);
  }

  closeStep(mark) {
    const { node, name, body, result } = this.line;
    node.append(mark);
    const segment = result ?? body;
    if (segment && name !== undefined && !this.segments.has(name)) {
      segment.classList.add("ss-seg");
      segment.dataset.name = name;
      segment.dataset.value = brief(this.written(segment));
      this.segments.set(name, segment);
    }
    node.dataset.reads = JSON.stringify(this.line.names.slice(0, -1));
    node.dataset.name = name ?? "";
    node.classList.remove("current");
    this.line = null;
  }

  // The text of a result or a body, without its marks.
  written(segment) {
    const marks = segment.querySelectorAll(".ss-mark");
    const text = segment.textContent;
    return marks.length ? text.slice(marks[marks.length - 1].textContent.length) : text;
  }

  record(step) {
    this.records.set(step.index, step);
    if (!step.malformed) return;
    const node = find(this.steps, `[data-step="${Number(step.index)}"]`);
    if (node === null || node.classList.contains("malformed")) return;
    node.classList.add("malformed");
    const flag = make("span", "ss-malformed", "malformed");
    flag.title = "This step broke the grammar: it sees everything and is never read";
    node.prepend(flag);
  }

  // What the step being written sees, live: lit in the expression and in earlier steps, the rest a little dimmed.
  attend(phase, reading) {
    const focused = !this.dense && phase === "body" && Array.isArray(reading);
    const wanted = new Set();
    if (focused) for (const name of reading) if (this.segments.has(name)) wanted.add(this.segments.get(name));
    this.swap("lit", wanted, "lit");
    this.root.classList.toggle("focus", focused);
    const everything = this.dense ? phase !== "done" : ["between", "header", "broken"].includes(phase);
    this.root.classList.toggle("everything", everything);
    if (this.isDocument && !this.dense) {
      this.article.stage("focus", focused);
      this.article.stage("everything", everything);
    }
    this.root.dataset.reading = focused ? reading.join(" ") : "";
    const name = this.line?.name ?? "a step";
    if (this.dense) this.say(phase === "done" ? "" : "every token reads everything before it");
    else if (focused) this.say(reading.length ? `writing ${name}: reads ${list(this.named(reading))}` : `writing ${name}: reads only itself`);
    else if (phase === "broken") this.say("malformed step: reads everything until it ends");
    else this.say(phase === "done" || phase === "prefill" ? "" : "naming what the next step reads: sees everything");
  }

  // Names with what they stand for, which may have scrolled out of sight: "a27 = 21".
  named(names) {
    const value = (name) => this.segments.get(name)?.dataset.value;
    return names.map((name) => (value(name) ? `${name} = ${value(name)}` : name));
  }

  swap(field, wanted, className) {
    for (const node of this[field]) if (!wanted.has(node)) node.classList.remove(className);
    const fresh = [...wanted].filter((node) => !this[field].has(node));
    for (const node of fresh) node.classList.add(className);
    this[field] = wanted;
    const box = this.isDocument ? this.article.box : this.prompt;
    this.reveal(box, fresh.filter((node) => node.parentNode === box));
  }

  // Where the prompt scrolls: bring what is lit into sight, the first of it for certain.
  reveal(box, literals) {
    if (!literals.length || box.scrollHeight <= box.clientHeight) return;
    for (const node of literals.reverse()) {
      const [outer, inner] = [box.getBoundingClientRect(), node.getBoundingClientRect()];
      if (inner.top < outer.top) box.scrollTop -= outer.top - inner.top + 4;
      else if (inner.bottom > outer.bottom) box.scrollTop += inner.bottom - outer.bottom + 4;
    }
  }

  say(text) {
    this.liveCaption = text;
    if (!this.peeking) this.caption.textContent = text;
  }

  // What a finished step read, on hover, focus or tap.
  peek(node) {
    if (node === this.peeking) return;
    this.peeking?.classList.remove("peeking");
    this.peeking = node;
    const wanted = new Set();
    this.root.classList.toggle("peek", node !== null);
    // A summary's sentence shows what it is drawn from, in the dense lane too, which reads everything besides.
    const readsAll = this.dense && !(this.isDocument && this.annotated);
    this.root.classList.toggle("peek-all", node !== null && readsAll);
    for (const earlier of this.steps.querySelectorAll(".before")) earlier.classList.remove("before");
    if (node) {
      node.classList.add("peeking");
      const record = this.records.get(Number(node.dataset.step));
      const reads = record?.reads ?? JSON.parse(node.dataset.reads ?? "[]");
      const everything = readsAll || node.classList.contains("malformed");
      if (everything) {
        for (let e = node.previousElementSibling; e; e = e.previousElementSibling) e.classList.add("before");
      } else {
        for (const name of reads) if (this.segments.has(name)) wanted.add(this.segments.get(name));
      }
      const title = `${capital(this.view.step)} ${node.dataset.name || node.dataset.line}`;
      if (this.isDocument && this.dense && !everything) {
        this.caption.textContent = `${title} is drawn from ${list(reads)}; attention read everything`;
      } else {
        const what = everything ? "everything before it" : list([...this.named(reads), "itself"]);
        this.caption.textContent = `${title} read ${what}`;
      }
      if (this.isDocument) this.article.stage("peek", !everything);
    } else {
      this.caption.textContent = this.liveCaption;
      if (this.isDocument) this.article.stage("peek", false);
    }
    this.swap("peeked", wanted, "peeked");
  }

  // Nothing is being read any more.
  rest(text) {
    this.streaming = false;
    this.follow.hidden = true;
    this.root.classList.remove("focus", "everything");
    if (this.isDocument && !this.dense) this.article.root.classList.remove("focus", "everything");
    this.swap("lit", new Set(), "lit");
    find(this.steps, ".current")?.classList.remove("current");
    this.say(text);
  }

  finish(result) {
    this.rest(this.hint);
    if (result.correct === null) return this.finishUnjudged(result);
    const right = result.correct;
    find(this.root, ".ss-answer-label").textContent = capital(this.view.answer);
    find(this.root, ".ss-verdict").hidden = false;
    find(this.root, ".ss-answer").textContent = this.typeset(result.answer ?? "none");
    const badge = find(this.root, ".ss-badge");
    badge.textContent = right ? "✓ right" : result.answer === null ? "✗ no answer" : "✗ wrong";
    badge.className = `ss-badge ${right ? "good" : "bad"}`;
    const notes = [];
    if (!right) notes.push(`exact value: ${this.typeset(result.expected)}`);
    if (this.finished === "length") notes.push("ran out of new tokens");
    if (result.malformed_steps) notes.push(plural(result.malformed_steps, "malformed step"));
    find(this.root, ".ss-note").textContent = notes.join(" · ");
  }

  // Of some tasks, as of summaries, no answer is the right one.
  finishUnjudged(result) {
    const count = this.steps.childElementCount;
    find(this.root, ".ss-answer-label").textContent = capital(this.view.answer);
    find(this.root, ".ss-verdict").hidden = false;
    const badge = find(this.root, ".ss-badge");
    badge.textContent = result.answer === null ? "✗ none" : plural(count, this.view.step);
    badge.className = `ss-badge ${result.answer === null ? "bad" : ""}`;
    const notes = [];
    if (this.finished === "length") notes.push("ran out of new tokens");
    if (result.malformed_steps) notes.push(plural(result.malformed_steps, "malformed step"));
    find(this.root, ".ss-note").textContent = notes.join(" · ");
    this.copy.hidden = result.answer === null;
    this.copy.textContent = "Copy";
    this.copied = result.answer ?? "";
  }

  flag(text) {
    const flag = find(this.root, ".ss-flag");
    flag.textContent = text;
    flag.hidden = text === "";
  }

  halt(text) {
    this.flag(text);
    this.rest(this.steps.childElementCount ? this.hint : "");
  }

  listen() {
    const stepOf = (target) => target.closest?.(".ss-step:not(.current)") ?? null;
    const settle = () => this.peek(this.pinned);
    this.steps.addEventListener("pointerover", (event) => {
      if (event.pointerType !== "touch") this.peek(stepOf(event.target) ?? this.pinned);
    });
    this.steps.addEventListener("pointerleave", settle);
    this.steps.addEventListener("focusin", (event) => {
      event.target.setAttribute("aria-describedby", this.caption.id);
      this.peek(stepOf(event.target));
    });
    this.steps.addEventListener("focusout", settle);
    this.steps.addEventListener("click", (event) => {
      const node = stepOf(event.target);
      this.pinned = node === this.pinned ? null : node;
      this.peek(this.pinned);
    });
    this.steps.addEventListener("keydown", (event) => this.key(event));
    this.scroll.addEventListener("scroll", () => {
      const below = this.scroll.scrollHeight - this.scroll.scrollTop - this.scroll.clientHeight;
      this.following = below < FOLLOW_SLACK_PX;
      this.follow.hidden = this.following || !this.streaming;
    });
    this.copy.addEventListener("click", async () => {
      this.copy.textContent = (await copyText(this.copied)) ? "Copied" : "Not allowed here";
    });
    this.follow.addEventListener("click", () => {
      this.following = true;
      this.scroll.scrollTop = this.scroll.scrollHeight;
    });
  }

  // One step of the list is a tab stop; arrow keys move among them.
  key(event) {
    const here = event.target.closest(".ss-step");
    const all = this.steps;
    const next = {
      ArrowDown: here?.nextElementSibling,
      ArrowUp: here?.previousElementSibling,
      Home: all.firstElementChild,
      End: all.lastElementChild,
    }[event.key];
    if (event.key === "Escape") {
      this.pinned = null;
      this.peek(null);
    }
    if (!next || !here) return;
    event.preventDefault();
    here.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

// Over plain http from another machine a page has no clipboard; the old way still works there.
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const box = document.body.appendChild(make("textarea", ""));
    box.value = text;
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    return done;
  }
}

const root = find(element, ".ss");
const status = find(root, ".ss-status");
const line = find(root, ".ss-line");
const template = find(root, "template");
const article = new Article(find(root, ".ss-article"));
const beginning = find(root, ".ss-begin");
const panes = {};
for (const lane of ["dense", "sparse"]) {
  find(root, ".ss-panes").append(template.content.cloneNode(true));
  panes[lane] = new Pane(root.querySelectorAll(".ss-pane")[Object.keys(panes).length], lane, article);
}
find(panes.dense.root, ".ss-name").textContent = "Dense attention";
find(panes.sparse.root, ".ss-name").textContent = "Self-selected attention";

let run = null; // the newest run: payloads of any other are late and ignored
let started = null; // the run that the panes show
let stopped = null; // the run that Stop ended: what is still under way of it is late
let asked = { box: "", button: "" }; // where the newest run's input was typed, and the button that began it
let patience = 0;
let better = ""; // of a long article that is summarized poorly: the part that would be summarized better

function setState(state, text) {
  root.dataset.state = state;
  if (status.textContent !== text) status.textContent = text;
  const busy = BUSY.includes(state);
  for (const stop of document.querySelectorAll(".ss-stop")) stop.setAttribute("aria-disabled", String(!busy));
  clearTimeout(patience);
}

// A short wait goes unmentioned; a long one is explained.
function wait(state, after, text) {
  setState(state, "Starting…");
  patience = setTimeout(() => setState(state, text), after);
}

function begin(payload) {
  started = payload.run;
  root.dataset.begun = "";
  const start = payload.start;
  const load = start.load ?? 1;
  find(root, ".ss-title").textContent = load > 1 ? `${start.title}, ${load} requests at once` : start.title;
  for (const node of root.querySelectorAll(".ss-for-load")) node.hidden = load === 1;
  find(root, ".ss-device").textContent = `· ${start.device}`;
  line.textContent = "The lane whose own clock is behind writes next.";
  for (const name of ["total", "token", "answer", "share"]) tile(name, "–");
  root.dataset.task = start.task;
  root.dataset.pane = start.view.pane;
  article.root.hidden = start.view.pane !== "document";
  if (start.view.pane === "document") article.start(start.prompt);
  const told = { notice: start.notice, rules: start.rules, caution: start.caution?.text };
  for (const [name, text] of Object.entries(told)) {
    const node = find(root, `.ss-${name}`);
    node.hidden = !text;
    node.textContent = text ?? "";
  }
  better = start.caution?.beginning ?? "";
  beginning.hidden = true;
  for (const lane of start.lanes) panes[lane.id]?.start(lane, start);
  const ofWhat = panes.dense.annotated ? "of dense KV read" : "of the plain lane’s KV read";
  find(root, "[data-of-what]").textContent = ofWhat;
  setState("running", "Running.");
  show();
}

const tile = (name, text) => (find(root, `[data-tile="${name}"]`).textContent = text);

// A race that starts, or an error that appears, below the edge of the screen would be missed.
function show() {
  const both = find(root, ".ss-panes");
  const fits = both.getBoundingClientRect().bottom - root.getBoundingClientRect().top < window.innerHeight;
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  (fits ? both : root).scrollIntoView({ block: fits ? "nearest" : "start", behavior: still ? "auto" : "smooth" });
}

// How the lanes compare so far. Against the plain adapter, shares are of another text until both are through.
function compare({ dense, sparse }) {
  if (!dense?.tokens || !sparse?.tokens) return;
  tile("token", times(dense.ms_per_token / sparse.ms_per_token));
  if (dense.total_tokens_per_second) tile("total", times(sparse.total_tokens_per_second / dense.total_tokens_per_second));
  if (panes.dense.annotated) tile("share", percent(sparse.share));
}

function end(payload) {
  const finished = payload.end;
  for (const [lane, result] of Object.entries(finished.lanes)) panes[lane]?.finish(result);
  line.textContent = finished.line;
  tile("total", times(finished.speedup_total));
  tile("token", times(finished.speedup_ms_per_token));
  tile("answer", times(finished.speedup_time_to_answer));
  tile("share", percent(finished.read_share));
  setState("done", verdict(Object.values(finished.lanes)));
}

function verdict(results) {
  if (results.every((result) => result.correct === null)) {
    const written = results.filter((result) => result.answer !== null).length;
    const word = panes.dense.view.answer;
    return [`Neither lane got to a ${word}.`, `One lane got to no ${word}.`, `Both ${several(word)} are written.`][written];
  }
  const right = results.filter((result) => result.correct).length;
  const without = results.filter((result) => result.answer === null).length;
  if (right === results.length) return "Both lanes are right.";
  if (without === results.length) return "Neither lane got to an answer.";
  if (without) return `One lane is ${right ? "right" : "wrong"}, one got to no answer.`;
  return right ? "One lane is right, one is wrong." : "Both lanes are wrong.";
}

function halt(state, text) {
  const shown = started === run;
  if (shown) line.textContent = "";
  if (shown) for (const pane of Object.values(panes)) if (pane.finished === null) pane.halt(state);
  setState(state, text);
  if (state === "failed") root.scrollIntoView({ block: "nearest" });
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
    setState("idle", `The beginning is in the box. Press ${asked.button}.`);
    box.scrollIntoView({ block: "center" });
  };
}

function handle(payload, draw) {
  const { kind } = payload;
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
  if (started !== run) {
    if (!payload.start) return; // a later, full payload begins it
    begin(payload);
  }
  for (const [lane, news] of Object.entries(payload.lanes ?? {})) {
    panes[lane].finished = news.done ? news.finish : null;
    panes[lane].update(news, draw);
    panes[lane].flag(news.done ? (ENDINGS[news.finish] ?? "finished") : "");
  }
  if (draw && payload.lanes) compare(payload.lanes);
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

for (const stop of document.querySelectorAll(".ss-stop")) stop.setAttribute("aria-disabled", "true");
watch("value", () => receive(props.value));
receive(props.value);
