/** One metric of one phase as a curve: stages in a row, gaps where there is no number, thinned. */

import { words } from "../lib/format";
import { isBound, labelOf } from "../lib/measures";
import type { JobSeries } from "./series";

const MOST_POINTS = 1500;
const PREFERRED = ["loss", "fitness", "gain", "score", "bits", "bits_per_byte"];

export interface Curve {
  x: number[];
  y: (number | null)[];
  /** Where the run wrote NaN or an infinity. */
  gaps: number[];
  stages: { x: number; name: string }[];
  points: number;
  last: number | null;
  lowest: number | null;
  highest: number | null;
}

/** The metrics of a phase, the one that says most about it first. */
export function metricsOf(series: JobSeries, phase: string): string[] {
  const counts = new Map<string, number>();
  for (const segment of series.segments) {
    if (segment.phase !== phase || segment.stage.startsWith("gate")) continue;
    for (const [name, column] of segment.columns) {
      counts.set(name, (counts.get(name) ?? 0) + column.count);
    }
  }
  const rank = (name: string) => (PREFERRED.includes(name) ? PREFERRED.indexOf(name) : 99);
  const curves = [...counts.keys()].filter((name) => (counts.get(name) ?? 0) > 1 && name !== "steps" && !isBound(name));
  return curves.sort((a, b) => rank(a) - rank(b) || (counts.get(b) ?? 0) - (counts.get(a) ?? 0));
}

/** The values are in the unit of the metric's label. */
export function curve(series: JobSeries, phase: string, metric: string): Curve {
  const made: Curve = {
    x: [], y: [], gaps: [], stages: [], points: 0, last: null, lowest: null, highest: null,
  };
  const { factor } = labelOf(metric);
  let offset = 0;
  for (const segment of series.segments) {
    const column = segment.columns.get(metric);
    if (segment.phase !== phase || segment.stage.startsWith("gate") || !column) continue;
    if (made.x.length) {
      made.x.push(offset + 1e-6);
      made.y.push(null);
    }
    made.stages.push({ x: offset, name: words(segment.stage) });
    column.values.forEach((value, index) => addPoint(made, offset + (column.steps[index] ?? 0), value * factor));
    made.points += column.count;
    offset += Math.max(segment.total, segment.step);
  }
  return thinned(made);
}

function addPoint(made: Curve, x: number, value: number): void {
  const finite = Number.isFinite(value);
  made.x.push(x);
  made.y.push(finite ? value : null);
  if (!finite) made.gaps.push(x);
  else {
    made.last = value;
    made.lowest = Math.min(made.lowest ?? value, value);
    made.highest = Math.max(made.highest ?? value, value);
  }
}

/** Keep the least and the greatest of each bucket, so that no peak and no gap is lost. */
function thinned(made: Curve): Curve {
  const size = Math.ceil((2 * made.x.length) / MOST_POINTS);
  if (size <= 2) return made;
  const x: number[] = [];
  const y: (number | null)[] = [];
  for (let start = 0; start < made.x.length; start += size) {
    const end = Math.min(start + size, made.x.length);
    for (const index of ends(made.y, start, end)) {
      x.push(made.x[index] ?? 0);
      y.push(made.y[index] ?? null);
    }
  }
  return { ...made, x, y };
}

function ends(y: (number | null)[], start: number, end: number): number[] {
  let low = -1;
  let high = -1;
  let gap = -1;
  for (let index = start; index < end; index += 1) {
    const value = y[index];
    if (value === null || value === undefined) gap = index;
    else {
      if (low < 0 || value < (y[low] ?? 0)) low = index;
      if (high < 0 || value > (y[high] ?? 0)) high = index;
    }
  }
  return [...new Set([low, high, gap])].filter((index) => index >= 0).sort((a, b) => a - b);
}

/** A centred moving average, which follows the direction without lagging behind; gaps stay gaps. */
export function smoothed(y: (number | null)[]): (number | null)[] {
  const reach = Math.max(2, Math.round(y.length / 40));
  return y.map((value, index) => (value === null ? null : meanAround(y, index, reach)));
}

function meanAround(y: (number | null)[], index: number, reach: number): number {
  let sum = y[index] ?? 0;
  let count = 1;
  for (let by = 1; by <= reach; by += 1) {
    const [before, after] = [y[index - by], y[index + by]];
    // Both sides or none: a window with one side alone would pull the ends up or down.
    if (typeof before !== "number" || typeof after !== "number") break;
    sum += before + after;
    count += 2;
  }
  return sum / count;
}
