// The headline: what was read, then time, each in the colour of its verdict; and the details behind it.

const EQUAL_WITHIN = 0.02; // as in compare/verdict.py
const WELL_BEGUN = 32; // tokens of a lane: a rate of fewer says nothing yet

// 1 where the self-selected lane does better, -1 where it does worse, 0 where no winner is named.
const judge = (speedup) => (Math.abs(speedup - 1) < EQUAL_WITHIN ? 0 : Math.sign(speedup - 1));

// The same of the share that was read.
const judgeShare = (share) => judge(1 / share);

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

const DETAILS = [
  ["first token", (lane) => (lane.first_token_ms === null ? "–" : `${rounded(lane.first_token_ms)} ms`)],
  ["elapsed, prompt included", (lane) => seconds(lane.elapsed_s)],
  // A server does not say what a token takes.
  ["keys and values kept", (lane, bytes, prompt) => (bytes ? megabytes(bytes * (prompt + lane.tokens)) : "–")],
  ["of them read per token", (lane, bytes) => (bytes && lane.tokens > 1 ? megabytes((bytes * lane.attended_tokens) / (lane.tokens - 1)) : "–")],
  ["cached tokens read", (lane) => whole(lane.attended_tokens)],
  ["tokens per pass", (lane) => (lane.tokens_per_pass ? lane.tokens_per_pass.toFixed(1) : "1.0")],
  ["drafts right", (lane) => (lane.tokens_per_pass ? percent(lane.accepted_share) : "–")],
];

class Headline {
  constructor(root) {
    this.root = root;
    this.line = find(root, ".ss-line");
    this.cells = DETAILS.map(([name]) => {
      const row = find(root, ".ss-details tbody").appendChild(make("tr"));
      row.append(Object.assign(make("th", "", name), { scope: "row" }));
      return ["dense", "sparse"].map(() => row.appendChild(make("td", "", "–")));
    });
    this.details = find(root, ".ss-details");
    this.details.addEventListener("toggle", () => this.detail());
    this.lanes = {}; // the newest figures
  }

  tile(name, text, judged) {
    const node = find(this.root, `[data-tile="${name}"]`);
    setText(node, text);
    if (node.dataset.judged !== (judged ?? "")) node.dataset.judged = judged ?? "";
  }

  // As before any run: what was said of one says nothing of an input that was refused.
  clear() {
    this.line.textContent = "";
    for (const name of ["share", "answer", "token", "total"]) this.tile(name, "–");
    for (const cell of this.cells.flat()) cell.textContent = "–";
    this.lanes = {};
    this.told({});
    this.rules("");
  }

  rules(text) {
    find(this.root, ".ss-rules").textContent = text;
    find(this.root, ".ss-constrained").hidden = !text;
  }

  start(start, paidFor) {
    this.clear();
    const load = start.load ?? 1;
    this.bytes = start.bytes_per_token;
    this.inTurn = Boolean(start.in_turn);
    this.prompts = Object.fromEntries(start.lanes.map((lane) => [lane.id, lane.prompt_tokens]));
    find(this.root, ".ss-title").textContent = load > 1 ? `${start.title}, ${load} requests at once` : start.title;
    find(this.root, ".ss-device").textContent = `· ${start.device}`;
    find(this.root, "[data-of-what]").textContent = paidFor ? "of the plain lane’s reads" : "of dense’s reads";
    this.line.textContent = start.in_turn
      ? "One lane after the other: together they would share a server's steps, and each would show the time of both."
      : "The lane whose own clock is behind writes next, so what you see is the true relative speed.";
    this.told({ notice: start.notice, caution: start.caution?.text });
    this.rules(start.rules ?? "");
  }

  // Nothing has run yet.
  blank() {
    find(this.root, ".ss-title").textContent = "Two lanes, one device";
    find(this.root, ".ss-device").textContent = "";
    this.clear();
  }

  // Remarks on an input or a model; without any, those of another run are gone.
  told({ notice, caution }) {
    for (const [name, text] of Object.entries({ notice, caution })) {
      const node = find(this.root, `.ss-${name}`);
      node.hidden = !text;
      node.textContent = text ?? "";
    }
  }

  // How the lanes compare so far. Against the plain adapter, shares are of another text until both are through.
  update({ dense, sparse }, paidFor) {
    this.lanes = { dense, sparse };
    this.detail();
    if (!dense?.tokens || !sparse?.tokens) return;
    if (!paidFor) this.tile("share", percent(sparse.share), judgeShare(sparse.share));
    if (![dense, sparse].every(({ done, tokens }) => done || tokens >= WELL_BEGUN)) return;
    const perToken = dense.ms_per_token / sparse.ms_per_token;
    // In turn, the first lane has the server's own times already and the second one has not.
    if (Number.isFinite(perToken) && (!this.inTurn || sparse.done)) this.tile("token", times(perToken), judge(perToken));
    const total = sparse.total_tokens_per_second / dense.total_tokens_per_second;
    if (Number.isFinite(total)) this.tile("total", times(total), judge(total));
  }

  // The run ended before its time: rates of lanes that were cut off at different places do not compare.
  halt() {
    const { dense, sparse } = this.lanes;
    if (dense?.done && sparse?.done) return;
    for (const name of ["token", "total"]) this.tile(name, "–");
  }

  // Written where they are seen only.
  detail() {
    if (!this.details.open) return;
    DETAILS.forEach(([, figure], i) => {
      ["dense", "sparse"].forEach((lane, j) => {
        if (this.lanes[lane]) setText(this.cells[i][j], figure(this.lanes[lane], this.bytes, this.prompts[lane]));
      });
    });
  }

  // The headline's words are the caller's to show: they are the status.
  end({ headline, line, read_share, speedup_time_to_answer, speedup_ms_per_token, speedup_total }) {
    this.line.textContent = line;
    this.tile("share", percent(read_share), headline.judged.share);
    this.tile("answer", times(speedup_time_to_answer), headline.judged.answer);
    this.tile("token", times(speedup_ms_per_token), headline.judged.token);
    this.tile("total", times(speedup_total), speedup_total ? judge(speedup_total) : undefined);
  }
}
