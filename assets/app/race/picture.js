// Both read maps as a picture, painted by the same strokes for a bitmap and for a drawing of lines and areas (SVG).

const PICTURE = { width: 1200, height: 460, edge: 24, gap: 32, top: 96, bottom: 28 };
const PICTURE_RATIO = 2; // pixels of the bitmap per unit
const PICTURE_FONT = "system-ui, sans-serif";
const SVG = "http://www.w3.org/2000/svg";
// What XML cannot hold.
const NO_XML = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g;

// The part of a canvas's context that `paintRun` and the picture use, writing elements. Text is escaped when it is made.
class Drawing {
  constructor(width, height) {
    this.root = document.createElementNS(SVG, "svg");
    for (const [name, value] of Object.entries({ xmlns: SVG, width, height, viewBox: `0 0 ${width} ${height}` })) {
      this.root.setAttribute(name, value);
    }
    this.fillStyle = "#000";
    this.offset = [0, 0];
  }

  put(name, values, text) {
    const node = this.root.appendChild(document.createElementNS(SVG, name));
    for (const [key, value] of Object.entries({ ...values, fill: this.fillStyle })) {
      node.setAttribute(key, typeof value === "number" ? Number(value.toFixed(2)) : value);
    }
    if (text !== undefined) node.textContent = text.replace(NO_XML, "\ufffd");
  }

  save() {
    this.saved = this.offset;
  }

  restore() {
    this.offset = this.saved;
  }

  translate(x, y) {
    this.offset = [this.offset[0] + x, this.offset[1] + y];
  }

  at(x, y) {
    return [x + this.offset[0], y + this.offset[1]];
  }

  beginPath() {
    this.points = [];
  }

  moveTo(x, y) {
    this.points.push(this.at(x, y));
  }

  lineTo(x, y) {
    this.moveTo(x, y);
  }

  fill() {
    const points = this.points.map((point) => point.map((value) => Number(value.toFixed(2))).join(",")).join(" ");
    this.put("polygon", { points });
  }

  fillRect(x, y, width, height) {
    const [left, top] = this.at(x, y);
    this.put("rect", { x: left, y: top, width, height });
  }

  fillText(text, x, y) {
    const [left, base] = this.at(x, y);
    const [weight, size] = this.font.split(" ");
    const style = { "font-family": PICTURE_FONT, "font-weight": weight, "font-size": size };
    this.put("text", { x: left, y: base, ...style, "text-anchor": this.textAlign === "right" ? "end" : "start" }, text);
  }

  get text() {
    return `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(this.root)}\n`;
  }
}

// A colour as the page has it, in the form that every viewer knows.
function plainColour(text) {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
  context.fillStyle = text;
  context.fillRect(0, 0, 1, 1);
  return `#${[...context.getImageData(0, 0, 1, 1).data.slice(0, 3)].map((part) => part.toString(16).padStart(2, "0")).join("")}`;
}

function coloursOf(node, names) {
  const style = getComputedStyle(node);
  return Object.fromEntries(names.map((name) => [name, plainColour(style.getPropertyValue(`--ss-${name}`).trim())]));
}

// Both maps of a run. `maps`: the ReadMaps of the page, by lane; `context`: where they are painted.
function paintPicture(context, account, maps) {
  const { width, height, edge, gap, top, bottom } = PICTURE;
  const { card, muted, edge: line } = coloursOf(maps.dense.root, ["card", "muted", "edge"]);
  const across = (width - 2 * edge - gap) / 2;
  const down = height - top - bottom;
  const write = (text, x, y, font, colour, align = "left") => {
    Object.assign(context, { font: `${font} ${PICTURE_FONT}`, fillStyle: colour, textAlign: align });
    context.fillText(text, x, y);
  };
  context.fillStyle = card;
  context.fillRect(0, 0, width, height);
  write(brief((account.start.canonical ?? account.start.input).replace(/\s+/g, " "), 96), edge, 34, "700 18px", muted);
  const where = account.recorded ? `recorded ${account.recorded.date} on ${account.recorded.machine}` : account.start.device;
  write("selfspan: down, the tokens as they were written; across, what attention read", edge, height - 9, "400 13px", muted);
  write(where, width - edge, height - 9, "400 13px", muted, "right");
  LANE_ORDER.filter((lane) => account.lanes[lane]).forEach((lane, i) => {
    const map = maps[lane];
    const left = edge + i * (across + gap);
    const names = ["unread", "body", "drafted", "header"];
    const found = coloursOf(map.root, names.map((name) => `map-${name}`));
    const colours = Object.fromEntries(names.map((name) => [name, found[`map-${name}`]]));
    write(lane === "dense" ? "Dense" : "Self-selected", left, top - 14, "700 17px", colours.body);
    const said = plainColour(getComputedStyle(find(map.root, ".ss-map-share")).color); // of its verdict, as on the page
    write(`reads ${percent(account.share(lane))}`, left + across, top - 14, "700 17px", said, "right");
    const { rows, columns } = map.scale;
    const place = { prompt: map.prompt, least: 0.5, x: (column) => (column / columns) * across, y: (row) => (row / rows) * down };
    context.save();
    context.translate(left, top);
    for (const run of map.runs) paintRun(context, run, place, colours);
    context.fillStyle = line;
    context.fillRect(place.x(map.prompt), 0, 1, down);
    for (const [x, y, w, h] of [[0, 0, across, 1], [0, down, across, 1], [0, 0, 1, down], [across, 0, 1, down]]) context.fillRect(x, y, w, h);
    context.restore();
  });
}

function drawnPicture(account, maps) {
  const drawing = new Drawing(PICTURE.width, PICTURE.height);
  paintPicture(drawing, account, maps);
  return drawing.text;
}

function bitmapOf(account, maps) {
  const size = { width: PICTURE.width * PICTURE_RATIO, height: PICTURE.height * PICTURE_RATIO };
  const canvas = Object.assign(document.createElement("canvas"), size);
  const context = canvas.getContext("2d");
  context.scale(PICTURE_RATIO, PICTURE_RATIO);
  paintPicture(context, account, maps);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
