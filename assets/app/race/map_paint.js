// Painting of read maps. A row is a token that was written; across lie the tokens that stood before it, painted where they
// were read. Rows come as runs of alike ones: [step, start, kind, own, gaps, lengths], packed by feed.py.

const BODY = 0; // kinds, in the order of read_rows.py
const MIN_ROWS = 64;
const ROOM = 1.3; // how far beyond what is there both maps reach, so that they are seldom drawn anew

// How many tokens lie across and down, in both maps alike: else their areas could not be compared.
class MapScale {
  constructor() {
    this.reset();
  }

  reset() {
    this.rows = MIN_ROWS;
    this.columns = MIN_ROWS;
  }

  // Whether room had to be made. `exactly`: nothing more will come.
  hold(maps, exactly) {
    const rows = Math.max(1, ...maps.map((map) => map.count));
    const columns = Math.max(1, ...maps.map((map) => map.prompt + map.count));
    if (!exactly && rows <= this.rows && columns <= this.columns) return false;
    const room = exactly ? 1 : ROOM;
    this.rows = Math.max(Math.ceil(rows * room), exactly ? 1 : MIN_ROWS);
    this.columns = Math.max(...maps.map((map) => map.prompt)) + this.rows;
    return true;
  }
}

const unpack = ([step, start, kind, own, gaps, lengths]) => {
  const reads = [];
  for (let i = 0, at = 0; i < gaps.length; i += 2) {
    const from = at + gaps[i];
    at = from + gaps[i + 1];
    reads.push([from, at]);
  }
  return { step, start, kind, own, reads, lengths, count: lengths.reduce((sum, length) => sum + length, 0) };
};

// Rows [top, bottom) of a map as a shape from column `from` to the diagonal, where each row ends with its own token.
function slope(context, from, top, bottom, { prompt, x, y }) {
  context.beginPath();
  context.moveTo(x(from), y(top));
  context.lineTo(x(prompt + top + 1), y(top));
  context.lineTo(x(prompt + bottom), y(bottom));
  context.lineTo(x(from), y(bottom));
  context.fill();
}

// One run: `colours` has unread, body, drafted and header.
function paintRun(context, run, place, colours) {
  const { prompt, x, y, least } = place;
  let top = run.start - prompt;
  context.fillStyle = colours.unread;
  slope(context, 0, top, top + run.count, place);
  run.lengths.forEach((length, i) => {
    if (!length) return;
    const bottom = top + length;
    context.fillStyle = run.kind !== BODY ? colours.header : i % 2 ? colours.drafted : colours.body;
    for (const [from, to] of run.reads) {
      const left = x(from);
      context.fillRect(left, y(top), Math.max(x(to) - left, least), y(bottom) - y(top));
    }
    slope(context, run.own, top, bottom, place);
    top = bottom;
  });
}
