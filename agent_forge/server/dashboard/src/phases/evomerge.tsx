/** EvoMerge: who is alive, what they gain and lose, and the recipe that won. */

import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { request } from "../api/client";
import { link } from "../lib/route";
import { PlainTable } from "../ui/parts";
import { Scatter, type Dot } from "../ui/scatter";
import { figure, table, text, type Row } from "./rows";
import type { ViewProps } from "./view";

const NOT_TASKS = ["#", "fitness", "generation"];

export function EvoMergeView({ series, report, end }: ViewProps) {
  const live = series.tables.get("evomerge")?.rows ?? [];
  const rows = live.length ? live : table(report, "Population");
  const tasks = Object.keys(rows[0] ?? {}).filter((name) => !NOT_TASKS.includes(name) && figure(rows[0], name) !== undefined);
  return (
    <>
      {rows.length ? (
        <>
          <h3>{live.length && !end ? "Population now" : "Population at the end"}</h3>
          {tasks.length > 1 ? <Front rows={rows} tasks={tasks} /> : null}
          <PlainTable rows={rows} label="Population" />
          <p className="quiet">A task's column is the logarithm of what the merge keeps of it: 0 is the trunk, above 0 is better.</p>
        </>
      ) : null}
      {end?.checkpoint_id ? <Recipe id={end.checkpoint_id} /> : null}
      <Generations rows={table(report, "Generations")} />
    </>
  );
}

/** The members on two tasks; those that nobody beats in both are the front. */
function Front({ rows, tasks }: { rows: Row[]; tasks: string[] }) {
  const [x, setX] = useState("text");
  const [y, setY] = useState("tools");
  const across = tasks.includes(x) ? x : (tasks[0] ?? "");
  const up = tasks.includes(y) && y !== across ? y : (tasks.find((one) => one !== across) ?? "");
  const points = rows.map((row) => ({ row, x: figure(row, across) ?? 0, y: figure(row, up) ?? 0 }));
  const dots: Dot[] = points.map((one) => ({
    x: one.x, y: one.y, name: `${text(one.row, "technique")} from ${text(one.row, "from")}`,
    look: figure(one.row, "#") === 1 ? "main" : beaten(one, points) ? "quiet" : "front",
  }));
  const pick = (name: string, value: string, set: (value: string) => void) => (
    <label>
      {name}{" "}
      <select value={value} onChange={(event) => set(event.target.value)}>
        {tasks.map((one) => <option key={one}>{one}</option>)}
      </select>
    </label>
  );
  return (
    <figure>
      <div className="chips">{pick("Across", across, setX)}{pick("Up", up, setY)}</div>
      <Scatter label={`Population by ${across} and ${up}`} xLabel={`${across}, log of what is kept`} yLabel={up} dots={dots} joined={["front", "main"]} />
      <figcaption className="quiet">The large point is the fittest; joined points are the Pareto front, which no member beats in both.</figcaption>
    </figure>
  );
}

interface Place { x: number; y: number }

const beaten = (one: Place, all: Place[]) =>
  all.some((other) => other.x >= one.x && other.y >= one.y && (other.x > one.x || other.y > one.y));

function Generations({ rows }: { rows: Row[] }) {
  if (rows.length < 2) return null;
  return (
    <details>
      <summary>{rows.length} generations</summary>
      <PlainTable rows={rows} label="Generations" />
    </details>
  );
}

/** The winner as a file of `forge merge`. */
function Recipe({ id }: { id: string }) {
  const recipe = useQuery({
    queryKey: ["recipe", id],
    queryFn: async () => (await request(`/v1/checkpoints/${id}/files/merge.yaml`)).text(),
    staleTime: Infinity,
    retry: false,
  });
  if (!recipe.data) return null;
  return (
    <details>
      <summary>The winner's recipe</summary>
      <pre tabIndex={0}>{recipe.data}</pre>
      <p className="quiet">
        Save it as a file, and <code>forge merge FILE</code> makes the same model. <a href={link("models", id)}>The model</a>
      </p>
    </details>
  );
}
