// What both lanes read: the expression, the article or the program, shown once above them. Its numbers, sentences or
// lines are lit by the self-selected lane, and by whichever step somebody looks at.

const SIGNS = { "*": "×", "/": "÷", "-": "−" };

class Source {
  constructor(root) {
    this.root = root;
    this.box = find(root, ".ss-source-text");
    this.segments = new Map(); // name -> its element
    this.texts = new Map(); // name -> its text
    this.variables = new Variables(find(root, ".ss-variables"));
  }

  // Nothing has been read yet.
  clear() {
    this.typeset = (text) => text;
    this.root.hidden = true;
    this.segments.clear();
    this.texts.clear();
    this.box.replaceChildren();
    this.variables.start(null);
  }

  // `named`: whether any lane names what it reads.
  start({ prompt, view, lanes }, named) {
    const isDocument = view.pane === "document";
    const { answer, source = "The expression", segment = "number" } = view;
    this.typeset = (text) => (view.typeset ? text.replace(/[*/-]/g, (sign) => SIGNS[sign]) : text);
    this.root.hidden = false;
    this.root.classList.remove("focus", "everything", "dim", "soft", "peek", "peek-all");
    find(this.root, ".ss-source-name").textContent = source;
    find(this.root, ".ss-source-hint").textContent = isDocument
      ? `Point at a ${segment}, here or in a ${answer}, or tap it.`
      : `Point at a ${segment}, or tap it, to see which steps read it.`;
    this.segments.clear();
    this.texts.clear();
    this.box.replaceChildren();
    this.box.scrollTop = 0;
    this.variables.start(view.pane === "code" ? lanes : null);
    for (const { name, text } of prompt) {
      if (view.pane === "code") this.layLine(named ? name : null, text);
      else this.lay(isDocument, named ? name : null, text);
    }
  }

  // A line of a program, with its colours.
  layLine(name, text) {
    const line = make("div", "ss-code-line");
    const code = make("span", "ss-code");
    code.append(...coloured(text.trimEnd()));
    if (name !== null) {
      line.classList.add("ss-seg");
      line.append(make("span", "ss-chip", name));
      line.dataset.name = name;
      line.dataset.value = brief(text.trim(), 24);
      this.texts.set(name, text.trim());
      this.segments.set(name, line);
    }
    line.append(code);
    this.box.append(line);
  }

  lay(isDocument, name, text) {
    if (name === null) {
      if (!isDocument) this.box.append(make("span", "ss-op", this.typeset(text)));
      return;
    }
    const segment = make("span", isDocument ? "ss-seg" : "ss-seg ss-literal");
    const shown = this.typeset(isDocument ? text.trim() : text);
    segment.append(make("span", isDocument ? "ss-chip" : "ss-chip ss-own", name), shown);
    this.texts.set(name, shown);
    segment.dataset.name = name;
    if (!isDocument) segment.dataset.value = shown;
    this.segments.set(name, segment);
    this.box.append(segment);
    if (isDocument) this.box.append(" ");
  }

  stage(name, on) {
    this.root.classList.toggle(name, on);
  }
}
