// One lane: its figures, its steps, what it reads, its answer.

const FOLLOW_SLACK_PX = 40;
const WAYS = {
  dense: "reads everything",
  sparse: "reads what it named",
};
const LINE = { pane: "line", answer: "answer", step: "step", typeset: false };

class Pane {
  constructor(root, lane, source) {
    this.root = root;
    this.source = source;
    this.lane = lane;
    this.scroll = find(root, ".ss-scroll");
    this.steps = new Steps(find(root, ".ss-steps"));
    this.steps.onClosed = (name, text) => source.variables.write(lane, name, text);
    this.empty = find(root, ".ss-empty");
    this.follow = find(root, ".ss-follow");
    this.copy = find(root, ".ss-copy");
    this.drafts = find(root, ".ss-drafts");
    this.bar = find(root, ".ss-prompt-bar");
    this.following = true;
    this.streaming = false;
    this.view = LINE;
    this.figures = {};
    root.dataset.lane = lane;
    find(root, ".ss-name").id = `ss-name-${lane}`;
    root.setAttribute("aria-labelledby", `ss-name-${lane}`);
    for (const node of root.querySelectorAll("[data-figure]")) this.figures[node.dataset.figure] = node;
    find(root, ".ss-way").textContent = WAYS[lane];
    this.reading = new Reading(this);
    this.listen();
  }

  // `paidFor`: whether shares are of what the plain adapter's lane reads for its own, shorter text; see `settle`.
  start(lane, { view, load = 1 }, paidFor) {
    this.reading.clear();
    this.view = view;
    this.paidFor = paidFor;
    this.dense = lane.attention === "dense";
    this.annotated = lane.adapter !== "plain";
    this.promptSize = lane.prompt_tokens;
    this.bar.hidden = true;
    this.root.dataset.tokens = 0;
    find(this.root, ".ss-name").textContent = lane.label.split(",")[0];
    find(this.root, ".ss-adapter").textContent = `${lane.adapter} adapter`;
    this.flag("");
    this.conclude({});
    this.empty.remove();
    find(this.root, ".ss-load").textContent = load;
    for (const node of Object.values(this.figures)) node.textContent = "–";
    this.drafts.hidden = true;
    find(this.root, ".ss-kv-fill").style.width = "0";
    this.root.toggleAttribute("data-paid", paidFor);
    this.steps.start(this.source.typeset, this.annotated ? this.source.segments : []);
    this.following = true;
    this.streaming = true;
    this.follow.hidden = true;
    this.reading.say("");
  }

  // Nothing has run yet.
  blank() {
    const label = find(this.root, ".ss-name").textContent;
    this.start({ attention: this.lane, adapter: "", label }, { view: LINE }, false);
    find(this.root, ".ss-adapter").textContent = "";
    this.scroll.append(this.empty);
    this.streaming = false;
  }

  // Whether the prompt is a document in which a step names sentences, not a line of numbers.
  get isDocument() {
    return this.view.pane === "document";
  }

  get hint() {
    return this.isDocument ? "" : HINT;
  }

  // One lane of a payload: items from index `from` on (many of them known already), changed steps, figures.
  // `draw` false: a newer payload of the same frame draws the rest.
  update(lane, draw) {
    this.steps.extend(lane.from, lane.items);
    for (const step of lane.steps) this.steps.record(step);
    if (!draw) return;
    this.figure(lane);
    this.reading.attend(lane.phase, lane.reading);
    this.root.dataset.tokens = lane.tokens;
  }

  // `done`: tokens of a long prompt that are processed, null where it is through; `left`: how long all prompts still take.
  readPrompt(done, left) {
    const { promptSize: size, bar } = this;
    bar.hidden = done === null;
    if (done === null) return;
    bar.setAttribute("aria-valuenow", Math.round((100 * done) / size));
    bar.firstChild.style.width = `${((100 * done) / size).toFixed(1)}%`;
    const [some, all] = [done, size].map((count) => count.toLocaleString("en"));
    // The time first: what follows is cut where the pane is narrow.
    this.reading.say(`${left}: ${some} of ${all} tokens of the prompt are read`);
  }

  // What is new into sight, the newest step unless somebody scrolled away. Where things lie is a layout of the page: it is
  // asked once, when all of a frame has been written.
  keepUp() {
    this.reading.reveal(this.reading.fresh.splice(0));
    if (this.following) this.scroll.scrollTop = this.scroll.scrollHeight;
  }

  figure(lane) {
    const set = (key, text) => setText(this.figures[key], text);
    set("tokens", lane.tokens.toLocaleString("en"));
    if (lane.tokens > 0) {
      set("tokens_per_second", rounded(lane.tokens_per_second));
      set("ms_per_token", rounded(lane.ms_per_token));
      if (lane.tokens_per_pass) {
        const share = percent(lane.accepted_share);
        setText(this.drafts, `${lane.tokens_per_pass.toFixed(1)} tokens per pass, ${share} of drafts right`);
        this.drafts.hidden = false;
      }
      this.fill(lane.share, this.paidFor ? "of own text" : "of dense");
      if (lane.total_tokens_per_second) set("total_tokens_per_second", whole(lane.total_tokens_per_second));
    }
    if (lane.first_token_ms !== null) set("first_token_ms", `${rounded(lane.first_token_ms)} ms`);
    set("elapsed_s", seconds(lane.elapsed_s));
  }

  // The bar: a share, and of what.
  fill(share, ofWhat) {
    setText(this.figures.share, `${percent(share)} ${ofWhat}`);
    find(this.root, ".ss-kv-fill").style.width = `${Math.min(100 * share, 100).toFixed(1)}%`;
    find(this.root, ".ss-kv-track").setAttribute("aria-label", `KV read: ${percent(share)} ${ofWhat}`);
  }

  // Against the plain adapter shares are of another text until both are through: from then on as in the headline.
  settle(share) {
    this.fill(share, "of plain lane");
  }

  // Nothing is being read any more.
  rest(text) {
    this.bar.hidden = true;
    this.streaming = false;
    this.follow.hidden = true;
    this.reading.rest(text);
  }

  // `differsAt`: index of the first step that the other lane wrote differently.
  finish(result, differsAt) {
    this.rest(this.hint);
    if (differsAt !== null) this.steps.differ(differsAt);
    const notes = [];
    const right = result.correct;
    if (right === false) notes.push(`exact value: ${this.source.typeset(result.expected)}`);
    if (this.finished === "length") notes.push("ran out of new tokens");
    if (result.malformed_steps) notes.push(plural(result.malformed_steps, "malformed step"));
    const note = notes.join(" · ");
    const remark = result.remark ?? "";
    if (right === null) return this.concludeUnjudged(result.answer, note, remark);
    const badge = right ? "✓ right" : result.answer === null ? "✗ no answer" : "✗ wrong";
    const answer = this.source.typeset(result.answer ?? "none");
    this.conclude({ answer, badge, judged: right ? "good" : "bad", note, remark });
  }

  // Of some tasks, as of summaries, no answer is the right one.
  concludeUnjudged(answer, note, remark) {
    const badge = answer === null ? "✗ none" : plural(this.steps.count, this.view.step);
    this.conclude({ badge, judged: answer === null ? "bad" : "", note, remark });
  }

  // How the lane's run came out, in a live region, which is read out as it fills; nothing: its place is kept.
  conclude({ answer = "", badge = "", judged = "", note = "", remark = "" }) {
    const set = (name, text) => (find(this.root, `.ss-${name}`).textContent = text);
    set("outcome-lane", badge && find(this.root, ".ss-name").textContent);
    set("answer-label", badge && capital(this.view.answer));
    set("answer", answer);
    set("badge", badge);
    find(this.root, ".ss-badge").className = `ss-badge ${judged}`;
    set("note", note);
    set("remark", remark);
    this.offerCopy("");
  }

  // The answer and the worked steps as plain text; of a summary both are the same. Empty: there is nothing to copy.
  offerCopy(text) {
    this.copied = text;
    this.copy.hidden = text === "";
    this.copy.textContent = this.isDocument ? `Copy ${this.view.answer}` : `Copy ${this.view.answer} and steps`;
  }

  flag(text) {
    const flag = find(this.root, ".ss-flag");
    if (flag.textContent === text) return;
    flag.textContent = text;
    flag.hidden = text === "";
  }

  halt(text) {
    this.flag(text);
    this.rest(this.steps.count ? this.hint : "");
  }

  // A step of the list, into sight within the list alone.
  bring(node) {
    const [outer, inner] = [this.scroll.getBoundingClientRect(), node.getBoundingClientRect()];
    if (inner.top < outer.top) this.scroll.scrollTop -= outer.top - inner.top + 4;
    else if (inner.bottom > outer.bottom) {
      this.scroll.scrollTop += Math.min(inner.bottom - outer.bottom + 4, inner.top - outer.top - 4);
    }
  }

  listen() {
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
}
