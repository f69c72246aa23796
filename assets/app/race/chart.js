// Both lanes over time: cached tokens that were read, and steps that are done, against the seconds of each lane's own clock.

const MOST_POINTS = 240; // of a lane; of more, every second one is left out
const CHART_LANES = { dense: "Dense", sparse: "Self-selected" };
const CHARTED = { read: 1, done: 2 }; // plot -> index of its value in a point

// One more point [seconds, cached tokens read, steps done] of a lane's curve. What it knows of the same time is newer: the
// end of the last step has the time of the last token. A server's own clock, told at the end, may even go back.
function addPoint(curve, point) {
  if (point[0] <= 0) return;
  while (curve.length && curve.at(-1)[0] >= point[0]) curve.pop();
  curve.push(point);
  if (curve.length <= MOST_POINTS) return;
  const kept = curve.filter((_, i) => i % 2 === 1 || i === curve.length - 1);
  curve.splice(0, Infinity, ...kept);
}

class Chart {
  constructor(root) {
    this.root = find(root, ".ss-chart");
    this.picture = find(this.root, ".ss-plots");
    this.until = find(this.root, ".ss-plot-until");
    this.plots = Object.keys(CHARTED).map((name) => {
      const plot = find(this.root, `[data-plot="${name}"]`);
      const lines = Object.keys(CHART_LANES).map((lane) => [lane, find(plot, `[data-line="${lane}"]`)]);
      return { name, at: CHARTED[name], most: find(plot, ".ss-plot-most"), lines: Object.fromEntries(lines) };
    });
    this.start("step");
  }

  // Nothing has run yet. `step`: what the task calls one.
  start(step) {
    this.step = step;
    this.scale = [0, 1, 1];
    find(this.root, ".ss-plot-step").textContent = `${several(step)} done`;
    for (const { most, lines } of this.plots) {
      most.textContent = "";
      for (const line of Object.values(lines)) line.setAttribute("points", "");
    }
    this.until.textContent = "";
    this.picture.setAttribute("aria-label", "Over time: nothing is read yet");
  }

  // `lanes`: the account's, with their curves. `exactly`: nothing more will come.
  draw(lanes, exactly) {
    const curves = this.begun(lanes);
    if (!curves.length) return;
    this.fit(curves.map(([, { curve }]) => curve.at(-1)), exactly);
    for (const { at, lines } of this.plots) {
      const place = (point) => `${this.part(0, point)},${(100 - this.part(at, point)).toFixed(1)}`;
      for (const [lane, { curve }] of curves) lines[lane].setAttribute("points", `0,100 ${curve.map(place).join(" ")}`);
    }
  }

  // What the axes reach to: with some room, so that lines are seen to grow, and the whole chart at the end.
  fit(newest, exactly) {
    const reached = this.scale.map((_, i) => Math.max(...newest.map((point) => point[i])));
    if (!exactly && reached.every((value, i) => value <= this.scale[i])) return;
    this.scale = this.scale.map((most, i) => {
      if (exactly) return reached[i] || 1;
      return reached[i] <= most ? most : ROOM * reached[i];
    });
    for (const { at, most } of this.plots) setText(most, whole(this.scale[at]));
    setText(this.until, seconds(this.scale[0]));
  }

  part(i, point) {
    return ((100 * point[i]) / this.scale[i]).toFixed(1);
  }

  begun(lanes) {
    return Object.entries(lanes).filter(([, { curve }]) => curve.length);
  }

  describe(lanes) {
    const told = this.begun(lanes).map(([lane, { curve }]) => this.told(lane, curve.at(-1)));
    if (told.length) this.picture.setAttribute("aria-label", `Over time. ${told.join(" ")}`);
  }

  told(lane, [at, read, done]) {
    return `${CHART_LANES[lane]}: ${whole(read)} cached tokens read and ${plural(done, this.step)} done in ${seconds(at)}.`;
  }
}
