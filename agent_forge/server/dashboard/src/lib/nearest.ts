/** "Did you mean": the known name that takes the fewest changes. */

export function nearest(name: string, known: readonly string[]): string {
  let best = "";
  let fewest = Math.max(2, Math.floor(name.length / 3)) + 1;
  for (const one of known) {
    const last = one.slice(one.lastIndexOf(".") + 1);
    const changes = Math.min(distance(name, one), distance(name, last));
    if (changes < fewest) {
      best = one;
      fewest = changes;
    }
  }
  return best;
}

function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i += 1) {
    const next = [i];
    for (let j = 1; j <= b.length; j += 1) {
      const swap = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(swap, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}
