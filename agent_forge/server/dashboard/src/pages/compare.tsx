/** Two checkpoints side by side: figures with their intervals, size, settings that differ. */

import { useCheckpoint, useEnds, useManifest } from "../api/queries";
import type { Checkpoint, Score } from "../api/types";
import { bytes, number, phaseName, taskName, words } from "../lib/format";
import { isBound, labelOf } from "../lib/measures";
import { link } from "../lib/route";
import { differences, flatten } from "../lib/settings";
import { Card, Command, GateScore, Interval, isShare, Table, Waiting } from "../ui/parts";

export function Compare({ query }: { query: URLSearchParams }) {
  const [idA, idB] = [query.get("a") ?? "", query.get("b") ?? ""];
  const a = useCheckpoint(idA);
  const b = useCheckpoint(idB);
  const settingsA = useManifest(idA);
  const settingsB = useManifest(idB);
  if (!a.data || !b.data) return <Waiting error={a.error ?? b.error} what="the two models" />;
  const [left, right] = [flatten(settingsA.data?.config ?? {}), flatten(settingsB.data?.config ?? {})];
  const all = differences(left, right);
  // Different phases have settings of their own, which say little beside each other.
  const rows = all.filter((row) => row.key in left && row.key in right);
  const single = all.length - rows.length;
  return (
    <div className="page">
      <p className="crumbs"><a href={link("models")}>Models</a> › two compared</p>
      <h1>{a.data.name} and {b.data.name}</h1>
      <a className="button main" href={link("chat", "", { a: idA, b: idB })}>Chat with both</a>
      <Figures a={a.data} b={b.data} />
      <Card title="Settings that differ">
        {rows.length ? (
          <Table
            label="Settings that differ" head={["Setting", a.data.name, b.data.name]} stack={["", a.data.name, b.data.name]}
            rows={rows.map((row) => ({ key: row.key, cells: [<code key="k">{row.key}</code>, <span key="a" className="value">{row.before}</span>, <span key="b" className="value">{row.after}</span>] }))}
          />
        ) : <p className="quiet">{settingsA.data && settingsB.data ? "None that both have." : "Loading …"}</p>}
        {single ? <p className="quiet">{single} settings belong to one of the two phases alone; each model's page has them.</p> : null}
      </Card>
      <Command text={`forge compare ${a.data.name} ${b.data.name}`} note="the same in a terminal; put the checkpoints' directories in the place of their names" />
    </div>
  );
}

function Figures({ a, b }: { a: Checkpoint; b: Checkpoint }) {
  const ends = useEnds();
  const [endA, endB] = [ends.get(a.id), ends.get(b.id)];
  const [fast, faster] = [endA?.tokens_per_second, endB?.tokens_per_second];
  const [scoresA, scoresB] = [endA?.verdict?.scores ?? {}, endB?.verdict?.scores ?? {}];
  const tasks = [...new Set([...Object.keys(scoresA), ...Object.keys(scoresB)])];
  const own = [...new Set([...Object.keys(a.metrics), ...Object.keys(b.metrics)])]
    .filter((name) => !isBound(name) && (scoreOf(a.metrics[name]) || scoreOf(b.metrics[name])));
  const head = ["", <a key="a" href={link("models", a.id)}>{a.name}</a>, <a key="b" href={link("models", b.id)}>{b.name}</a>, "Difference"];
  return (
    <Card title="Size, speed, quality">
      <Table
        label="Size, speed, quality" head={head} stack={["", a.name, b.name, "Difference"]}
        rows={[
          { key: "phase", cells: ["Phase", phaseName(a.phase), phaseName(b.phase), ""] },
          { key: "size", cells: ["Size as shipped", bytes(a.deployable_bytes), bytes(b.deployable_bytes), times(a.deployable_bytes, b.deployable_bytes, "smaller", "larger")] },
          ...(fast || faster ? [{ key: "speed", cells: ["Tokens per second", fast ? number(fast) : "", faster ? number(faster) : "", times(faster, fast, "faster", "slower")] }] : []),
          ...tasks.map((task) => {
            const [left, right] = [scoresA[task], scoresB[task]];
            return { key: task, cells: [words(taskName(task)), left ? <GateScore score={left} /> : "", right ? <GateScore score={right} /> : "", scoreChange(left, right)] };
          }),
        ]}
      />
      <p className="quiet">
        {tasks.length ? "Scores are those of the gates, with 95% intervals. Where two intervals overlap, the difference may be chance; " : "No run that is known here has scored them; "}
        <code>forge compare</code> measures both on the same items.
      </p>
      {own.length ? (
        <details open={!tasks.length}>
          <summary>What the phases measured besides</summary>
          <Table label="Other figures" head={head} stack={["", a.name, b.name, "Difference"]} rows={own.map((name) => ownFigure(name, a, b))} />
        </details>
      ) : null}
    </Card>
  );
}

function ownFigure(name: string, a: Checkpoint, b: Checkpoint) {
  const [left, right] = [scoreOf(a.metrics[name]), scoreOf(b.metrics[name])];
  const { name: said, unit, factor } = labelOf(name);
  const shown = (score: Score | undefined) => (score ? <Interval score={score} unit={unit || undefined} factor={factor} /> : "");
  return { key: name, cells: [said, shown(left), shown(right), change(left, right, factor)] };
}

/** "14.8 times smaller"; "" where one is not known or both are alike. */
function times(a: number | undefined, b: number | undefined, more: string, less: string): string {
  if (!a || !b) return "";
  const ratio = a / b;
  if (ratio > 0.95 && ratio < 1.05) return "alike";
  return ratio > 1 ? `${number(ratio)} times ${more}` : `${number(1 / ratio)} times ${less}`;
}

function scoreOf(value: unknown): Score | undefined {
  if (typeof value === "number") return { value };
  const score = value as Score | null | undefined;
  return typeof score?.value === "number" ? score : undefined;
}

function scoreChange(a: Score | undefined, b: Score | undefined): string {
  if (a?.at_chance && b?.at_chance) return "both at chance";
  return change(a, b, isShare(a) ? 100 : 1);
}

function change(a: Score | undefined, b: Score | undefined, factor: number): string {
  if (!a || !b) return "";
  const by = factor * (b.value - a.value);
  const text = `${by > 0 ? "+" : ""}${number(by)}`;
  if (a.low === undefined || a.high === undefined || b.low === undefined || b.high === undefined) return text;
  return a.low <= b.high && b.low <= a.high ? `${text}, intervals overlap` : `${text}, clear`;
}
