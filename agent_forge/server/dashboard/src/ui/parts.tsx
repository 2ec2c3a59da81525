/** Small parts that every page uses. */

import { useState, type ReactNode } from "react";
import type { Score } from "../api/types";
import { measured, number, tidy, words } from "../lib/format";
import { labelOf } from "../lib/measures";

const STATES: Record<string, string> = {
  queued: "Waiting", running: "Running", pausing: "Pausing", paused: "Paused",
  cancelling: "Cancelling", succeeded: "Done", done: "Done", rejected: "Rejected by its gate",
  failed: "Failed", interrupted: "Interrupted", cancelled: "Cancelled", pending: "Not yet",
};
const SIGNS: Record<string, string> = {
  queued: "◷", running: "▶", pausing: "❙❙", paused: "❙❙", cancelling: "■", succeeded: "✓",
  done: "✓", rejected: "✗", failed: "✗", interrupted: "!", cancelled: "■", pending: "○",
};

/** A state as a word and a sign, never as a colour alone. */
export function State({ state }: { state: string }) {
  return (
    <span className={`state ${state}`}>
      <span aria-hidden="true">{SIGNS[state] ?? "·"}</span> {STATES[state] ?? state}
    </span>
  );
}

export function Progress({ value, label }: { value: number; label: string }) {
  return <progress max={100} value={value} aria-label={label} />;
}

/** One line that says what went wrong. */
export function Failure({ error }: { error: unknown }) {
  if (!error) return null;
  return (
    <p className="failure" role="alert">
      {error instanceof Error ? error.message : String(error)}
    </p>
  );
}

/** What a page shows while its data are on the way. */
export function Waiting({ error, what }: { error: unknown; what: string }) {
  return error ? <Failure error={error} /> : <p className="quiet">Loading {what} …</p>;
}

export function Card({ title, children, aside }: {
  title: string;
  children: ReactNode;
  aside?: ReactNode;
}) {
  return (
    <section className="card" aria-label={title}>
      <div className="card-head">
        <h2>{title}</h2>
        {aside}
      </div>
      {children}
    </section>
  );
}

/** The command of this screen, to be typed in a terminal. */
export function Command({ text, note }: { text: string; note?: string }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setCopied(true);
    window.setTimeout(() => setCopied(false), 2000);
  };
  return (
    <div className="command">
      <code>{text}</code>
      <button type="button" onClick={() => void copy()}>
        {copied ? "Copied" : "Copy"}
      </button>
      {note ? <span className="quiet">{note}</span> : null}
    </div>
  );
}

/** A value with its interval. factor: to the unit in which it is shown. */
export function Interval({ score, unit = score.metric ?? "", factor = 1 }: {
  score: Score;
  unit?: string;
  factor?: number;
}) {
  const said = (value: number) => (Number.isInteger(value) ? number(value * factor) : measured(value * factor));
  const share = unit === "%" ? "%" : "";
  const bounds =
    score.low !== undefined && score.high !== undefined
      ? ` [${said(score.low)}, ${said(score.high)}]`
      : "";
  return (
    <span className="figure">
      {said(score.value)}{share}
      <span className="quiet">{bounds}</span>
      {unit && !share ? <span className="quiet"> {unit}</span> : null}
    </span>
  );
}

/** A score of a gate: a share of right answers in per cent, everything else in its unit. */
export function GateScore({ score }: { score: Score }) {
  const share = isShare(score);
  return (
    <>
      <Interval score={score} unit={share ? "%" : score.metric} factor={share ? 100 : 1} />
      {score.at_chance ? <span className="quiet"> at chance</span> : null}
    </>
  );
}

/** Whether a score is a share of right answers. */
export const isShare = (score: Score | undefined): boolean => SHARES.some((one) => score?.metric?.startsWith(one));

const SHARES = ["exact match", "right answers by right calls", "accuracy"];

/** Rows as a table that scrolls in its own box, so that the page never does.
 *
 * stack: the columns' names, for a table whose cells stand below each other on a phone.
 */
export function Table({ head, rows, label, stack, isPlain = false }: {
  head: ReactNode[];
  rows: { key: string; cells: ReactNode[] }[];
  label: string;
  stack?: string[];
  /** Its short cells keep their words in one line. */
  isPlain?: boolean;
}) {
  return (
    <div className="scroll" tabIndex={0} role="region" aria-label={label}>
      <table className={stack ? "stack" : isPlain ? "plain" : undefined}>
        <thead>
          <tr>
            {head.map((one, index) => (
              <th key={index} scope="col">{one}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={row.key}>
              {row.cells.map((cell, index) => (
                <td key={index} data-head={stack?.[index]}>{cell}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Rows of plain values, as reports carry them. */
export function PlainTable({ rows, label }: { rows: Record<string, unknown>[]; label: string }) {
  const named = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const head = named.filter((name) => rows.some((row) => plain(row[name]) !== ""));
  const shown = rows.map((row, index) => ({
    key: String(index),
    cells: head.map((name) => cell(plain(inUnit(name, row[name])))),
  }));
  return <Table head={head.map(headOf)} rows={shown} label={label} isPlain />;
}

const LONG = 40; // letters from which a cell has several lines

const cell = (text: string) => (text.length > LONG ? <span className="long">{text}</span> : text);

/** Internal names have their unit in words; what a view has named itself stays. */
function headOf(name: string): string {
  if (!name.includes("_")) return words(name);
  const { name: said, unit } = labelOf(name);
  return said + (unit ? `, ${unit}` : "");
}

const inUnit = (name: string, value: unknown) =>
  typeof value === "number" && name.includes("_") ? value * labelOf(name).factor : value;

/** A sentence that a phase wrote; what stands between backticks is code. */
export function Prose({ text }: { text: string }) {
  return text.split("`").map((part, index) => (index % 2 ? <code key={index}>{part}</code> : tidy(part, index === 0)));
}

export function plain(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return number(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "object") return JSON.stringify(value);
  const text = String(value);
  return /^[a-z0-9]+(_[a-z0-9]+)+$/.test(text) ? text.replaceAll("_", " ") : text;
}
