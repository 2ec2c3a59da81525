/** Bake: which tools it can use now, how it errs, what it was taught, and conversations to read. */

import { useState } from "react";
import { words } from "../lib/format";
import { PlainTable } from "../ui/parts";
import { Ranges } from "../ui/ranges";
import { figure, table, text, type Row } from "./rows";
import type { ViewProps } from "./view";

export function BakeView({ report }: ViewProps) {
  const tools = table(report, "held-out tools");
  const endings = table(report, "how held-out answers ended");
  const traces = table(report, "traces");
  const persona = table(report, "persona");
  return (
    <>
      {tools.length ? (
        <>
          <h3>Held-out calls that are right, before and after</h3>
          <Ranges label="Held-out calls that are right" rows={tools.map(rangeOf)} />
        </>
      ) : null}
      {endings.length ? (
        <>
          <h3>How the others go wrong</h3>
          <PlainTable rows={endings} label="How held-out answers ended" />
        </>
      ) : null}
      {report?.samples.length ? <Conversations samples={report.samples} /> : null}
      {traces.length ? (
        <details>
          <summary>Traces that it was taught</summary>
          <PlainTable rows={traces} label="Traces" />
        </details>
      ) : null}
      {persona.length ? (
        <details>
          <summary>Persona: {persona.map((row) => words(text(row, "trait")).toLowerCase()).join(", ")}</summary>
          <PlainTable rows={persona} label="Persona" />
        </details>
      ) : null}
    </>
  );
}

const rangeOf = (row: Row) => ({
  name: words(text(row, "kind")), value: figure(row, "after") ?? 0, before: figure(row, "before"),
  low: figure(row, "low"), high: figure(row, "high"),
  note: `n=${text(row, "n")}${row.offered === false ? ", not offered to the model" : ""}`,
});

const PLAIN = /<\/?tool_(?:call|response)>/g;

/** Conversations on held-out questions; the wrong ones first, for they say what to mend. */
function Conversations({ samples }: { samples: string[] }) {
  const [isAll, setAll] = useState(false);
  const read = samples.map(readConversation).sort((a, b) => Number(a.isRight) - Number(b.isRight));
  const shown = isAll ? read : read.slice(0, 4);
  return (
    <>
      <h3>Conversations on held-out questions</h3>
      <ul className="conversations">
        {shown.map((one, index) => (
          <li key={index} className={one.isRight ? "right" : "wrong"}>
            <strong>{one.isRight ? "✓ right" : "✗ wrong"}</strong>
            {one.turns.map((turn, place) => <p key={place}><span className="tag">{turn.role}</span> {turn.text}</p>)}
          </li>
        ))}
      </ul>
      {read.length > 4 ? <button type="button" onClick={() => setAll(!isAll)}>{isAll ? "Show fewer" : `Show all ${read.length}`}</button> : null}
    </>
  );
}

function readConversation(sample: string) {
  const [, mark = "", rest = sample] = /^\[(\w+)\] ([\s\S]*)$/.exec(sample) ?? [];
  const turns = rest.split(/ \| (?=(?:user|assistant|tool|system): )/).map((part) => {
    const [, role = "", said = part] = /^(\w+): ([\s\S]*)$/.exec(part) ?? [];
    return { role, text: said.replace(PLAIN, "") };
  });
  return { isRight: mark === "right", turns };
}
