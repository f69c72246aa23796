// The read map of one lane: painted as it is written, lit where somebody points.

const MAP_COLOURS = ["unread", "body", "drafted", "header", "lit", "guide"];

class ReadMap {
  constructor(root, lane, scale) {
    this.root = root;
    this.scale = scale;
    this.field = find(root, ".ss-map-field");
    this.canvas = find(root, ".ss-map-rows");
    this.over = find(root, ".ss-map-over");
    root.dataset.lane = lane;
    this.field.setAttribute("aria-label", `Read map, ${lane === "dense" ? "dense" : "self-selected"} attention: its steps`);
    this.clear();
    new ResizeObserver(() => this.resize()).observe(this.field);
    new MutationObserver(() => this.recolour()).observe(document.body, { attributeFilter: ["class"] });
    window.matchMedia("(forced-colors: active)").addEventListener("change", () => this.recolour());
  }

  clear() {
    find(this.root, ".ss-map-share").textContent = "";
    find(this.root, ".ss-map-text").textContent = "";
    this.runs = [];
    this.count = 0; // rows
    this.clean = 0; // runs that are painted and stay as they are
    this.prompt = 0;
    this.segments = new Map(); // name -> [start, end)
    this.pointed = null;
    this.field.setAttribute("aria-valuemax", "0");
    this.tell(0, "nothing is written yet");
  }

  start({ prompt_tokens: prompt, segments }) {
    this.clear();
    this.prompt = prompt;
    for (const [name, interval] of Object.entries(segments)) this.segments.set(name, interval);
    this.repaint();
  }

  // Runs from index `from` on; they replace those that are there.
  extend(from, runs) {
    if (from > this.runs.length) return; // a later, full payload closes the gap
    const same = runs.findIndex((run, i) => {
      const known = this.runs[from + i];
      return !known || known.count !== run[5].reduce((sum, length) => sum + length, 0);
    });
    if (same < 0) return;
    this.runs.length = from + same;
    for (const run of runs.slice(same)) this.runs.push(unpack(run));
    this.clean = Math.min(this.clean, from + same);
    const last = this.runs.at(-1);
    this.count = last.start + last.count - this.prompt;
  }

  // Where later steps find what a step wrote.
  record({ name, segment }) {
    if (segment) this.segments.set(name, segment);
  }

  get place() {
    const [width, height] = [this.canvas.width, this.canvas.height];
    const { rows, columns } = this.scale;
    const x = (column) => (column / columns) * width;
    return { prompt: this.prompt, x, y: (row) => (row / rows) * height, least: 1 };
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.field.clientWidth, this.field.clientHeight].map((size) => Math.round(size * ratio));
    if (!width || !height || (width === this.canvas.width && height === this.canvas.height)) return;
    for (const canvas of [this.canvas, this.over]) Object.assign(canvas, { width, height });
    if (this.colours) this.repaint();
    else this.recolour();
  }

  // Asked of the style sheet when it may have changed only: to ask is to have the whole page laid out.
  recolour() {
    const style = getComputedStyle(this.root);
    this.colours = Object.fromEntries(MAP_COLOURS.map((name) => [name, style.getPropertyValue(`--ss-map-${name}`).trim()]));
    this.repaint();
  }

  repaint() {
    this.clean = 0;
    const share = `${(100 * this.prompt) / this.scale.columns}%`;
    this.root.style.setProperty("--ss-map-boundary", this.prompt ? share : "0%");
    this.paint();
    this.light(this.pointed);
  }

  // What is new; a row of pixels that is shared with the run before is painted again.
  paint() {
    const context = this.canvas.getContext("2d");
    if (!this.canvas.width || !this.colours) return;
    const place = this.place;
    let first = this.clean;
    const above = first ? Math.floor(place.y(this.runs[first]?.start - this.prompt)) : 0;
    if (first >= this.runs.length && first) return;
    while (first > 0 && place.y(this.runs[first].start - this.prompt) > above) first -= 1;
    context.save();
    context.beginPath();
    context.rect(0, above, this.canvas.width, this.canvas.height - above);
    context.clip();
    context.clearRect(0, above, this.canvas.width, this.canvas.height - above);
    for (const run of this.runs.slice(first)) paintRun(context, run, place, this.colours);
    context.restore();
    this.clean = this.runs.length;
  }

  // ---- pointing

  // The step at a height of the window; null where nothing is written.
  stepAt(clientY) {
    const box = this.field.getBoundingClientRect();
    const row = ((clientY - box.top) / box.height) * this.scale.rows;
    if (row < 0 || row >= this.count) return null;
    const position = this.prompt + row;
    return this.runs.findLast((run) => run.start <= position)?.step ?? null;
  }

  // Light a step ({step}), what reads a piece of text ({name}), or nothing (null).
  light(pointed) {
    this.pointed = pointed;
    const context = this.over.getContext("2d");
    if (this.isLit) context.clearRect(0, 0, this.over.width, this.over.height);
    this.isLit = Boolean(pointed) && this.runs.length > 0;
    if (!this.isLit) return;
    if (pointed.name !== undefined) this.lightName(context, pointed.name);
    else this.lightStep(context, pointed.step);
  }

  lightStep(context, step) {
    const { x, y, least } = this.place;
    const runs = this.runs.filter((run) => run.step === step);
    if (!runs.length) return;
    for (const run of runs) {
      const [top, bottom] = this.band(run, y);
      for (const [from, to] of run.reads) {
        const left = x(from);
        const width = Math.max(x(to) - left, 2 * least);
        context.fillStyle = this.colours.guide;
        const written = Math.max(0, y(from - this.prompt));
        context.fillRect(left, written, width, top - written);
        context.fillStyle = this.colours.lit;
        context.fillRect(left, top, width, bottom - top);
      }
      context.fillStyle = run.kind === BODY || run.reads.length ? this.colours.lit : this.colours.guide;
      const left = x(run.own);
      context.fillRect(left, top, Math.max(x(run.start + run.count) - left, 2 * least), bottom - top);
    }
  }

  // A band of rows is at least three pixels high, so that one step of hundreds can be seen.
  band(run, y) {
    const [top, bottom] = [y(run.start - this.prompt), y(run.start + run.count - this.prompt)];
    const missing = Math.max(0, 3 - (bottom - top)) / 2;
    return [top - missing, bottom + missing];
  }

  lightName(context, name) {
    const segment = this.segments.get(name);
    if (!segment) return;
    const { x, y, least } = this.place;
    const left = x(segment[0]);
    const width = Math.max(x(segment[1]) - left, 2 * least);
    const written = Math.max(0, y(segment[0] - this.prompt));
    context.fillStyle = this.colours.guide;
    context.fillRect(left, written, width, y(this.count) - written);
    context.fillStyle = this.colours.lit;
    for (const run of this.runs) {
      if (run.kind !== BODY || !run.reads.some(([from, to]) => from < segment[1] && to > segment[0])) continue;
      const [top, bottom] = this.band(run, y);
      context.fillRect(left, top, width, bottom - top);
    }
  }

  // ---- in words

  figure(lane) {
    if (lane.tokens) this.share(lane.share);
  }

  share(share) {
    const text = percent(share);
    const shown = find(this.root, ".ss-map-share");
    if (shown.lastChild) shown.lastChild.data = text;
    else shown.append(make("span", "ss-map-reads", "reads "), text);
  }

  tell(now, text) {
    this.field.setAttribute("aria-valuenow", String(now));
    this.field.setAttribute("aria-valuetext", text);
  }

  describe(steps, lane) {
    const words = [
      `${plural(lane.tokens, "token")} written in ${plural(steps, "step")}, after a prompt of ${this.prompt}.`,
      `Attention read ${lane.attended_tokens.toLocaleString("en")} cached tokens,`,
      `${percent(lane.share)} of the ${lane.dense_tokens.toLocaleString("en")} that dense attention reads for this text.`,
    ];
    find(this.root, ".ss-map-text").textContent = words.join(" ");
    this.field.setAttribute("aria-valuemax", String(steps));
  }
}
