// On a phone the article is out of sight of a summary: what a sentence that is held was drawn from stands under it, too.
// The style sheet shows the card on narrow screens only.

class Cited {
  constructor(source) {
    this.source = source;
    this.card = make("div", "ss-cited");
  }

  // The article's sentences by `names` under a step; no step: none. `intoSight`: the page may scroll to them, as it is the
  // step that was tapped.
  show(node, names, intoSight) {
    this.card.remove();
    const read = names.filter((name) => this.source.texts.has(name));
    if (!node || !read.length) return;
    this.card.replaceChildren(make("p", "ss-cited-title", "Drawn from"), ...read.map((name) => this.sentence(name)));
    node.append(this.card);
    if (intoSight && this.card.checkVisibility()) this.card.scrollIntoView({ block: "nearest" });
  }

  sentence(name) {
    const sentence = make("p");
    sentence.append(make("span", "ss-chip", name), this.source.texts.get(name));
    return sentence;
  }

  // Whether somebody turns to the card, not to the step above it.
  has(target) {
    return this.card.contains(target);
  }
}
