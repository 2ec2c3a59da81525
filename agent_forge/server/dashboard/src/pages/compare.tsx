/** Two checkpoints side by side: figures with their intervals, size, settings that differ. */

import { useCheckpoint, useManifest } from "../api/queries";
import type { Checkpoint, Score } from "../api/types";
import { bytes, number, phaseName, words } from "../lib/format";
import { link } from "../lib/route";
import { differences, flatten } from "../lib/settings";
import { Card, Interval, Table, Waiting } from "../ui/parts";

export function Compare({ query }: { query: URLSearchParams }) {
  const [idA, idB] = [query.get("a") ?? "", query.get("b") ?? ""];
  const a = useCheckpoint(idA);
  const b = useCheckpoint(idB);
  const settingsA = useManifest(idA);
  const settingsB = useManifest(idB);
  if (!a.data || !b.data) return <Waiting error={a.error ?? b.error} what="the two models" />;
  const rows = differences(flatten(settingsA.data?.config ?? {}), flatten(settingsB.data?.config ?? {}));
  return (
    <div className="page">
      <p className="crumbs"><a href={link("models")}>Models</a> › two compared</p>
      <h1>{a.data.name} and {b.data.name}</h1>
      <a className="button main" href={link("chat", "", { a: idA, b: idB })}>Chat with both</a>
      <Figures a={a.data} b={b.data} />
      <Card title="Settings that differ">
        {rows.length ? (
          <Table
            label="Settings that differ" head={["Setting", a.data.name, b.data.name]}
            rows={rows.map((row) => ({ key: row.key, cells: [<code key="k">{row.key}</code>, row.before, row.after] }))}
          />
        ) : <p className="quiet">{settingsA.data && settingsB.data ? "None." : "Loading …"}</p>}
      </Card>
    </div>
  );
}

function Figures({ a, b }: { a: Checkpoint; b: Checkpoint }) {
  const names = [...new Set([...Object.keys(a.metrics), ...Object.keys(b.metrics)])];
  const figures = names.flatMap((name) => {
    const [left, right] = [scoreOf(a.metrics[name]), scoreOf(b.metrics[name])];
    if (!left && !right) return [];
    return [{ key: name, cells: [words(name), left ? <Interval score={left} /> : "", right ? <Interval score={right} /> : "", said(left, right)] }];
  });
  const size = b.deployable_bytes && a.deployable_bytes ? `× ${number(b.deployable_bytes / a.deployable_bytes)}` : "";
  return (
    <Card title="Figures">
      <Table
        label="Figures" head={["", <a key="a" href={link("models", a.id)}>{a.name}</a>, <a key="b" href={link("models", b.id)}>{b.name}</a>, "Difference"]}
        rows={[
          { key: "phase", cells: ["Phase", phaseName(a.phase), phaseName(b.phase), ""] },
          { key: "size", cells: ["Size as shipped", bytes(a.deployable_bytes), bytes(b.deployable_bytes), size] },
          ...figures,
        ]}
      />
      <p className="quiet">Where two intervals overlap, the difference may be chance.</p>
    </Card>
  );
}

function scoreOf(value: unknown): Score | undefined {
  if (typeof value === "number") return { value };
  const score = value as Score | null | undefined;
  return typeof score?.value === "number" ? score : undefined;
}

function said(a: Score | undefined, b: Score | undefined): string {
  if (!a || !b) return "";
  const change = b.value - a.value;
  const text = `${change > 0 ? "+" : ""}${number(change)}`;
  if (a.low === undefined || a.high === undefined || b.low === undefined || b.high === undefined) return text;
  return a.low <= b.high && b.low <= a.high ? `${text}, intervals overlap` : `${text}, clear`;
}
