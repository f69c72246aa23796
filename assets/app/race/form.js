// The form: a bar that stays in sight while a run is under way, and opens again when somebody turns to it. It stays a bar
// at a run's end: nothing that is being read may move then.

const ASKS = ".ss-ask";

function collapseForms(on = true) {
  const forms = [...document.querySelectorAll(ASKS)];
  for (const ask of forms) ask.classList.toggle("ss-bar", on);
  // Room below for the bar. Not by `:has` of the style sheet: that is worked out again for all that a run writes.
  document.querySelector(".gradio-container")?.classList.toggle("ss-barred", on && forms.length > 0);
}

const openForms = () => collapseForms(false);

let isBusy = false; // whether there is a run to be stopped

// Every tab's Stop ends the newest run, whichever tab it belongs to.
function markStops(busy) {
  isBusy = busy;
  for (const stop of document.querySelectorAll(".ss-stop")) stop.setAttribute("aria-disabled", String(!busy));
}

function pressStop() {
  if (isBusy) [...document.querySelectorAll(".ss-stop")].find((stop) => stop.checkVisibility())?.click();
}

// gradio draws a tab's form when the tab is first opened. Returns whether there is one yet.
function watchForms() {
  if (!document.querySelector(".ss-stop")) return false;
  markStops(isBusy);
  const tabs = document.querySelector("#tasks");
  if (tabs) new MutationObserver(() => markStops(isBusy)).observe(tabs, { childList: true, subtree: true });
  return true;
}

// A slow browser may run this before the first form is drawn.
if (!watchForms()) {
  const drawing = new MutationObserver(() => watchForms() && drawing.disconnect());
  drawing.observe(document.body, { childList: true, subtree: true });
}

// On the document: gradio may draw the form anew.
function turnTo({ target }) {
  const ask = target.closest?.(ASKS);
  if (!ask?.classList.contains("ss-bar") || !target.matches("textarea")) return;
  openForms();
  ask.scrollIntoView({ block: "nearest" });
}

for (const kind of ["focusin", "click", "input"]) document.addEventListener(kind, turnTo);
