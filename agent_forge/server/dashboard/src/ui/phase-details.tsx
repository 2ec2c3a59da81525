/** What a phase alone has to show: its population, its curve, its stages, its figures. */

import type { PhaseResult } from "../api/types";
import { bytes, count, number, phaseName, seconds, words } from "../lib/format";
import type { JobSeries } from "../live/series";
import { Card, Interval, PlainTable } from "./parts";
import { VerdictTable, type Step } from "./pipeline";

export function PhaseDetails({ series, ends, steps }: {
  series: JobSeries;
  ends: PhaseResult[];
  steps: Step[];
}) {
  return steps.map((step) => {
    const table = series.tables.get(step.name);
    const stages = series.segments.filter(
      (one) => one.phase === step.name && !one.stage.startsWith("gate"),
    );
    const end = ends.find((one) => one.phase === step.name && one.status !== "interrupted");
    if (!table && stages.length < 2 && !end && !step.verdict) return null;
    const judged = step.verdict ? (step.verdict.passed ? ": passed its gate" : ": refused by its gate") : "";
    return (
      <Card key={step.name} title={phaseName(step.name) + judged}>
        {step.summary ? <p>{step.summary}</p> : null}
        {step.verdict?.reasons.map((reason) => <p key={reason} className="failure">{reason}</p>)}
        {end ? <Facts end={end} /> : null}
        {table ? (
          <>
            <h3>{words(table.name)} now</h3>
            <PlainTable rows={table.rows} label={words(table.name)} />
          </>
        ) : null}
        {step.verdict ? <VerdictTable verdict={step.verdict} /> : null}
        {end && hasFigures(end.metrics ?? {}) ? (
          <details>
            <summary>All figures</summary>
            <Metrics metrics={end.metrics ?? {}} />
          </details>
        ) : null}
        {stages.length > 1 ? (
          <details>
            <summary>{stages.length} stages</summary>
            <PlainTable label="Stages" rows={stages.map(stageRow)} />
          </details>
        ) : null}
      </Card>
    );
  });
}

function stageRow(stage: JobSeries["segments"][number]): Record<string, unknown> {
  const row: Record<string, unknown> = {
    stage: stage.stage,
    steps: `${number(stage.steps.at(-1) ?? 0)} of ${number(stage.total)}`,
    time: seconds((stage.times.at(-1) ?? 0) - (stage.times[0] ?? 0)),
  };
  for (const [name, column] of stage.values) {
    const values = column.filter((value) => value !== null && Number.isFinite(value));
    row[name] = values.at(-1);
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
      {rows.map(({ name, score }) => (
        <div key={name}><dt>{words(name)}</dt><dd><Interval score={score} /></dd></div>
      ))}
    </dl>
  );
}
