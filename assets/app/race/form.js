// The form: a bar that stays in sight while a run is under way, and opens again when somebody turns to it: to its text, or to
// the button that says what else there is. It stays a bar at a run's end: nothing that is being read may move then.

const ASKS = ".ss-ask";

let isBar = false;
let isBusy = false; // whether there is a run to be stopped

// What a change of the form hides loses the focus, and whoever uses a keyboard would begin at the top of the page: Stop
// gets it, or Run where there is nothing to stop.
function keepFocus(change) {
  const held = document.activeElement;
  const ask = held?.closest(ASKS);
  change();
  if (!ask || held.checkVisibility()) return;
  ask.querySelector(isBusy ? ".ss-stop" : '[id^="run"]')?.focus({ preventScroll: true });
}

function collapseForms(on = true) {
  isBar = on;
  keepFocus(() => {
    const forms = [...document.querySelectorAll(ASKS)];
    for (const ask of forms) {
      ask.classList.toggle("ss-bar", on);
      if (on) for (const box of ask.querySelectorAll("textarea")) box.scrollTop = 0; // the line that the bar shows
    }
    // Room below for the bar. Not by `:has` of the style sheet: that is worked out again for all that a run writes.
    const page = document.querySelector(".gradio-container");
    page?.classList.toggle("ss-barred", on && forms.length > 0);
    page?.classList.add("ss-used");
    if (on) page?.classList.add("ss-ran"); // from now on there is something to open
    markForms();
  });
}

const openForms = () => collapseForms(false);

// Every tab's Stop ends the newest run, whichever tab it belongs to.
function markStops(busy) {
  isBusy = busy;
  keepFocus(markForms);
}

// How the forms stand, on their buttons; on those of a form that gradio has just drawn, too.
function markForms() {
  for (const stop of document.querySelectorAll(".ss-stop")) stop.setAttribute("aria-disabled", String(!isBusy));
  for (const more of document.querySelectorAll(".ss-more")) more.setAttribute("aria-expanded", String(!isBar));
}

function pressStop() {
  if (isBusy) [...document.querySelectorAll(".ss-stop")].find((stop) => stop.checkVisibility())?.click();
}

// gradio draws a tab's form when the tab is first opened. Returns whether there is one yet.
function watchForms() {
  if (!document.querySelector(".ss-stop")) return false;
  markForms();
  const tabs = document.querySelector("#tasks");
  if (tabs) new MutationObserver(markForms).observe(tabs, { childList: true, subtree: true });
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

document.addEventListener("click", ({ target }) => {
  const ask = target.closest?.(".ss-more")?.closest(ASKS);
  if (!ask) return;
  collapseForms(!isBar);
  if (!isBar) ask.scrollIntoView({ block: "nearest" });
});
