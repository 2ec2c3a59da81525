/** Shares with their intervals as bars: what was, what is, and the limit that it must keep. */

import { number, words } from "../lib/format";

export interface Range {
  name: string;
  value: number;
  low?: number;
  high?: number;
  before?: number;
  note?: string;
}

/** top: the value that fills the whole width. */
export function Ranges({ rows, label, top = 1, limit }: {
  rows: Range[];
  label: string;
  top?: number;
  limit?: number;
}) {
  const place = (value: number) => (100 * Math.max(0, Math.min(value, top))) / top;
  const marks = [
    rows.some((row) => row.low !== undefined) ? "thin line: 95% interval" : "",
    rows.some((row) => row.before !== undefined) ? "grey mark: before" : "",
    limit !== undefined ? `yellow mark: the limit, ${number(100 * limit)}%` : "",
  ].filter(Boolean);
  return (
    <>
    <ul className="ranges" aria-label={label}>
      {rows.map((row) => (
        <li key={row.name}>
          <span className="name">{words(row.name)}</span>
          <svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">
            <rect className="ground" width="100" height="10" />
            <rect className="value" width={place(row.value)} height="10" />
            {row.low !== undefined && row.high !== undefined ? (
              <rect className="interval" x={place(row.low)} width={Math.max(0.5, place(row.high) - place(row.low))} y="4" height="2" />
            ) : null}
            {row.before !== undefined ? <rect className="before" x={Math.max(0, place(row.before) - 0.4)} width="0.8" height="10" /> : null}
            {limit !== undefined ? <rect className="limit" x={place(limit)} width="0.6" height="10" /> : null}
          </svg>
          <span className="figure">
            {row.before !== undefined ? <span className="quiet">{share(row.before, top)} → </span> : null}
            {share(row.value, top)}
            <span className="quiet">
              {row.low !== undefined && row.high !== undefined ? ` [${number(100 * row.low)}, ${number(100 * row.high)}]` : ""}
              {row.note ? ` ${row.note}` : ""}
            </span>
          </span>
        </li>
      ))}
    </ul>
    {marks.length ? <p className="quiet">Bar: now; {marks.join("; ")}.</p> : null}
    </>
  );
}

const share = (value: number, top: number) => `${number((100 * value) / (top > 2 ? top : 1))}%`;
