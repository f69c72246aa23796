// A recorded run, played at its own pace until the visitor runs something: {machine, date, start, frames, end}, of which a
// frame is [milliseconds of the lanes' clock, what its tick added].

class Player {
  // `show` is told of payloads, as if they came from the server.
  constructor(root, recorded, show) {
    this.recorded = recorded;
    this.show = show;
    find(root, ".ss-replay").addEventListener("click", () => this.play());
    const { title, device } = recorded.start;
    const where = `Recorded ${recorded.date} on ${recorded.machine}`;
    this.start = { ...recorded.start, title: where, device: `${device} · ${title}` };
    this.isOver = false;
    this.number = 0; // of this time that it is played
  }

  play() {
    if (this.isOver) return;
    this.begin();
    const [number, began] = [this.number, performance.now()];
    let next = 0;
    const draw = (now) => {
      if (this.isOver || number !== this.number) return;
      next = this.upTo(next, now - began);
      if (next < this.recorded.frames.length) requestAnimationFrame(draw);
      else this.end();
    };
    requestAnimationFrame(draw);
  }

  // The whole run at once, where nothing is to move.
  rest() {
    this.begin();
    this.upTo(0, Infinity);
    this.end();
  }

  // The visitor has asked for a run.
  stop() {
    this.isOver = true;
  }

  // The run that the visitor asked for was taken back: the recorded one, which it had cut off, is there in full.
  again() {
    this.isOver = false;
    this.rest();
  }

  begin() {
    this.number += 1;
    this.tell({ start: this.start });
  }

  // Frames from index `next` on that are due; returns the index of the first that is not.
  upTo(next, elapsed) {
    const { frames } = this.recorded;
    let due = next;
    while (due < frames.length && frames[due][0] <= elapsed) due += 1;
    for (let i = next; i < due; i++) this.tell({ lanes: frames[i][1] }, i === due - 1);
    return due;
  }

  end() {
    this.tell({ end: this.recorded.end, lanes: this.recorded.frames.at(-1)[1] });
  }

  tell(payload, draw = true) {
    this.show({ run: `recorded ${this.number}`, kind: "recorded", ...payload }, draw);
  }
}
