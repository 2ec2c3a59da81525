/** Train: the ten stages as they end, with what each has changed. */

import { PlainTable } from "../ui/parts";
import { Scatter } from "../ui/scatter";
import { columns, figure, table, text, type Row } from "./rows";
import type { ViewProps } from "./view";

const SHOWN = ["stage", "mechanism", "on", "steps", "loss", "bits per byte", "reasoning right", "tools right", "depth exponent", "twin exponent", "rollbacks", "notes"];

/** Shares of right answers are read in per cent. */
const inPercent = (row: Row): Row =>
  Object.fromEntries(Object.entries(row).map(([name, value]) =>
    name.endsWith(" right") ? [`${name}, %`, typeof value === "number" ? 100 * value : value] : [name, value]));

export function TrainView({ series, report }: ViewProps) {
  const live = (series.measures.get("train") ?? []).filter((row) => "stage" in row);
  const recorded = table(report, "stages");
  const rows = recorded.length ? recorded : live;
  const against = table(report, "against plain training");
  if (!rows.length) return null;
  const measured = rows.filter((row) => figure(row, "bits per byte") !== undefined);
  return (
    <>
      <h3>Stages</h3>
      <PlainTable rows={columns(rows, SHOWN).map(inPercent)} label="What each stage has changed" />
      {measured.length > 1 ? (
        <figure>
          <Scatter
            label="Bits per byte after each stage" xLabel="stage" yLabel="bits per byte, lower is better"
            dots={measured.map((row, index) => ({ x: index, y: figure(row, "bits per byte") ?? 0, name: text(row, "stage").replaceAll("_", " "), look: "front" }))}
            joined={["front"]} named={["front"]}
          />
        </figure>
      ) : null}
      {against.length ? (
        <>
          <h3>Against plain training of equal tokens</h3>
          <PlainTable rows={against} label="Against plain training of equal tokens" />
        </>
      ) : null}
    </>
  );
}
