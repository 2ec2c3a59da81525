/** Every checkpoint: what it is, how large, from which phase; two of them can be compared. */

import { useState } from "react";
import { useCheckpoints, useEnds } from "../api/queries";
import type { Checkpoint, PhaseResult } from "../api/types";
import { ago, bytes, count, phaseName } from "../lib/format";
import { skillsOf } from "../lib/headline";
import { link } from "../lib/route";
import { Card, Command, Table, Waiting } from "../ui/parts";

export function Models() {
  const models = useCheckpoints();
  const ends = useEnds();
  const [chosen, setChosen] = useState<string[]>([]);
  const [search, setSearch] = useState("");
  if (!models.data) return <Waiting error={models.error} what="the models" />;
  const text = search.toLowerCase();
  const shown = models.data.filter((one) => `${one.name} ${one.phase} ${one.role} ${one.id}`.toLowerCase().includes(text));
  const toggle = (id: string) =>
    setChosen((old) => (old.includes(id) ? old.filter((one) => one !== id) : [...old.slice(-1), id]));
  const [a, b] = chosen;
  return (
    <div className="page">
      <h1>Models</h1>
      <Card
        title={`${models.data.length} ${models.data.length === 1 ? "checkpoint" : "checkpoints"}`}
        aside={
          a && b ? <a className="button main" href={link("compare", "", { a, b })}>Compare the two</a>
            : <span className="quiet">Tick two to compare them</span>
        }
      >
        {models.data.length > 8 ? (
          <label>Find <input type="search" value={search} onChange={(event) => setSearch(event.target.value)} /></label>
        ) : null}
        {models.data.length ? (
          <Table
            label="Checkpoints" stack={["", "", "Phase", "Size", "How good", "Made", "State"]}
            head={[<span key="t" className="off-screen">Compare</span>, "Name", "Phase", "Size as shipped", "How good", "Made", "State"]}
            rows={shown.slice(0, 300).map((one) => ({ key: one.id, cells: cells(one, ends.get(one.id), chosen, toggle) }))}
          />
        ) : (
          <p>There is no model yet. A run makes one; a model of yours is brought in by an import.</p>
        )}
        {shown.length > 300 ? <p className="quiet">The newest 300 of {shown.length} are shown; type a name to find others.</p> : null}
      </Card>
      <Command text="forge list outputs" note="the same in a terminal" />
    </div>
  );
}

function cells(one: Checkpoint, end: PhaseResult | undefined, chosen: string[], toggle: (id: string) => void) {
  return [
    <input key="c" type="checkbox" aria-label={`Compare ${one.name} ${one.id.slice(0, 8)}`} checked={chosen.includes(one.id)} onChange={() => toggle(one.id)} />,
    <span key="n"><a href={link("models", one.id)}>{one.name}</a> <span className="quiet">{one.id.slice(0, 8)}</span></span>,
    phaseName(one.phase) + (one.role && !["model", one.name].includes(one.role) ? `, ${one.role}` : ""),
    bytes(one.deployable_bytes),
    end ? skillsOf(end).join(", ") : "",
    ago(one.time),
    one.status === "ok" ? (one.encrypted ? "whole, encrypted" : "whole") : <span key="s" className="bad">{one.status}{one.error ? `: ${one.error}` : ""}</span>,
  ];
}

export function parameters(one: Checkpoint): string {
  const value = one.metrics.parameters as number | { value: number } | undefined;
  const plain = typeof value === "object" ? value?.value : value;
  return typeof plain === "number" ? count(plain) : "";
}
