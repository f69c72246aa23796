// What both lanes read: the expression, or the article, shown once above them. Its numbers or sentences are lit by the
// self-selected lane, and by whichever step somebody looks at.

const SIGNS = { "*": "×", "/": "÷", "-": "−" };

class Source {
  constructor(root) {
    this.root = root;
    this.box = find(root, ".ss-source-text");
    this.segments = new Map(); // name -> its element
    this.texts = new Map(); // name -> its text
  }

  // Nothing has been read yet.
  clear() {
    this.typeset = (text) => text;
    this.root.hidden = true;
    this.segments.clear();
    this.texts.clear();
    this.box.replaceChildren();
  }

  // `named`: whether any lane names what it reads.
  start({ prompt, view }, named) {
    const isDocument = view.pane === "document";
    this.typeset = (text) => (view.typeset ? text.replace(/[*/-]/g, (sign) => SIGNS[sign]) : text);
    this.root.hidden = false;
    this.root.classList.remove("focus", "everything", "dim", "soft", "peek", "peek-all");
    find(this.root, ".ss-source-name").textContent = isDocument ? "The article" : "The expression";
    find(this.root, ".ss-source-hint").textContent = isDocument
      ? "Point at a sentence, here or in a summary, or tap it."
      : "Point at a number, or tap it, to see which steps read it.";
    this.segments.clear();
    this.texts.clear();
    this.box.replaceChildren();
    this.box.scrollTop = 0;
    for (const { name, text } of prompt) this.lay(isDocument, named ? name : null, text);
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
