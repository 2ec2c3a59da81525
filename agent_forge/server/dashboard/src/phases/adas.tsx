/** ADAS: the archive of what was tried, what each try gained beyond doubt, and the pool it drew from. */

import { number } from "../lib/format";
import { PlainTable } from "../ui/parts";
import { Scatter, type Dot } from "../ui/scatter";
import { columns, figure, table, text } from "./rows";
import type { ViewProps } from "./view";

export function AdasView({ series, report }: ViewProps) {
  const archive = table(report, "search");
  const pool = table(report, "pool screened");
  const against = table(report, "test split");
  const recorded: Dot[] = archive.map((row) => ({
    x: figure(row, "iteration") ?? 0, y: figure(row, "gain_nats") ?? 0, low: figure(row, "low"), high: mirrored(row),
    name: text(row, "technique").replaceAll("_", " "), look: row.accepted === true ? "main" : "front",
  }));
  const dots = recorded.length ? recorded : liveDots(series);
  return (
    <>
      {dots.length ? (
        <figure>
          <Scatter
            label="Gain of each try" xLabel="iteration" yLabel="gain, nats per token" dots={dots}
            level={{ y: 0, name: "no gain" }} named={["main", "front"]}
          />
          <figcaption className="quiet">A try is taken when its whole interval lies above the line.</figcaption>
        </figure>
      ) : null}
      {archive.length ? (
        <>
          <h3>Archive</h3>
          <PlainTable rows={columns(archive, ["iteration", "technique", "strengths", "edits", "gain_nats", "low", "accepted"])} label="Archive of the search" />
        </>
      ) : null}
      {against.length ? (
        <>
          <h3>On the test split, against baselines of equal budget</h3>
          <PlainTable rows={columns(against, ["search", "gain_nats", "low", "high", "n", "accepted"])} label="Against baselines" />
        </>
      ) : null}
      {pool.length ? (
        <details>
          <summary>{pool.length} techniques screened, best {text(pool[0], "technique")} ({number(figure(pool[0], "gain_nats") ?? 0, 2)} nats)</summary>
          <PlainTable rows={pool} label="Techniques screened" />
        </details>
      ) : null}
    </>
  );
}

/** The upper bound, which the archive leaves out, mirrors the lower one. */
function mirrored(row: Record<string, unknown>): number | undefined {
  const [gain, low] = [figure(row, "gain_nats"), figure(row, "low")];
  return gain === undefined || low === undefined ? undefined : 2 * gain - low;
}

function liveDots(series: ViewProps["series"]): Dot[] {
  const segment = series.segments.find((one) => one.phase === "adas" && one.stage === "adas");
  const gains = segment?.columns.get("gain");
  return (gains?.values ?? []).flatMap((gain, index) =>
    Number.isFinite(gain)
      ? [{ x: gains?.steps[index] ?? index, y: gain, name: `try ${index + 1}`, look: "front" as const }]
      : []);
}
