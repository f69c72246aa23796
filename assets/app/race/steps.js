// The worked steps of a lane, as a list: items of the feed in, nodes out.

const KINDS = ["text", "ref", "go", "res", "end", "anchor", "newline"]; // the order of feed.py
const GLYPHS = {
  ref: ["reads", "<|ref|> opens a step: the names that it reads follow"],
  go: ["▸", "<|go|> ends the header: from here on the step sees only what it named"],
  res: ["⇒", "<|res|> from here on later steps may read this step"],
  end: ["▪", "<|end|> ends the step"],
};

const NEAR_STEPS = 20; // more than are ever in sight at once

class Steps {
  constructor(list) {
    this.list = list;
    this.segments = new Map(); // name -> the element that the name stands for
    this.onClosed = () => {}; // told the name of a step that ended, and what later steps may read of it
    this.clear();
  }

  clear() {
    this.have = 0; // items drawn so far
    this.line = null; // the step being written, as {node, text, names, result}
    this.near = []; // the newest steps
    this.records = new Map();
    this.segments.clear();
    this.list.replaceChildren();
  }

  // `typeset`: how text is set; `segments`: what stands in the prompt, by name.
  start(typeset, segments) {
    this.clear();
    this.typeset = typeset;
    for (const [name, segment] of segments) this.segments.set(name, segment);
  }

  get count() {
    return this.list.childElementCount;
  }

  // Items from index `from` on, many of them known already.
  extend(from, items) {
    for (let i = Math.max(this.have - from, 0); from <= this.have && i < items.length; i++) {
      const [text, kind, step, drafted] = items[i];
      this.add(text, KINDS[kind], step, drafted === 1);
      this.have += 1;
    }
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
    node.tabIndex = this.list.childElementCount === 0 ? 0 : -1;
    node.dataset.step = step;
    node.dataset.line = this.list.childElementCount + 1;
    this.list.append(node);
    this.near.push(node);
    if (this.near.length > NEAR_STEPS) this.near.shift().classList.add("ss-far");
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
      const text = this.written(segment);
      segment.dataset.value = brief(text);
      this.segments.set(name, segment);
      this.onClosed(name, text);
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
    const node = find(this.list, `[data-step="${Number(step.index)}"]`);
    if (node === null || node.classList.contains("malformed")) return;
    node.classList.add("malformed");
    const flag = make("span", "ss-malformed", "malformed");
    flag.title = "This step broke the grammar: it sees everything and is never read";
    node.prepend(flag);
  }

  // Mark the first step that the other lane wrote differently.
  differ(index) {
    const node = this.list.children[index];
    if (!node) return;
    node.classList.add("differs");
    const flag = make("span", "ss-differs", "differs");
    flag.title = "The first step that the other lane wrote differently";
    node.prepend(flag);
  }

  node(step) {
    return find(this.list, `[data-step="${Number(step)}"]:not(.current)`);
  }

  // Names with what they stand for, which may have scrolled out of sight: "a27 = 21".
  named(names) {
    const value = (name) => this.segments.get(name)?.dataset.value;
    return names.map((name) => (value(name) ? `${name} = ${value(name)}` : name));
  }

  // What a finished step read, by name.
  reads(node) {
    return this.records.get(Number(node.dataset.step))?.reads ?? JSON.parse(node.dataset.reads ?? "[]");
  }
}
