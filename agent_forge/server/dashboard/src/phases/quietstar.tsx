/** Quiet-STaR: what the model thinks, whether that helps, and where. */

import { number } from "../lib/format";
import { PlainTable } from "../ui/parts";
import { Scatter } from "../ui/scatter";
import { columns, figure, table } from "./rows";
import type { ViewProps } from "./view";

const THOUGHT = /^(['"])([\s\S]*)\1 thinks (['"])([\s\S]*)\3, then (['"])([\s\S]*)\5: (-?[\d.]+) nats without, (-?[\d.]+) with$/;

export function QuietStarView({ report }: ViewProps) {
  const tenths = table(report, "by difficulty");
  const held = table(report, "thinking on held-out tokens");
  return (
    <>
      {report?.samples.length ? (
        <>
          <h3>What it thinks</h3>
          <ul className="thoughts">
            {report.samples.map((sample, index) => <Thought key={index} sample={sample} />)}
          </ul>
        </>
      ) : null}
      {tenths.length > 1 ? (
        <figure>
          <Scatter
            label="Gain of thinking by difficulty" xLabel="tenth of the tokens, from easy to hard" yLabel="gain, nats per token"
            dots={tenths.map((row) => ({
              x: figure(row, "tenth by base loss") ?? 0, y: figure(row, "gain (nats)") ?? 0,
              low: figure(row, "low"), high: figure(row, "high"), name: `tenth ${String(row["tenth by base loss"])}`, look: "front",
            }))}
            level={{ y: 0, name: "no gain" }} joined={["front"]} named={[]}
          />
          <figcaption className="quiet">Above the line, thinking made the next token likelier. Bars are 95% intervals.</figcaption>
        </figure>
      ) : null}
      {held.length ? (
        <PlainTable label="Thinking on held-out tokens" rows={columns(held, ["data", "tokens", "parent (nats)", "base (nats)", "thinking (nats)", "gain of thinking", "gain low", "gain high", "share helped"])} />
      ) : null}
    </>
  );
}

function Thought({ sample }: { sample: string }) {
  const parts = THOUGHT.exec(sample);
  if (!parts) return <li>{sample}</li>;
  const [before, after] = [Number(parts[7]), Number(parts[8])];
  const change = before - after;
  const judged = Math.abs(change) < 0.0005 ? "changes nothing" : change > 0 ? `helps by ${number(change, 2)} nats` : `costs ${number(-change, 2)} nats`;
  return (
    <li>
      <span className="quiet">…{plain(parts[2])}</span>
      <span className="thought"><span className="tag">thinks</span> {plain(parts[4])}</span>
      <span>then <strong>{plain(parts[6])}</strong> <span className={change < -0.0005 ? "bad" : "quiet"}>({judged})</span></span>
    </li>
  );
}

/** A text as Python quotes it, with its line breaks shown. */
const plain = (quoted = "") => quoted.replaceAll("\\n", "⏎").replaceAll("\\'", "'").replaceAll("<|im_end|>", "").replaceAll("<|im_start|>", "");
