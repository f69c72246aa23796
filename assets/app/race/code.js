// A program's text in colours, and its variables while it runs. Text is only ever text: nodes with textContent.

const LEXEMES = /'[^']*'|\d+|[A-Za-z_]\w*|\s+|[^\s\w']+|./g;
const WORDS_OF_CODE = new Set(
  "def if elif else while for in return break continue pass and or not True False print range len abs min max str".split(" "),
);

// Nodes for a line of code.
function coloured(text) {
  return (text.match(LEXEMES) ?? []).map((lexeme) => {
    if (lexeme.startsWith("'")) return make("span", "ss-code-text", lexeme);
    if (/^\d/.test(lexeme)) return make("span", "ss-code-number", lexeme);
    if (WORDS_OF_CODE.has(lexeme)) return make("span", "ss-code-word", lexeme);
    return document.createTextNode(lexeme);
  });
}

// The variables that steps write as ` name=value`, each with its last value, lit where a step reads it.
class Variables {
  constructor(table) {
    this.table = table;
    this.start(null);
  }

  // `lanes` of a run whose steps write variables; null: there are none. The table is of the self-selected lane if it runs.
  start(lanes) {
    const named = (lanes ?? []).filter((lane) => lane.adapter !== "plain").map((lane) => lane.id);
    this.lane = named.includes("sparse") ? "sparse" : (named[0] ?? null);
    this.rows = new Map(); // variable -> its row, with its last value
    this.written = new Map(); // name of a step -> [variable, value] of what it wrote
    this.table.tBodies[0].replaceChildren();
    this.table.hidden = true;
  }

  // What a step of a lane wrote, by its name.
  write(lane, name, text) {
    if (lane !== this.lane) return;
    this.written.set(name, []);
    for (const [, variable, value] of text.matchAll(/ ([A-Za-z_]\w*)=('[^']*'|\[(?:'[^']*'|[^\]'])*\]|[^,<>'[]+)/g)) {
      const row = this.row(variable);
      row.dataset.value = value.trim();
      setText(row.cells[1], row.dataset.value);
      this.written.get(name).push([variable, row.dataset.value]);
    }
  }

  row(variable) {
    if (!this.rows.has(variable)) {
      const row = this.table.tBodies[0].insertRow();
      const head = row.appendChild(make("th", "", variable));
      head.scope = "row";
      row.append(make("td"));
      this.rows.set(variable, row);
      this.table.hidden = false;
    }
    return this.rows.get(variable);
  }

  // The variables that the named steps wrote, with the values of then; all others with their last ones.
  light(lane, names) {
    if (lane !== this.lane) return;
    const read = new Map(names.flatMap((name) => this.written.get(name) ?? []));
    for (const [variable, row] of this.rows) {
      row.classList.toggle("lit", read.has(variable));
      setText(row.cells[1], read.get(variable) ?? row.dataset.value);
    }
  }
}
