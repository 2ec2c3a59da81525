/** Cognate: three specialists, each against its siblings on its own probe. */

import { phaseName, words } from "../lib/format";
import { PlainTable } from "../ui/parts";
import { figure, table, text } from "./rows";
import type { ViewProps } from "./view";

export function CognateView({ report }: ViewProps) {
  const own = table(report, "Own probes");
  const all = table(report, "All probes");
  if (!own.length) return null;
  return (
    <>
      <h3>{phaseName("cognate")}'s specialists, each on its own probe</h3>
      <PlainTable label="Specialists" rows={own.map((row) => ({
        specialist: words(text(row, "specialist")), "loss, nats": figure(row, "loss_nats"),
        "best sibling": figure(row, "best_sibling"), trunk: figure(row, "trunk"), "beats its siblings": row.beats_siblings,
      }))} />
      {all.length ? (
        <details>
          <summary>All probes</summary>
          <PlainTable rows={all} label="All probes" />
        </details>
      ) : null}
    </>
  );
}
