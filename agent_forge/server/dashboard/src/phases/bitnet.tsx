/** BitNet: what rounding costs, what training brings back, and what is kept of each domain. */

import { PlainTable } from "../ui/parts";
import { Ranges } from "../ui/ranges";
import { columns, figure, table, text } from "./rows";
import type { ViewProps } from "./view";

export function BitNetView({ report }: ViewProps) {
  const models = table(report, "Bits per byte");
  const domains = table(report, "perplexity by domain");
  return (
    <>
      {models.length ? (
        <>
          <h3>Kept of the parent's bits per byte</h3>
          <Ranges label="Kept of the parent" limit={0.95} rows={models.map((row) => ({
            name: text(row, "model"), value: figure(row, "kept") ?? 0, note: `${text(row, "bits_per_byte")} bits per byte`,
          }))} />
        </>
      ) : null}
      {domains.length ? (
        <details>
          <summary>Perplexity by domain</summary>
          <PlainTable rows={columns(domains, ["domain", "parent's perplexity", "child's perplexity", "kept", "at least", "same token", "n", "at chance"])} label="Perplexity by domain" />
        </details>
      ) : null}
    </>
  );
}
