// Long prompts on a CPU, by what the lanes' ticks say: how much of all of them is processed, and how long the rest takes as
// things went so far. A lane that has not begun is counted like the others; null: none is being read.
function readOf(lanes, sizes) {
  const all = Object.entries(lanes).map(([lane, { phase, prompt_done: told, elapsed_s: taken }]) => {
    const done = phase === "prefill" ? (told ?? 0) : sizes[lane];
    return { size: sizes[lane], done, taken, isTold: told !== undefined };
  });
  const told = all.filter(({ isTold }) => isTold);
  if (!told.length) return null;
  const sum = (ones, value) => ones.reduce((total, one) => total + value(one), 0);
  const [size, done] = [sum(all, (one) => one.size), sum(all, (one) => one.done)];
  const perToken = sum(told, (one) => one.taken) / sum(told, (one) => one.done);
  return { share: done / size, left: `about ${Math.max(1, Math.round(perToken * (size - done)))} s left` };
}
