/** Small parts that every page uses. */

import { useState, type ReactNode } from "react";
import type { Score } from "../api/types";
import { number } from "../lib/format";

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

/** A value with its interval. */
export function Interval({ score, unit = true }: { score: Score; unit?: boolean }) {
  const bounds =
    score.low !== undefined && score.high !== undefined
      ? ` [${number(score.low)}, ${number(score.high)}]`
      : "";
  return (
    <span className="figure">
      {number(score.value)}
      <span className="quiet">{bounds}</span>
      {unit && score.metric ? <span className="quiet"> {score.metric}</span> : null}
    </span>
  );
}

/** Rows as a table that scrolls in its own box, so that the page never does. */
export function Table({ head, rows, label }: {
  head: ReactNode[];
  rows: { key: string; cells: ReactNode[] }[];
  label: string;
}) {
  return (
    <div className="scroll" tabIndex={0} role="region" aria-label={label}>
      <table>
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
                <td key={index}>{cell}</td>
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
  const head = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const shown = rows.map((row, index) => ({
    key: String(index),
    cells: head.map((name) => plain(row[name])),
  }));
  return <Table head={head.map((name) => name.replaceAll("_", " "))} rows={shown} label={label} />;
}

export function plain(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return number(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
