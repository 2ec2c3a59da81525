/** One phase of a run: its verdict and why, its figures, and what it alone has to show. */

import type { Job, PhaseReport, PhaseResult } from "../api/types";
import { bytes, count, number, phaseName, seconds, tidy, words } from "../lib/format";
import { isBound, labelOf } from "../lib/measures";
import type { JobSeries } from "../live/series";
import { PhaseView } from "../phases/view";
import { Card, Interval, PlainTable, Prose } from "./parts";
import { VerdictTable, type Step } from "./pipeline";

export function PhaseDetails({ job, step, series, ends, reports }: {
  job: Job;
  step: Step;
  series: JobSeries;
  ends: PhaseResult[];
  reports: PhaseReport[];
}) {
  const end = ends.find((one) => one.phase === step.name && one.status !== "interrupted");
  const report = reports.find((one) => one.phase === step.name);
  const stages = series.segments.filter(
    (one) => one.phase === step.name && !one.stage.startsWith("gate"),
  );
  const judged = step.verdict ? (step.verdict.passed ? ": passed its gate" : ": refused by its gate") : "";
  const isQuiet = !end && !report && !stages.length && !step.verdict;
  return (
    <Card title={phaseName(step.name) + judged}>
      {isQuiet ? <p className="quiet">{step.state === "running" ? "It has begun, and nothing is measured yet." : job.state === "running" ? "Its turn comes later." : "It has not begun."}</p> : null}
      {step.summary ? <Summary text={step.summary} /> : null}
      {step.verdict?.reasons.map((reason) => <p key={reason} className="failure">{tidy(reason)}</p>)}
      {end ? <Facts end={end} /> : null}
      <PhaseView phase={step.name} series={series} report={report} end={end} />
      {step.verdict ? (
        <>
          <h3>What its gate measured</h3>
          <VerdictTable verdict={step.verdict} />
        </>
      ) : null}
      {report?.baseline ? <p className="quiet">Against a baseline of equal budget: <Prose text={report.baseline} />.</p> : null}
      {end && hasFigures(end.metrics ?? {}) ? (
        <details>
          <summary>All figures</summary>
          <Metrics metrics={end.metrics ?? {}} />
        </details>
      ) : null}
      {stages.length > 1 ? (
        <details>
          <summary>Time and last values of {stages.length} stages</summary>
          <PlainTable label="Stages" rows={stages.map(stageRow)} />
        </details>
      ) : null}
    </Card>
  );
}

/** A long summary is several sentences or parts: one line each. */
function Summary({ text }: { text: string }) {
  const parts = text.split("; ");
  if (parts.length < 3) return <p><Prose text={text} /></p>;
  return <ul className="summary">{parts.map((part) => <li key={part}><Prose text={part} /></li>)}</ul>;
}

function stageRow(stage: JobSeries["segments"][number]): Record<string, unknown> {
  const row: Record<string, unknown> = {
    stage: words(stage.stage),
    steps: stage.total ? `${number(stage.step)} of ${number(stage.total)}` : "",
    time: seconds(stage.ended - stage.began),
  };
  for (const [name, column] of stage.columns) {
    const { name: said, unit, factor } = labelOf(name);
    const last = column.values.findLast((value) => Number.isFinite(value));
    row[said + (unit ? `, ${unit}` : "")] = last === undefined ? undefined : last * factor;
  }
  return row;
}

/** Size, time, memory and speed, as far as they were measured. */
function Facts({ end }: { end: PhaseResult }) {
  const facts: [string, string][] = [
    ["Size as shipped", bytes(end.deployable_bytes ?? 0)],
    ["Time", end.seconds ? seconds(end.seconds) : ""],
    ["Memory at most", bytes(end.peak_memory_bytes ?? 0)],
    ["Speed", end.tokens_per_second ? `${count(end.tokens_per_second)} tokens per second` : ""],
  ];
  return (
    <dl className="facts">
      {facts.filter(([, value]) => value).map(([name, value]) => (
        <div key={name}><dt>{name}</dt><dd>{value}</dd></div>
      ))}
    </dl>
  );
}

const figuresOf = (metrics: Record<string, unknown>) =>
  Object.entries(metrics).flatMap(([name, value]) => {
    if (isBound(name)) return [];
    if (typeof value === "number") return [{ name, score: { value } }];
    const score = value as { value?: unknown } | null;
    return typeof score?.value === "number" ? [{ name, score: value as { value: number } }] : [];
  });

const hasFigures = (metrics: Record<string, unknown>) => figuresOf(metrics).length > 0;

/** Figures with their intervals; what is no figure stays out. */
export function Metrics({ metrics }: { metrics: Record<string, unknown> }) {
  const rows = figuresOf(metrics);
  if (!rows.length) return null;
  return (
    <dl className="facts">
      {rows.map(({ name, score }) => {
        const { name: said, unit, factor } = labelOf(name);
        return <div key={name}><dt>{said}</dt><dd><Interval score={score} unit={unit || undefined} factor={factor} /></dd></div>;
      })}
    </dl>
  );
}
