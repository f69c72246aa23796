// The two read maps side by side, on one scale, each tied to the text of its lane.

class Stage {
  constructor(root, panes) {
    this.root = root;
    this.panes = panes;
    this.scale = new MapScale();
    this.maps = {};
    const template = find(root, "template");
    for (const [lane, pane] of Object.entries(panes)) {
      const node = template.content.firstElementChild.cloneNode(true);
      find(root, ".ss-maps").append(node);
      find(node, ".ss-map-name").textContent = lane === "dense" ? "Dense" : "Self-selected";
      find(node, ".ss-map-way").textContent = WAYS[lane];
      const text = find(node, ".ss-map-text");
      text.id = `ss-map-text-${lane}`;
      const map = new ReadMap(node, lane, this.scale);
      map.field.setAttribute("aria-describedby", text.id);
      this.maps[lane] = map;
      this.tie(map, pane);
    }
  }

  start(lanes) {
    this.scale.reset();
    for (const map of Object.values(this.maps)) map.clear();
    for (const lane of lanes) this.maps[lane.id]?.start(lane);
    this.scale.hold(Object.values(this.maps), false);
    this.repaint();
  }

  update(lane, news, draw) {
    const map = this.maps[lane];
    map.extend(news.rows_from, news.rows);
    for (const step of news.steps) map.record(step);
    if (draw) map.figure(news);
  }

  // After all lanes of a payload: what is new, or everything on another scale.
  draw(ended) {
    const maps = Object.values(this.maps);
    if (this.scale.hold(maps, ended)) return this.repaint();
    for (const map of maps) map.paint();
  }

  settle(lane, share) {
    this.maps[lane].share(share);
  }

  repaint() {
    for (const map of Object.values(this.maps)) map.repaint();
  }

  describe(lanes) {
    for (const [lane, news] of Object.entries(lanes)) this.maps[lane].describe(this.panes[lane].steps.count, news);
  }

  // Rows, steps and source text light each other.
  tie(map, pane) {
    const { reading } = pane;
    const peeked = (node) => map.light(node ? { step: Number(node.dataset.step) } : null);
    reading.onPeek = (node) => {
      peeked(node);
      if (node) map.tell(node.dataset.line, reading.caption.textContent);
    };
    reading.onName = (name) => (name === null ? peeked(reading.peeking) : map.light({ name }));
    const nodeAt = (event) => {
      const step = map.stepAt(event.clientY);
      return step === null ? null : pane.steps.node(step);
    };
    map.field.addEventListener("pointermove", (event) => {
      if (event.pointerType === "touch" || !moved(event)) return;
      const node = nodeAt(event);
      reading.peek(node ?? reading.pinned);
      if (node) pane.bring(node);
    });
    map.field.addEventListener("pointerleave", (event) => moved(event) && reading.peek(reading.pinned));
    map.field.addEventListener("click", (event) => reading.pin(nodeAt(event), true));
    map.field.addEventListener("keydown", (event) => {
      const next = reading.neighbour(event.key, reading.pinned);
      if (event.key === "Escape") reading.letGo(event);
      if (!next) return;
      event.preventDefault();
      reading.pin(next, true);
    });
  }
}
