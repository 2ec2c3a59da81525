/** Reading the tables of a phase's report, whose cells may be anything. */

import type { PhaseReport } from "../api/types";

export type Row = Record<string, unknown>;

export const figure = (row: Row | undefined, name: string): number | undefined => {
  const value = row?.[name];
  return typeof value === "number" && Number.isFinite(value) ? value : undefined;
};

export const text = (row: Row | undefined, name: string): string => {
  const value = row?.[name];
  return value === undefined || value === null ? "" : String(value);
};

/** The rows of the first table whose title begins so. */
export function table(report: PhaseReport | undefined, title: string): Row[] {
  const known = Object.entries(report?.tables ?? {});
  return known.find(([name]) => name.toLowerCase().startsWith(title.toLowerCase()))?.[1] ?? [];
}

/** Rows without the columns that a view has no use for, and with those that it has in front. */
export function columns(rows: Row[], names: string[]): Row[] {
  return rows.map((row) => Object.fromEntries(names.filter((name) => name in row).map((name) => [name, row[name]])));
}
