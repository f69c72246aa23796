// The runs of this browser: a table, kept in its own storage and nowhere else.

const HISTORY_KEY = "selfspan.runs";
const MAX_RUNS = 50;
const MAX_RUN_TEXT = 60_000; // characters; a longer input is listed and cannot be filled in again
const RUN_FIELDS = { task: "string", input: "string", model: "string", compare: "string", share: "number", answer: "string" };

// One kept run, or null for anything else that lies in the storage.
function keptRun(one) {
  if (typeof one !== "object" || one === null) return null;
  if (Object.entries(RUN_FIELDS).some(([name, type]) => typeof one[name] !== type)) return null;
  const text = typeof one.text === "string" && one.text.length <= MAX_RUN_TEXT ? one.text : null;
  const speed = Number.isFinite(one.speed) ? one.speed : null;
  const { task, input, model, compare, share, answer } = one;
  return { task, text, input: brief(input, 80), model, compare, share, speed, answer: brief(answer, 80) };
}

// How the answers came out: right, wrong, the same.
function outcomeOf({ dense, sparse }) {
  const lanes = [dense, sparse].filter(Boolean);
  if (lanes.some((lane) => lane.answer === null)) return lanes.every((lane) => lane.answer === null) ? "no answer" : "one without answer";
  const isSame = lanes.every((lane) => lane.answer === lanes[0].answer);
  if (lanes[0].correct === null) return isSame ? "same" : "different";
  if (lanes.every((lane) => lane.correct)) return "right";
  if (lanes.every((lane) => !lane.correct)) return isSame ? "wrong, same" : "both wrong";
  return sparse.correct ? "right, dense wrong" : "wrong, dense right";
}

class History {
  // `fill` is told of a run whose row is chosen; `say`, what happened.
  constructor(root, asks, fill, say) {
    Object.assign(this, { root, asks, fill, say });
    this.summary = find(root, "summary");
    this.body = find(root, "tbody");
    this.runs = [];
    this.isKept = true;
    this.load();
    find(root, ".ss-clear").addEventListener("click", () => this.clear());
    window.addEventListener("storage", ({ key }) => [HISTORY_KEY, null].includes(key) && this.load());
  }

  load() {
    try {
      const found = JSON.parse(localStorage.getItem(HISTORY_KEY) ?? "[]");
      this.runs = Array.isArray(found) ? found.map(keptRun).filter(Boolean).slice(0, MAX_RUNS) : [];
    } catch (error) {
      // Broken text: a new list takes its place. A storage that is forbidden: the list lasts as long as the page.
      this.isKept = error instanceof SyntaxError;
    }
    this.draw();
  }

  // Old runs give way where the storage is full; where not even the newest finds room, nothing is kept.
  store() {
    for (let count = this.runs.length; count > 0; count = Math.floor(count / 2)) {
      try {
        localStorage.setItem(HISTORY_KEY, JSON.stringify(this.runs.slice(0, count)));
        this.isKept = true;
        return;
      } catch {
        this.isKept = false;
      }
    }
  }

  // A run that is through.
  add({ task, text, start, asked, model, end }) {
    if (this.isKept) this.load(); // another tab of this browser may have added some
    const used = start.lanes.at(-1).model ?? model ?? "";
    const [share, speed] = [end.read_share, end.speedup_time_to_answer];
    const words = text.replace(/\s+/g, " ").trim();
    const answer = outcomeOf(end.lanes);
    const one = keptRun({ task, text, input: words, model: used, compare: asked?.adapter ?? start.adapter, share, speed, answer });
    if (one) this.runs = [one, ...this.runs].slice(0, MAX_RUNS);
    this.store();
    this.draw();
  }

  clear() {
    this.runs = [];
    try {
      localStorage.removeItem(HISTORY_KEY);
    } catch {
      // There is nothing in it, then.
    }
    this.draw();
    this.summary.focus();
    this.say("The list is empty.");
  }

  draw() {
    this.summary.textContent = `Your runs (${this.runs.length})`;
    find(this.root, ".ss-none").hidden = this.runs.length > 0;
    find(this.root, ".ss-runs").hidden = this.runs.length === 0;
    find(this.root, ".ss-clear").hidden = this.runs.length === 0;
    find(this.root, ".ss-unkept").hidden = this.isKept;
    this.body.replaceChildren(...this.runs.map((one) => this.row(one)));
  }

  row(one) {
    const row = make("tr");
    const choose = make("button", "ss-again", one.input || "(empty)");
    choose.type = "button";
    choose.disabled = one.text === null || !this.asks.of(one.task);
    choose.title = choose.disabled ? "This input was not kept" : "Fill it in again";
    const input = Object.assign(make("th"), { scope: "row" });
    input.append(choose);
    const speed = one.speed === null ? "–" : times(one.speed);
    row.append(input, ...[one.model, percent(one.share), speed, one.answer].map((text) => make("td", "", text)));
    if (!choose.disabled) row.addEventListener("click", () => this.fill(one));
    return row;
  }
}
