// Figures in words, and nodes with text in them. All files of this folder are one function's body; see
// selfspan_core/serve/page_files.py. All text reaches the page through textContent and Text.appendData, never through a
// template or innerHTML.

const find = (root, selector) => root.querySelector(selector);
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
// Text that changes often: the same node keeps it, so that none is taken out of the page and another put in.
const setText = (node, text) => {
  const only = node.childNodes.length === 1 ? node.firstChild : null;
  if (only?.nodeType !== Node.TEXT_NODE) node.textContent = text;
  else if (only.data !== text) only.data = text;
};
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const rounded = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));
const whole = (value) => Math.round(value).toLocaleString("en");
const seconds = (value) => {
  if (value < 59.95) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  return `${Math.floor(whole / 60)}m ${whole % 60}s`;
};
const percent = (share) => {
  const digits = share < 0.1 || (share > 0.99 && share < 0.9995) ? 1 : 0;
  return `${(100 * share).toFixed(digits)}\u202f%`;
};
const capital = (word) => word[0].toUpperCase() + word.slice(1);
const several = (word) => (word.endsWith("y") ? `${word.slice(0, -1)}ies` : `${word}s`);
const times = (speedup) => (speedup && Number.isFinite(speedup) ? `${rounded(speedup)}×` : "–");
const brief = (text, most = 12) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const list = (names) => (names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`);

// Whether a pointer was really moved: lists that scroll and figures that grow under a resting mouse send events, too.
const moved = (() => {
  const at = ({ clientX, clientY }) => `${clientX} ${clientY}`;
  let last = null;
  let isReal = false;
  const note = (event) => {
    isReal = at(event) !== last;
    last = at(event);
  };
  document.addEventListener("pointermove", note, { capture: true, passive: true });
  return (event) => (event.type === "pointermove" ? isReal : at(event) !== last);
})();
