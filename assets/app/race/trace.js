// A run as files: all of it as JSON, its steps as a table. Text of users and models is data there, too.

const TRACE_FORMAT = "selfspan trace, version 1";
const LANE_ORDER = ["dense", "sparse"];
const ROW_KINDS = ["body", "header", "broken"]; // the order of read_rows.py
const STEP_COLUMNS = ["lane", "step", "name", "reads", "working", "result", "intervals", "tokens", "drafted", "cached_tokens_read", "malformed"];

const pieceOf = ([text, kind, step, drafted]) => ({ text, kind: KINDS[kind], step, drafted: drafted === 1 });

// Tokens that read the same: each of them `reads`, and all from `own` up to itself.
function rowsOf(row) {
  const { step, start, kind, own, reads, lengths, count } = unpack(row);
  const drafted = lengths.reduce((sum, length, i) => sum + (i % 2 ? length : 0), 0);
  return { step, start, count, drafted, kind: ROW_KINDS[kind], reads, own };
}

// Cached tokens that the rows of a run read, each token its own key included.
function readBy({ start, count, reads, own }) {
  const before = reads.reduce((sum, [from, to]) => sum + to - from, 0);
  return count * (before + start - own) + (count * (count + 1)) / 2;
}

const named = (account, lane) => lane.model ?? account.model ?? null;

// The run as one object. Its state is the run's own: that of the tab may be of an input that came to no run.
function traceOf(account) {
  const { start, asked, end, recorded } = account;
  const { text, ...options } = asked ?? {};
  const lanes = start.lanes.map(({ id, ...lane }) => {
    const { items = [], rows = [], figures = {} } = account.lanes[id] ?? {};
    const { reading, phase, ...measured } = figures;
    const steps = account.steps(id).map(({ isResult, ...step }) => step);
    const told = { ...lane, model: named(account, lane), ...measured, ...(end?.lanes[id] ?? {}) };
    return [id, { ...told, steps, pieces: items.map(pieceOf), read: rows.map(rowsOf) }];
  });
  const { lanes: _, kind, ...comparison } = end ?? {};
  const { lanes: __, kind: ___, input, ...told } = start;
  return {
    format: TRACE_FORMAT,
    state: end ? "done" : account.halted || "running",
    began: recorded ? null : account.began.toISOString(),
    ...(recorded ? { recorded } : {}),
    input: account.text,
    understood: input,
    options,
    ...told,
    lanes: Object.fromEntries(lanes),
    comparison: end ? comparison : null,
  };
}

// A spreadsheet takes a cell that begins with one of these for a formula, unless it is a number.
const isFormula = (text) => /^[=+\-@\t\r\n]/.test(text) && !/^[+-]?\d+(\.\d+)?$/.test(text);

function cell(value) {
  const text = value === null ? "" : String(value);
  const harmless = typeof value === "string" && isFormula(text) ? `'${text}` : text;
  return /[",\r\n]/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless;
}

// A line per step of each lane. Intervals are of cache positions, without their ends: [0,6).
function tableOf(account) {
  const lines = [STEP_COLUMNS];
  for (const lane of LANE_ORDER) {
    const rows = (account.lanes[lane]?.rows ?? []).map(rowsOf);
    for (const step of account.steps(lane)) {
      const own = rows.filter((row) => row.step === step.index);
      const sum = (value) => own.reduce((total, row) => total + value(row), 0);
      const body = own.filter((row) => row.kind === "body");
      const intervals = body.flatMap(({ reads, own: from, start, count }) => [...reads, [from, start + count]]);
      const texts = [step.name, step.reads.join(" "), step.working.trim(), step.result.trim()];
      const spans = [...new Set(intervals.map(([from, to]) => `[${from},${to})`))].join(" ");
      const figures = [sum((row) => row.count), sum((row) => row.drafted), sum(readBy), step.malformed ? 1 : 0];
      lines.push([lane === "dense" ? "dense" : "self-selected", step.index + 1, ...texts, spans, ...figures]);
    }
  }
  return lines.map((line) => `${line.map(cell).join(",")}\r\n`).join("");
}

// A lane's answer and worked steps, a line each, for the clipboard.
function wordsOf(account, lane) {
  const answer = account.end?.lanes[lane]?.answer ?? null;
  const lines = account.steps(lane).map((step) => `${step.working}${step.result}`.trim());
  if (account.start.view.pane === "document") return lines.join("\n");
  if (account.start.view.pane === "code") return [account.start.canonical, "", ...lines, "", answer ?? "no answer"].join("\n");
  return [`${account.start.canonical ?? account.start.input} = ${answer ?? "no answer"}`, "", ...lines].join("\n");
}
