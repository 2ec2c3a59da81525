/** The points of one job, from its events: fetched once behind a number, then added as they come. */

import { get } from "../api/client";
import type { Message, Verdict } from "../api/types";

const PAGE = 1000;
const MOST_NOTES = 500;

/** The points of one stage. A value is a number, NaN where the run wrote none, null where it is missing. */
export interface Segment {
  phase: string;
  stage: string;
  total: number;
  steps: number[];
  times: number[];
  values: Map<string, (number | null)[]>;
}

export type Row = Record<string, unknown>;

export class JobSeries {
  readonly id: string;
  readonly segments: Segment[] = [];
  /** Phase -> what its gate said. */
  readonly verdicts = new Map<string, Verdict>();
  /** Phase -> its last line. */
  readonly summaries = new Map<string, string>();
  /** Phase -> the newest table that came with its progress, such as a population. */
  readonly tables = new Map<string, { name: string; rows: Row[] }>();
  readonly notes: Message[] = [];
  /** The newest progress message. */
  newest: Message | null = null;
  /** The first and last progress of the current phase and attempt, for the time that is left. */
  private pace: { from: Message; to: Message } | null = null;
  loaded = false;
  version = 0;
  private after = 0;
  private loading: Promise<void> | null = null;
  private waiting: Message[] = [];
  private readonly listeners = new Set<() => void>();
  private timer = 0;

  constructor(id: string) {
    this.id = id;
  }

  subscribe = (tell: () => void): (() => void) => {
    this.listeners.add(tell);
    return () => this.listeners.delete(tell);
  };

  /** Fetch what is missing; what the socket brings meanwhile waits. */
  load(): Promise<void> {
    this.loading ??= this.fetchAll().finally(() => {
      this.loading = null;
    });
    return this.loading;
  }

  private async fetchAll(): Promise<void> {
    for (;;) {
      const path = `/v1/jobs/${this.id}/events?after=${this.after}&limit=${PAGE}`;
      const page = await get<{ after: number; events: Message[] }>(path);
      page.events.forEach((message) => this.add(message));
      this.changed();
      if (page.events.length < PAGE) break;
    }
    this.loaded = true;
    const late = this.waiting;
    this.waiting = [];
    late.forEach((message) => this.add(message));
    this.changed();
  }

  /** Add a message of the socket. */
  take(message: Message): void {
    if (this.loading || !this.loaded) this.waiting.push(message);
    else {
      this.add(message);
      this.changed();
    }
  }

  private add(message: Message): void {
    if (message.seq <= this.after) return;
    this.after = message.seq;
    if (message.type === "progress") this.addPoint(message);
    else if (message.type === "gate") {
      this.verdicts.set(message.phase, message.metrics as unknown as Verdict);
    } else if (message.type === "complete" && message.results?.summary) {
      this.summaries.set(message.phase, message.results.summary);
    } else if (message.type !== "state") {
      this.notes.push(message);
      if (this.notes.length > MOST_NOTES) this.notes.shift();
    }
  }

  private addPoint(message: Message): void {
    const { phase, stage = "", step = 0, total = 0, metrics = {} } = message;
    this.newest = message;
    this.keepPace(message);
    const segment = this.segment(phase, stage, total);
    rewind(segment, step);
    segment.total = Math.max(total, step);
    segment.steps.push(step);
    segment.times.push(message.time);
    for (const [name, value] of Object.entries(metrics)) {
      if (Array.isArray(value)) this.tables.set(phase, { name, rows: value as Row[] });
      const point = numeric(value);
      if (point === undefined) continue;
      let column = segment.values.get(name);
      if (!column) segment.values.set(name, (column = []));
      while (column.length < segment.steps.length - 1) column.push(null);
      column.push(point);
    }
  }

  private segment(phase: string, stage: string, total: number): Segment {
    const known = this.segments.findLast((one) => one.phase === phase && one.stage === stage);
    if (known) return known;
    const fresh = { phase, stage, total, steps: [], times: [], values: new Map() };
    this.segments.push(fresh);
    return fresh;
  }

  private keepPace(message: Message): void {
    const from = this.pace?.from;
    const same = from && from.phase === message.phase && from.attempt === message.attempt;
    this.pace = same ? { from, to: message } : { from: message, to: message };
  }

  /** Seconds that the phase still needs at the pace of this attempt; 0 while nobody can tell. */
  secondsLeft(): number {
    if (!this.pace) return 0;
    const { from, to } = this.pace;
    const done = (to.percent ?? 0) - (from.percent ?? 0);
    const taken = to.time - from.time;
    return done >= 2 && taken >= 5 ? ((100 - (to.percent ?? 0)) * taken) / done : 0;
  }

  phases(): string[] {
    return [...new Set(this.segments.map((one) => one.phase))];
  }

  private changed(): void {
    if (this.timer) return;
    // Many points a second are one drawing.
    this.timer = window.setTimeout(() => {
      this.timer = 0;
      this.version += 1;
      this.listeners.forEach((tell) => tell());
    }, 100);
  }
}

/** Drop the points that a run has gone back behind, because it went on from a saved state. */
function rewind(segment: Segment, step: number): void {
  const last = segment.steps.at(-1);
  if (last === undefined || step > last) return;
  let keep = segment.steps.length;
  while (keep > 0 && (segment.steps[keep - 1] ?? 0) >= step) keep -= 1;
  segment.steps.length = keep;
  segment.times.length = keep;
  for (const column of segment.values.values()) column.length = Math.min(column.length, keep);
}

function numeric(value: unknown): number | undefined {
  if (typeof value === "number") return value;
  // JSON has neither NaN nor infinities; events carry them as text.
  return value === "nan" || value === "inf" || value === "-inf" ? NaN : undefined;
}

const known = new Map<string, JobSeries>();

export function seriesOf(id: string): JobSeries {
  let series = known.get(id);
  if (!series) known.set(id, (series = new JobSeries(id)));
  return series;
}

export function openSeries(id: string): JobSeries | undefined {
  return known.get(id);
}

/** Let every series fetch what the socket may have missed. */
export function reloadAll(): void {
  known.forEach((series) => void series.load().catch(() => undefined));
}
