/** What a run has made and how good it is, in one line that a stranger reads. */

import type { Results } from "../api/types";
import { bytes, number } from "./format";

const BITS = "bits per byte";
const TASKS: Record<string, string> = { tools: "tool calls" };

/** "0.386 MB, 14.8 times smaller than what it began with; 84.4% of tool calls right"; "" if unknown. */
export function headline(results: Results): string {
  const done = (results.phases ?? [results]).filter((one) => one.status === "done" || one.status === "succeeded");
  const last = done.at(-1);
  const size = last?.deployable_bytes ?? 0;
  if (!last || !size) return "";
  const first = done[0]?.deployable_bytes ?? 0;
  const smaller = done.length > 1 && first > 1.5 * size ? `, ${number(first / size)} times smaller than what it began with` : "";
  const chain = Object.keys(last.verdict?.chain ?? {}).length ? last.verdict?.chain : last.verdict?.retentions;
  const skills = Object.entries(last.verdict?.scores ?? {}).flatMap(([task, score]) => {
    const name = TASKS[task] ?? task;
    if (score.at_chance) return [];
    if (score.metric !== BITS) return [`${number(100 * score.value)}% of ${name} right`];
    const kept = chain?.[task];
    return kept ? [`keeps ${number(100 * kept.ratio)}% of ${name}`] : [];
  });
  return [`${bytes(size)}${smaller}`, ...skills].join("; ");
}
