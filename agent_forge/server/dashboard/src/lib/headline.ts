/** What a run has made and how good it is, in one line that a stranger reads. */

import type { PhaseResult, Results } from "../api/types";
import { bytes, measured, number, taskName } from "./format";

const BITS = "bits per byte";

/** "0.386 MB, 14.8 times smaller than what it began with; 84.4% of tool calls right"; "" if unknown. */
export function headline(results: Results): string {
  const done = (results.phases ?? [results]).filter((one) => one.status === "done" || one.status === "succeeded");
  const last = done.at(-1);
  const size = last?.deployable_bytes ?? 0;
  if (!last || !size) return "";
  const first = done[0]?.deployable_bytes ?? 0;
  const smaller = done.length > 1 && first > 1.5 * size ? `, ${number(first / size)} times smaller than what it began with` : "";
  return [`${bytes(size)}${smaller}`, ...skillsOf(last)].join("; ");
}

/** What the result of a phase can do, as its gate measured it: ["84.4% of tool calls right"]. */
export function skillsOf(end: Partial<PhaseResult>): string[] {
  const chain = Object.keys(end.verdict?.chain ?? {}).length ? end.verdict?.chain : end.verdict?.retentions;
  return Object.entries(end.verdict?.scores ?? {}).flatMap(([task, score]) => {
    if (score.at_chance) return [];
    if (score.metric !== BITS) return [`${measured(100 * score.value)}% of ${taskName(task)} right`];
    const kept = chain?.[task];
    return kept ? [`keeps ${measured(100 * kept.ratio)}% of ${taskName(task)}`] : [];
  });
}
