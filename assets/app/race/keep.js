// What a visitor takes along of the run in sight: a link, files. All of it is made here, of what the page holds.

const FILES = {
  trace: ["json", "application/json", ({ account }) => `${JSON.stringify(traceOf(account), null, 1)}\n`],
  steps: ["csv", "text/csv", ({ account }) => `\ufeff${tableOf(account)}`], // the mark tells spreadsheets that it is UTF-8
  bitmap: ["png", "image/png", ({ account, maps }) => bitmapOf(account, maps)],
  drawing: ["svg", "image/svg+xml", ({ account, maps }) => drawnPicture(account, maps)],
};

class Keep {
  // `shown()`: what is in sight, as {account, maps, task}; `account` null where nothing is.
  constructor(root, address, shown) {
    this.address = address;
    this.shown = shown;
    this.said = find(root, ".ss-said");
    this.files = root.querySelectorAll("[data-file]");
    find(root, ".ss-link").addEventListener("click", () => this.link());
    for (const button of this.files) button.addEventListener("click", () => this.save(button.dataset.file));
  }

  say(text) {
    this.said.textContent = text;
  }

  // There is something to save, or no longer.
  offer() {
    const { account } = this.shown();
    const isEmpty = !account || !Object.keys(account.lanes).length;
    for (const button of this.files) button.disabled = isEmpty;
  }

  // Of the visitor's own run in sight; else of what is in the form.
  async link() {
    const { account, task } = this.shown();
    const asked = account?.asked;
    const wanted = asked ? { task, text: account.text, model: asked.model ?? account.model, compare: asked.adapter } : this.address.asks.held(task);
    const { address, reason } = this.address.write(wanted);
    if (!address) return this.say(reason);
    const isCopied = await copyText(address);
    this.say(isCopied ? `Copied: a link that fills in ${quoted(wanted.text.trim())} and runs nothing by itself.` : "This browser does not let the page copy.");
  }

  async save(kind) {
    const [ending, type, made] = FILES[kind];
    const shown = this.shown();
    if (!shown.account) return;
    const url = URL.createObjectURL(new Blob([await made(shown)], { type }));
    const when = shown.account.began.toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-");
    const name = `selfspan-${shown.account.task}-${when}.${ending}`;
    const link = document.body.appendChild(Object.assign(make("a"), { href: url, download: name }));
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    this.say(`Saved as ${name}.`);
  }
}
