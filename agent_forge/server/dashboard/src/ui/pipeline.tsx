/** The phases of a run in a row: state, verdict with its interval, and the reason of a refusal. */

import type { Job, Pipeline, Results, Verdict } from "../api/types";
import { measured, number, percent, PHASE_ORDER, phaseName, taskName, tidy, words } from "../lib/format";
import type { JobSeries } from "../live/series";
import { GateScore, State } from "./parts";

export interface Step {
  name: string;
  state: string;
  percent: number;
  verdict: Verdict | null;
  summary: string;
}

/** Join what the pipeline, the results and the live events know of each phase. */
export function stepsOf(job: Job, pipeline: Pipeline | undefined, series: JobSeries): Step[] {
  const results = job.results as Results;
  const ends = new Map((results.phases ?? [results]).map((one) => [one.phase ?? job.command, one]));
  const parts = pipeline?.phases ?? [
    { name: job.command, state: job.state as string, percent: job.progress },
  ];
  return parts.map((part) => {
    const end = ends.get(part.name);
    const live = series.newest?.phase === part.name ? series.newest.percent : undefined;
    const isOver = ["done", "succeeded", "rejected", "failed"].includes(part.state);
    return {
      name: part.name,
      state: part.state,
      percent: isOver ? 100 : Math.max(part.percent, live ?? 0),
      verdict: end?.verdict ?? series.verdicts.get(part.name) ?? null,
      summary: end?.summary || series.summaries.get(part.name) || "",
    };
  });
}

/** onPick: shows a phase; without it the phases cannot be chosen. */
export function PipelineView({ steps, picked = "", onPick }: {
  steps: Step[];
  picked?: string;
  onPick?: (name: string) => void;
}) {
  return (
    <ol className={`pipeline of-${steps.length}`} aria-label="Phases">
      {steps.map((step) => (
        <li key={step.name} className={`${step.state}${step.name === picked ? " picked" : ""}`}>
          <span className="number" aria-hidden="true">
            {PHASE_ORDER.indexOf(step.name) + 1 || "·"}
          </span>
          {onPick ? (
            <button type="button" className="pick" aria-pressed={step.name === picked} onClick={() => onPick(step.name)}>
              {phaseName(step.name)}
            </button>
          ) : <strong>{phaseName(step.name)}</strong>}
          <State state={step.state} />
          {step.state === "running" ? (
            <span className="bar">
              <progress max={100} value={step.percent} aria-label={`${phaseName(step.name)}, percent`} />{" "}
              {percent(step.percent)}
            </span>
          ) : null}
          <VerdictLine verdict={step.verdict} />
        </li>
      ))}
    </ol>
  );
}

/** The worst of what a gate looked at, in one line. */
export function VerdictLine({ verdict }: { verdict: Verdict | null }) {
  if (!verdict) return null;
  if (!verdict.passed) {
    return <span className="reason">{tidy(verdict.reasons[0] ?? "refused without a reason")}</span>;
  }
  const gated = Object.values(verdict.retentions ?? {}).filter((one) => one.gated);
  const worst = gated.sort((a, b) => a.ratio - b.ratio)[0];
  if (worst) {
    return (
      <span className="keeps">
        keeps {measured(100 * worst.ratio)}% of {taskName(worst.task)}
        <span className="quiet">
          {" "}
          [{measured(100 * worst.low)}, {measured(100 * worst.high)}]
        </span>
      </span>
    );
  }
  const text = verdict.scores?.text;
  return text ? (
    <span className="keeps">
      {measured(text.value)} {text.metric}
      {text.low !== undefined && text.high !== undefined ? (
        <span className="quiet">
          {" "}
          [{measured(text.low)}, {measured(text.high)}]
        </span>
      ) : null}
    </span>
  ) : (
    <span className="keeps">passed</span>
  );
}

/** Every task that a gate scored. */
export function VerdictTable({ verdict }: { verdict: Verdict }) {
  const tasks = Object.entries(verdict.scores ?? {});
  if (!tasks.length) return null;
  const hasParent = Object.keys({ ...verdict.retentions, ...verdict.parent_scores }).length > 0;
  return (
    <div className="scroll" tabIndex={0} role="region" aria-label="Scores of the gate">
      <table className="stack">
        <thead>
          <tr>
            <th scope="col">Task</th>
            <th scope="col">Score, 95% interval</th>
            {hasParent ? <><th scope="col">Its parent</th><th scope="col">Kept of it</th><th scope="col">Must keep</th></> : null}
          </tr>
        </thead>
        <tbody>
          {tasks.map(([task, score]) => {
            const kept = verdict.retentions?.[task];
            const before = verdict.parent_scores?.[task];
            return (
              <tr key={task}>
                <th scope="row">{words(taskName(task))}</th>
                <td data-head="Score"><GateScore score={score} /></td>
                {hasParent ? (
                  <>
                    <td data-head="Its parent">{before ? <GateScore score={before} /> : ""}</td>
                    <td data-head="Kept of it">
                      {kept?.at_chance ? "at chance" : kept ? (
                        <>
                          {measured(100 * kept.ratio)}%{" "}
                          <span className="quiet">
                            [{measured(100 * kept.low)}, {measured(100 * kept.high)}]
                          </span>
                        </>
                      ) : (
                        ""
                      )}
                    </td>
                    <td data-head="Must keep">{kept?.gated ? `${number(100 * kept.limit)}%` : kept ? "not gated" : ""}</td>
                  </>
                ) : null}
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}
