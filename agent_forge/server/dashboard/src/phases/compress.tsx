/** Compress: bytes against quality against speed, what was chosen, and llama.cpp where it was measured. */

import { points as measured } from "../../../../../results/compress.json";
import { bytes, number } from "../lib/format";
import { PlainTable } from "../ui/parts";
import { Ranges } from "../ui/ranges";
import { Scatter, type Dot } from "../ui/scatter";
import { columns, figure, table, text, type Row } from "./rows";
import type { ViewProps } from "./view";

const SMOLLM2_BYTES = 538.1e6; // fp32, results/compress.json
const LIMIT = 0.95; // share of the parent's quality that the phase promises

export function CompressView({ series, report, end }: ViewProps) {
  const tried = table(report, "rate and quality");
  const curve = table(report, "curve");
  const rows = [...(tried.length ? tried : liveRows(series)), ...curve];
  const chosen = end?.metrics ?? {};
  const dots: Dot[] = rows.map((row) => dotOf(row, "front"));
  if (figure(chosen, "quality") !== undefined) dots.push({ ...dotOf(chosen, "main"), name: "chosen" });
  const isSmolLM2 = Math.abs((figure(chosen, "bytes") ?? 0) / (figure(chosen, "bytes_of_fp32") ?? 1) / SMOLLM2_BYTES - 1) < 0.01;
  if (isSmolLM2) dots.push(...llamaDots());
  const domains = table(report, "perplexity by domain");
  const timed = rows.filter((row) => figure(row, "tokens_per_second") !== undefined);
  return (
    <>
      {dots.length ? (
        <figure>
          <Scatter
            label="Size and quality" xLabel="size, MB" yLabel="share of the parent's quality" dots={dots}
            joined={["front"]} level={{ y: LIMIT, name: `must keep ${LIMIT}` }} named={["main"]}
          />
          <figcaption className="quiet">
            Quality is the parent's perplexity over its own, of the worst kind of text; bars are 95% intervals.
            {isSmolLM2 ? " Grey points are llama.cpp's formats, measured on SmolLM2-135M." : ""}
          </figcaption>
        </figure>
      ) : null}
      {timed.length > 1 ? (
        <figure>
          <Scatter
            label="Size and speed" xLabel="size, MB" yLabel="tokens per second" joined={["front"]} named={[]}
            dots={timed.map((row) => ({ ...dotOf(row, "front"), y: figure(row, "tokens_per_second") ?? 0, low: undefined, high: undefined }))}
          />
        </figure>
      ) : null}
      {rows.length ? (
        <PlainTable label="Sizes that were tried" rows={rows.map((row) => ({
          size: bytes(figure(row, "bytes") ?? 0), "bits per weight": row.bits ?? row.bits_per_weight, quality: row.quality,
          "at least": lowOf(row), "tokens per second": row.tokens_per_second,
        }))} />
      ) : null}
      {domains.length ? (
        <>
          <h3>What is kept of each domain</h3>
          <Ranges label="Kept by domain" top={1.2} limit={LIMIT} rows={domains.map((row) => ({
            name: text(row, "domain").replaceAll("_", " "), value: figure(row, "kept") ?? 0, low: figure(row, "at least"),
            high: mirrored(row), note: `n=${text(row, "n")}${row["at chance"] === true ? ", at chance" : ""}`,
          }))} />
        </>
      ) : null}
      <Coders rows={table(report, "weights by codec")} tensors={table(report, "tensors")} />
    </>
  );
}

function Coders({ rows, tensors }: { rows: Row[]; tensors: Row[] }) {
  if (!rows.length) return null;
  return (
    <>
      <h3>Who codes the weights</h3>
      <Ranges label="Weights by codec" rows={rows.map((row) => ({ name: text(row, "codec"), value: figure(row, "share") ?? 0 }))} />
      <details>
        <summary>{tensors.length} tensors</summary>
        <PlainTable rows={columns(tensors, ["tensor", "shape", "codec", "bytes", "bits", "relative_error"])} label="Tensors" />
      </details>
    </>
  );
}

/** The search names its bound otherwise than the measured curve. */
const lowOf = (row: Row) => figure(row, "quality_low") ?? figure(row, "low");

const dotOf = (row: Row, look: Dot["look"]): Dot => ({
  x: (figure(row, "bytes") ?? 0) / 1e6, y: figure(row, "quality") ?? 0, low: lowOf(row),
  high: figure(row, "quality_high") ?? figure(row, "high"), name: `${number((figure(row, "bytes") ?? 0) / 1e6)} MB`, look,
});

const mirrored = (row: Row) => 2 * (figure(row, "kept") ?? 0) - (figure(row, "at least") ?? 0);

const llamaDots = (): Dot[] =>
  (measured["llama.cpp"] ?? [])
    .filter(([size = 0]) => size < 150)
    .map(([size = 0, loss = 1]) => ({ x: size, y: 1 / loss, name: `llama.cpp ${number(size)} MB`, look: "other" }));

/** The sizes that a running phase has tried so far. */
function liveRows(series: ViewProps["series"]): Row[] {
  const segment = series.segments.find((one) => one.phase === "compress" && one.stage === "allocate");
  const sizes = segment?.columns.get("bytes")?.values ?? [];
  return sizes.map((_, index) =>
    Object.fromEntries([...(segment?.columns ?? [])].map(([name, column]) => [name, column.values[index]])));
}
