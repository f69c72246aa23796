// Everything that is known of one run: what its payloads brought, kept whole, so that it can be shown again and saved.

class Account {
  // `asked`: the request as the server understood it; a recorded run has none, but says when and where it was made.
  constructor({ run, kind, start, asked }, recorded = null) {
    Object.assign(this, { run, kind, start, asked: asked ?? null, recorded });
    this.lanes = {};
    this.end = null;
    this.halted = ""; // how it ended without an answer: "stopped" or "failed"
    this.began = new Date();
  }

  // Items and rows from an index on, many of them known already; changed steps; all figures.
  add({ lanes, end, asked }) {
    this.asked ??= asked ?? null;
    for (const [name, { from, items, rows_from: rowsFrom, rows, steps, ...figures }] of Object.entries(lanes ?? {})) {
      const lane = (this.lanes[name] ??= { items: [], rows: [], steps: new Map(), step: 0, curve: [] });
      const news = from <= lane.items.length ? items.slice(lane.items.length - from) : [];
      lane.items.push(...news);
      lane.step = news.reduce((newest, [, , index]) => Math.max(newest, index), lane.step);
      if (rowsFrom <= lane.rows.length) lane.rows.splice(rowsFrom, Infinity, ...rows);
      for (const step of steps) lane.steps.set(step.index, step);
      lane.figures = figures;
      addPoint(lane.curve, [figures.elapsed_s, figures.attended_tokens, lane.step + (figures.done ? 1 : 0)]);
    }
    this.end = end ?? this.end;
  }

  // All of it, as a payload holds it.
  get whole() {
    const whole = ({ items, rows, steps, figures }) => ({ ...figures, from: 0, items, rows_from: 0, rows, steps: [...steps.values()] });
    return Object.fromEntries(Object.entries(this.lanes).map(([name, lane]) => [name, whole(lane)]));
  }

  get task() {
    return this.start.task;
  }

  // What was typed: as it was, or where the server no longer says so, as it was understood.
  get text() {
    return this.asked?.text ?? this.start.input;
  }

  // Whether the dense lane writes no names, and another, shorter text.
  get isPaidFor() {
    return this.start.lanes.some((lane) => lane.id === "dense" && lane.adapter === "plain");
  }

  // What a lane read, as a share: of its own text until both are through, where the lanes write different texts.
  share(name) {
    if (!this.isPaidFor || !this.end) return this.lanes[name].figures.share;
    return name === "dense" ? 1 : this.end.read_share;
  }

  // The steps of a lane in order, in words: what each is called and reads, its working and its result.
  steps(name) {
    const { items, steps } = this.lanes[name] ?? { items: [], steps: new Map() };
    const all = new Map();
    for (const [text, kind, index] of items) {
      if (!all.has(index)) all.set(index, { index, name: null, reads: [], working: "", result: "", isResult: false, ...steps.get(index) });
      const step = all.get(index);
      if (KINDS[kind] === "res") step.isResult = true;
      if (KINDS[kind] === "text") step[step.isResult ? "result" : "working"] += text;
    }
    return [...all.values()].filter((step) => step.index >= 0 || step.working.trim());
  }
}
