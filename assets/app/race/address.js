// What an address asks for: ?task=&text=&model=&compare= fills the form and runs nothing.

const MAX_LINK_TEXT = 4000; // characters
const MAX_LINK = 8000; // of the whole address: more is cut off on its way through many servers and messengers

const quoted = (value) => `“${brief(value.replace(/\s+/g, " "), 30)}”`;

class Address {
  constructor(asks) {
    this.asks = asks;
  }

  // {fill, ignored} of a query: what fills the form, null where it names nothing of it; and why a value does not count.
  read(query) {
    const given = new URLSearchParams(query);
    const [task, text, model, compare] = ["task", "text", "model", "compare"].map((name) => given.get(name));
    if ([task, text, model, compare].every((value) => value === null)) return { fill: null, ignored: [] };
    const ignored = [];
    const known = (name, value, values) => {
      if (value === null || values.includes(value)) return value;
      ignored.push(`there is no ${name} ${quoted(value)} here`);
      return null;
    };
    const fill = { task: known("task", task, this.asks.known.map((one) => one.task)) ?? this.asks.shown };
    fill.model = known("model", model, this.asks.of(fill.task).models);
    fill.compare = known("comparison", compare, COMPARED);
    fill.text = text;
    if (text !== null && text.length > MAX_LINK_TEXT) {
      ignored.push(`the text has ${whole(text.length)} characters, more than ${whole(MAX_LINK_TEXT)}`);
      fill.text = null;
    }
    return { fill, ignored };
  }

  // {address} that asks for an input, or {reason} why there is none.
  write({ task, text, model, compare }) {
    if (!text.trim()) return { reason: "There is no text to share yet." };
    const given = new URLSearchParams({ task, text });
    if (model && this.asks.of(task).models.length > 1) given.set("model", model);
    if (compare) given.set("compare", compare);
    const address = `${location.origin}${location.pathname}?${given}`;
    if (text.length <= MAX_LINK_TEXT && address.length <= MAX_LINK) return { address };
    return { reason: `The text is too long for a link: ${whole(text.length)} characters, at most ${whole(MAX_LINK_TEXT)} fit. Its trace can be saved.` };
  }

  // Fill the form as the page's own address asks. Returns what to say of it.
  async follow() {
    const { fill, ignored } = this.read(location.search);
    if (!fill) return "";
    const changed = await this.asks.fill(fill);
    const said = changed ? this.asks.filled(fill.task, fill.text !== null ? "The link’s text" : "", changed) : [];
    if (ignored.length) said.push(`Of the link, this was ignored: ${ignored.join("; ")}.`);
    return said.join(" ");
  }
}
