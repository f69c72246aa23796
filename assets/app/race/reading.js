// What a lane reads, lit: by the step being written, live, and by a finished step that somebody points at.

const HINT = "Point at a step, or tap it, to see what it read.";

const DIMMED_MS = 300; // so long what is not read stays dimmed through a short header, which would flicker
const SOFT_MS = 120; // so late all of it is tinted as being read

// The rest steps back, and comes back a little late. By timers: while a style's transition runs, even one that waits, the
// browser works the styles out anew in every frame.
class Shade {
  constructor(...roots) {
    this.roots = roots;
  }

  set(focused, everything) {
    this.turn("dim", focused, focused ? 0 : DIMMED_MS);
    this.turn("soft", everything, everything ? SOFT_MS : 0);
  }

  clear() {
    this.turn("dim", false, 0);
    this.turn("soft", false, 0);
  }

  turn(name, on, delay) {
    this.wanted ??= {};
    if (this.wanted[name]?.on === on && delay) return;
    clearTimeout(this.wanted[name]?.timer);
    const apply = () => this.roots.forEach((root) => root.classList.toggle(name, on));
    this.wanted[name] = { on, timer: delay ? setTimeout(apply, delay) : null };
    if (!delay) apply();
  }
}

class Reading {
  constructor(pane) {
    this.pane = pane;
    this.steps = pane.steps;
    this.root = pane.root;
    this.caption = find(pane.root, ".ss-caption");
    this.caption.id = `ss-caption-${pane.lane}`;
    this.onPeek = () => {}; // told which step somebody points at, or null
    this.onName = () => {}; // told which named piece of text
    this.cited = new Cited(pane.source);
    this.shade = new Shade(pane.root, ...(pane.lane === "sparse" ? [pane.source.root] : []));
    this.clear();
    this.listen();
  }

  clear() {
    this.lit = new Set();
    this.fresh = []; // what has been lit since the last layout
    this.peeked = new Set();
    this.peeking = null;
    this.pinned = null;
    this.named = null;
    this.liveCaption = "";
    this.cited.show(null, [], false);
    this.root.classList.remove("focus", "everything", "peek", "peek-all");
    this.shade.clear();
  }

  // What the step being written sees, live: lit in the expression and in earlier steps, the rest a little dimmed.
  attend(phase, reading) {
    const focused = !this.pane.dense && phase === "body" && Array.isArray(reading);
    const wanted = new Set();
    if (focused) for (const name of reading) if (this.steps.segments.has(name)) wanted.add(this.steps.segments.get(name));
    this.fresh = this.swap("lit", wanted, "lit");
    this.light(focused ? reading : []);
    this.root.classList.toggle("focus", focused);
    const everything = this.pane.dense ? phase !== "done" : ["between", "header", "broken"].includes(phase);
    this.root.classList.toggle("everything", everything);
    if (!this.pane.dense) {
      this.pane.source.stage("focus", focused);
      this.pane.source.stage("everything", everything);
    }
    this.shade.set(focused, everything);
    this.root.dataset.reading = focused ? reading.join(" ") : "";
    const name = this.steps.line?.name ?? "a step";
    if (this.pane.dense) this.say(phase === "done" ? "" : "every token reads everything before it");
    else if (focused) this.say(reading.length ? `writing ${name}: reads ${list(this.steps.named(reading))}` : `writing ${name}: reads only itself`);
    else if (phase === "broken") this.say("malformed step: reads everything until it ends");
    else this.say(phase === "done" || phase === "prefill" ? "" : "naming what the next step reads: sees everything");
  }

  // A program's variables, where they are read.
  light(names) {
    this.pane.source.variables.light(this.pane.lane, names);
  }

  swap(field, wanted, className) {
    for (const node of this[field]) if (!wanted.has(node)) node.classList.remove(className);
    const fresh = [...wanted].filter((node) => !this[field].has(node));
    for (const node of fresh) node.classList.add(className);
    this[field] = wanted;
    return fresh;
  }

  // Where the prompt scrolls: bring what is lit into sight, the first of it for certain.
  reveal(fresh) {
    const { box } = this.pane.source;
    const literals = fresh.filter((node) => node.parentNode === box);
    if (!literals.length || box.scrollHeight <= box.clientHeight) return;
    for (const node of literals.reverse()) {
      const [outer, inner] = [box.getBoundingClientRect(), node.getBoundingClientRect()];
      if (inner.top < outer.top) box.scrollTop -= outer.top - inner.top + 4;
      else if (inner.bottom > outer.bottom) box.scrollTop += inner.bottom - outer.bottom + 4;
    }
  }

  say(text) {
    this.liveCaption = text;
    if (!this.peeking) setText(this.caption, text);
  }

  // What a finished step read, on hover, focus or tap.
  peek(node) {
    if (node === this.peeking) return;
    this.peeking?.classList.remove("peeking");
    this.peeking = node;
    const wanted = new Set();
    this.root.classList.toggle("peek", node !== null);
    // A summary's sentence shows what it is drawn from, in the dense lane too, which reads everything besides.
    const readsAll = this.pane.dense && !(this.pane.isDocument && this.pane.annotated);
    this.root.classList.toggle("peek-all", node !== null && readsAll);
    for (const earlier of this.steps.list.querySelectorAll(".before")) earlier.classList.remove("before");
    if (node) {
      node.classList.add("peeking");
      const reads = this.steps.reads(node);
      const everything = readsAll || node.classList.contains("malformed");
      if (everything) {
        for (let e = node.previousElementSibling; e; e = e.previousElementSibling) e.classList.add("before");
      } else {
        for (const name of reads) if (this.steps.segments.has(name)) wanted.add(this.steps.segments.get(name));
      }
      this.light(everything ? [] : reads);
      const title = `${capital(this.pane.view.step)} ${node.dataset.name || node.dataset.line}`;
      if (this.pane.isDocument && this.pane.dense && !everything) {
        this.caption.textContent = `${title} is drawn from ${list(reads)}; attention read everything`;
      } else {
        const what = everything ? "everything before it" : list([...this.steps.named(reads), "itself"]);
        this.caption.textContent = `${title} read ${what}`;
      }
      this.pane.source.stage("peek", true);
      this.pane.source.stage("peek-all", everything);
    } else {
      this.light([]);
      this.caption.textContent = this.liveCaption;
      for (const name of ["peek", "peek-all"]) this.pane.source.stage(name, false);
    }
    this.reveal(this.swap("peeked", wanted, "peeked"));
    this.onPeek(node);
  }

  // The names of an article's sentences that a step names, all of them, for the card under it.
  citedBy(node) {
    if (!node || !this.pane.isDocument || node.classList.contains("malformed")) return [];
    return this.steps.reads(node);
  }

  // Hold a step until it is chosen again, another is, or Escape. `bring`: into sight within its list, as somebody points at
  // the map, which must stay where it is.
  pin(node, bring = false) {
    this.pinned?.classList.remove("pinned");
    this.pinned = node === this.pinned ? null : node;
    this.pinned?.classList.add("pinned");
    this.peek(this.pinned);
    this.cited.show(this.pinned, this.citedBy(this.pinned), !bring);
    if (this.pinned && bring) this.pane.bring(this.pinned);
  }

  // Escape lets go of a step that is held, and does nothing else then.
  letGo(event) {
    if (this.pinned) event.preventDefault();
    this.pin(null);
  }

  // Steps that read a named piece of text, or none.
  point(name) {
    if (name === this.named) return;
    this.named = name;
    for (const node of this.steps.list.children) {
      node.classList.toggle("reads-it", name !== null && !node.classList.contains("current") && this.steps.reads(node).includes(name));
    }
    this.onName(name);
  }

  rest(text) {
    this.root.classList.remove("focus", "everything");
    this.shade.clear();
    if (!this.pane.dense) this.pane.source.root.classList.remove("focus", "everything");
    this.swap("lit", new Set(), "lit");
    this.light([]);
    find(this.steps.list, ".current")?.classList.remove("current");
    this.say(text);
  }

  listen() {
    const stepOf = (target) => target.closest?.(".ss-step:not(.current)") ?? null;
    const settle = () => this.peek(this.pinned);
    this.steps.list.addEventListener("pointermove", (event) => {
      if (event.pointerType !== "touch" && moved(event)) this.peek(stepOf(event.target) ?? this.pinned);
    });
    this.steps.list.addEventListener("pointerleave", (event) => moved(event) && settle());
    this.steps.list.addEventListener("focusin", (event) => {
      event.target.setAttribute("aria-describedby", this.caption.id);
      this.peek(stepOf(event.target));
    });
    this.steps.list.addEventListener("focusout", settle);
    this.steps.list.addEventListener("click", (event) => {
      if (!this.cited.has(event.target)) this.pin(stepOf(event.target));
    });
    this.steps.list.addEventListener("keydown", (event) => this.key(event));
  }

  // Where a key leads from a step; from none, to the first or the last.
  neighbour(key, here) {
    const all = this.steps.list;
    const last = all.lastElementChild?.classList.contains("current") ? all.lastElementChild.previousElementSibling : all.lastElementChild;
    const to = {
      ArrowDown: here ? here.nextElementSibling : all.firstElementChild,
      ArrowRight: here ? here.nextElementSibling : all.firstElementChild,
      ArrowUp: here ? here.previousElementSibling : last,
      ArrowLeft: here ? here.previousElementSibling : last,
      Home: all.firstElementChild,
      End: last,
    }[key];
    return to && to !== here && !to.classList.contains("current") ? to : null;
  }

  // One step of the list is a tab stop; arrow keys move among them.
  key(event) {
    const here = event.target.closest(".ss-step");
    if (event.key === "Escape") this.letGo(event);
    if (event.key === "Enter" && here) this.pin(here);
    const next = here && this.neighbour(event.key, here);
    if (!next) return;
    event.preventDefault();
    here.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}
