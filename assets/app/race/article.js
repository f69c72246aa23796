// An article that both panes read: shown once, beside them. Its sentences are lit by the self-selected lane, and by
// whichever sentence of a summary somebody looks at.
class Article {
  constructor(root) {
    this.root = root;
    this.box = find(root, ".ss-article-text");
    this.segments = new Map();
  }

  start(prompt) {
    this.segments.clear();
    this.box.replaceChildren();
    this.box.scrollTop = 0;
    this.root.classList.remove("focus", "everything", "peek");
    for (const part of prompt) {
      if (part.name === null) continue;
      const segment = make("span", "ss-seg");
      segment.append(make("span", "ss-chip", part.name), part.text.trim());
      segment.dataset.name = part.name;
      this.segments.set(part.name, segment);
      this.box.append(segment, " ");
    }
  }

  stage(name, on) {
    this.root.classList.toggle(name, on);
  }
}
