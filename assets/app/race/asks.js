// The forms of the page, one a task: which is in sight, what it holds, and filling it as a visitor would.

const FILL_MS = 5000;
const LOOK_MS = 30;
const HOLDS = 8; // looks in a row at which a value has to be there
const COMPARED = ["span", "plain"]; // the adapters of the dense lane, as the API names them
const CHOICES = { compare: "comparison", model: "model" }; // the form's choices that a link may make, in words

// Until `ready` says so; null after a while.
async function until(ready, patience = FILL_MS) {
  for (const began = performance.now(); performance.now() - began < patience; ) {
    const found = ready();
    if (found) return found;
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
  return null;
}

class Asks {
  // `known`: {task, box, suffix, run, models} of each task, the first one in sight at the beginning.
  constructor(known) {
    this.known = known;
  }

  of(task) {
    return this.known.find((one) => one.task === task);
  }

  // The task whose tab is in sight.
  get shown() {
    const tab = document.querySelector('#tasks [role="tab"][aria-selected="true"]');
    return this.of(tab?.dataset.tabId)?.task ?? this.known[0].task;
  }

  // Of another tab in sight, gradio tells (`app.py`): its tabs may be drawn later than this runs, and more than once.
  onTurn(tell) {
    document.addEventListener("ss-turn", ({ detail }) => this.of(detail) && tell(detail));
  }

  tab(task) {
    return [...document.querySelectorAll('#tasks [role="tab"]')].find((tab) => tab.dataset.tabId === task);
  }

  box({ box }) {
    return document.querySelector(`#${CSS.escape(box)} textarea`);
  }

  choices(name, { suffix }) {
    return [...document.querySelectorAll(`#${CSS.escape(name + suffix)} input[type="radio"]`)];
  }

  chosen(name, one) {
    return this.choices(name, one).find((input) => input.checked)?.value ?? null;
  }

  // A choice as the form words it.
  worded(name, input) {
    return `the ${CHOICES[name]} “${(input.closest("label")?.textContent ?? input.value).trim()}”`;
  }

  // What the form of a task would ask.
  held(task) {
    const one = this.of(task);
    return { task, text: this.box(one)?.value ?? "", model: this.chosen("model", one), compare: this.chosen("compare", one) };
  }

  // A text into the box of the tab in sight.
  write(box, text) {
    box.value = text;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  }

  // A value, until it holds: a form that gradio has just drawn gets its first values once more. What a visitor changes
  // meanwhile is left alone.
  async settle(wanted, read, write) {
    if (wanted === null) return;
    const first = read();
    for (let held = 0, tries = 0; held < HOLDS && tries < 10 * HOLDS; tries++) {
      const now = read();
      if (now !== wanted && now !== first) return;
      held = now === wanted ? held + 1 : 0;
      if (now !== wanted) write(wanted);
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    }
  }

  // What is given goes into the form of its task, which comes into sight; nothing runs. Returns the choices that this
  // changed, in words, as they may be out of sight; null: there is no such form.
  async fill({ task, text = null, model = null, compare = null }) {
    const one = this.of(task);
    if (!one) return null;
    if (this.shown !== task) (await until(() => this.tab(task)))?.click();
    const box = await until(() => (this.box(one)?.checkVisibility() ? this.box(one) : null));
    if (!box) return null;
    openForms();
    box.scrollIntoView({ block: "nearest" });
    await this.settle(text, () => this.box(one)?.value, (value) => this.write(this.box(one), value));
    const changed = [];
    for (const [name, value] of Object.entries({ compare, model })) {
      if (value === null || (name === "model" && one.models.length < 2)) continue; // one model: nothing to choose
      const choice = () => this.choices(name, one).find((input) => input.value === value);
      if (!(await until(choice))) continue; // gradio may draw them after the box
      const before = this.chosen(name, one);
      await this.settle(value, () => this.chosen(name, one), () => choice().click());
      if (before !== value && choice()?.checked) changed.push(this.worded(name, choice()));
    }
    return changed;
  }

  // What to say of a form that was filled: which text is in the box, if any, and what else changed.
  filled(task, whose, changed) {
    const said = whose ? [`${whose} is in the box.`] : [];
    if (changed.length) said.push(`Under Options this was set: ${list(changed)}.`);
    return said.length ? [...said, `Press ${this.of(task).run}.`] : [];
  }
}
