// On a large model: the measured figures of one cell of the benchmark of drafts, as they stand in its results file.

const LARGE_CHOICES = ["gpu", "shape", "text", "batch"]; // in this order: what can be chosen depends on those before
const LARGE_LANES = ["plain dense", "plain dense + lookup", "span sparse", "span sparse + drafts"];
const LARGE_FIGURES = [rounded, whole, whole, (value) => `${value < 1 ? Number(value.toPrecision(3)) : rounded(value)} s`]; // as serve/large_models.py orders them
const SHARED_CACHE = "Layers share one cache here, as a cache for each does not fit into memory; as many bytes are read.";

class Large {
  // `cells`: [{gpu, date, shape, text, batch, shared, lanes}], only those that were measured.
  constructor(root, cells) {
    this.root = find(root, ".ss-large");
    this.cells = cells;
    this.root.hidden = !cells.length;
    if (!cells.length) return;
    this.selects = Object.fromEntries(LARGE_CHOICES.map((name) => [name, find(this.root, `[data-choice="${name}"]`)]));
    for (const [name, select] of Object.entries(this.selects)) {
      const values = [...new Set(cells.map((cell) => cell[name]))];
      select.append(...values.map((value) => Object.assign(make("option", "", String(value)), { value })));
      select.closest("label").hidden = values.length === 1;
      select.addEventListener("change", () => this.show());
    }
    this.show();
  }

  // The cell that is chosen. A value that was not measured with those before it cannot be: the nearest that was is, then.
  choose() {
    let left = this.cells;
    for (const [name, select] of Object.entries(this.selects)) {
      for (const option of select.options) option.disabled = !left.some((cell) => String(cell[name]) === option.value);
      if (select.selectedOptions[0]?.disabled ?? true) select.value = this.nearest(left.map((cell) => cell[name]), select.value);
      left = left.filter((cell) => String(cell[name]) === select.value);
    }
    return left[0];
  }

  nearest(values, wanted) {
    const away = (value) => Math.abs(Number(value) - Number(wanted)) || 0;
    return String(values.reduce((best, value) => (away(value) < away(best) ? value : best)));
  }

  show() {
    const { gpu, date, shared, lanes } = this.choose();
    const rows = find(this.root, "tbody").rows;
    LARGE_LANES.forEach((lane, i) => {
      lanes[lane].forEach((value, j) => (rows[i].cells[j + 1].textContent = LARGE_FIGURES[j](value)));
      rows[i].dataset.judged = judge(lanes[LARGE_LANES[0]].at(-1) / lanes[lane].at(-1));
    });
    const text = `Measured on ${gpu}, ${date}: random weights, text that the shipped model wrote is replayed; tokens, tokens/s and seconds are those of one request, its prompt left out.`;
    find(this.root, ".ss-large-note").textContent = shared ? `${text} ${SHARED_CACHE}` : text;
  }
}
