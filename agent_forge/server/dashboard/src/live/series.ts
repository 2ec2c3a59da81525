/** The points of one job: fetched once, thinned by the server, then added as they come. */

import { ApiError, get } from "../api/client";
import type { Message, SeriesAnswer, SeriesPart, Verdict } from "../api/types";

const PAGE = 1000;
const POINTS = 1500; // of each curve, when a run is opened
const MOST_NOTES = 500;
const FEW = 4; // fewer points are read better in a table
const RETRY = 3_000;

/** One metric of one stage. A value is NaN where the run wrote no number. */
export interface Column {
  steps: number[];
  values: number[];
  /** How many points there were before they were thinned. */
  count: number;
}

export interface Segment {
  phase: string;
  stage: string;
  total: number;
  /** The newest step, and when the stage began and spoke last. */
  step: number;
  began: number;
  ended: number;
  columns: Map<string, Column>;
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
  /** Phase -> what it has measured, in order, such as the stages of train. */
  readonly measures = new Map<string, Row[]>();
  readonly notes: Message[] = [];
  /** The newest progress message. */
  newest: Message | null = null;
  /** The first and last progress of the current phase and attempt, for the time that is left. */
  private pace: { from: Message; to: Message } | null = null;
  loaded = false;
  version = 0;
  private after = 0;
  /** The number of the newest event that the fetched curves hold. */
  private last = 0;
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

  /** Fetch what is missing, again where the server did not answer; what the socket brings meanwhile waits. */
  load(): Promise<void> {
    this.loading ??= this.fetchAll()
      .catch((error: unknown) => this.loadLater(error))
      .finally(() => {
        this.loading = null;
      });
    return this.loading;
  }

  private loadLater(error: unknown): void {
    if (!(error instanceof ApiError)) throw error;
    const passes = error.status === 0 || error.status === 429 || error.status >= 500;
    if (passes) window.setTimeout(() => void this.load(), Math.max(RETRY, 1000 * error.retryAfter));
  }

  private async fetchAll(): Promise<void> {
    const isFirst = this.after === 0 && this.last === 0;
    if (isFirst) {
      const answer = await get<SeriesAnswer>(`/v1/jobs/${this.id}/series?points=${POINTS}`);
      answer.series.forEach((part) => this.addCurve(part));
      this.segments.sort((a, b) => a.began - b.began);
      this.last = answer.after;
      this.changed();
    }
    for (;;) {
      const points = this.after < this.last ? "&points=false" : "";
      const path = `/v1/jobs/${this.id}/events?after=${this.after}&limit=${PAGE}${points}`;
      const page = await get<{ after: number; events: Message[] }>(path);
      // What is newer than the curves comes once more, with every point before it.
      const known = points ? page.events.filter((one) => one.seq <= this.last) : page.events;
      known.forEach((message) => this.add(message));
      this.changed();
      if (known.length === PAGE) continue;
      if (!points) break;
      // What came behind the curves is read with its points.
      this.after = Math.max(this.after, this.last);
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

  /** Take what the files of a run hold that had ended before the service found it. */
  takePast(messages: Message[]): void {
    if (!this.loaded || this.segments.length) return;
    messages.forEach((message) => this.sort(message));
    this.changed();
  }

  private add(message: Message): void {
    if (message.seq <= this.after) return;
    this.after = message.seq;
    this.sort(message);
  }

  private sort(message: Message): void {
    if (message.type === "progress") this.addPoint(message);
    else if (message.type === "gate") {
      this.verdicts.set(message.phase, message.metrics as unknown as Verdict);
    } else if (message.type === "complete" && message.results?.summary) {
      this.summaries.set(message.phase, message.results.summary);
    } else if (message.type === "metrics") {
      this.addMeasures(message);
      this.measures.set(message.phase, [...(this.measures.get(message.phase) ?? []), message.metrics ?? {}]);
    } else if (message.type !== "state") {
      this.notes.push(message);
      if (this.notes.length > MOST_NOTES) this.notes.shift();
    }
  }

  private addPoint(message: Message): void {
    const { phase, stage = "", step = 0, total = 0, metrics = {} } = message;
    this.newest = message;
    this.keepPace(message);
    const segment = this.segment(phase, stage, message.time);
    segment.total = Math.max(total, step);
    segment.step = step;
    segment.ended = message.time;
    for (const [name, value] of Object.entries(metrics)) {
      if (Array.isArray(value)) this.tables.set(phase, { name, rows: value as Row[] });
      const point = numeric(value);
      // A point that the curves hold already was only read for what else it says.
      if (point !== undefined && message.seq > this.last) push(columnOf(segment, name), step, point);
    }
  }

  /** What a stage has measured at its end, such as exponents, is a point at its last step. */
  private addMeasures({ phase, stage = "", time, metrics = {}, seq }: Message): void {
    const segment = this.segment(phase, stage, time);
    for (const [name, value] of Object.entries(metrics)) {
      const point = numeric(value);
      if (point !== undefined && seq > this.last) measure(segment, columnOf(segment, name), point);
    }
  }

  /** Add a curve as the server has thinned it. */
  private addCurve(part: SeriesPart): void {
    const columns = new Set<Column>();
    part.value.forEach((value, index) => {
      const [step, time] = [part.step[index] ?? 0, part.time[index] ?? 0];
      const segment = this.segment(part.phase, part.stage[index] ?? "", time);
      segment.began = Math.min(segment.began, time);
      segment.ended = Math.max(segment.ended, time);
      segment.step = Math.max(segment.step, step);
      segment.total = Math.max(segment.total, step);
      const column = columnOf(segment, part.name);
      columns.add(column);
      // Only what a stage measures at its end comes without a step behind others.
      if (step === 0 && segment.step > 0) measure(segment, column, value ?? NaN);
      else push(column, step, value ?? NaN);
    });
    const kept = [...columns].reduce((sum, column) => sum + column.count, 0);
    for (const column of columns) column.count = Math.round((column.count * part.total) / (kept || 1));
  }

  private segment(phase: string, stage: string, time: number): Segment {
    const known = this.segments.findLast((one) => one.phase === phase && one.stage === stage);
    if (known) return known;
    const fresh: Segment = { phase, stage, total: 0, step: 0, began: time, ended: time, columns: new Map() };
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

  /** Whether a phase has enough points for a curve; until they have come, it may. */
  says(phase: string): boolean {
    const own = this.segments.filter((one) => one.phase === phase && !one.stage.startsWith("gate"));
    const most = Math.max(0, ...own.flatMap((one) => [...one.columns.values()].map((column) => column.count)));
    return !this.loaded || most >= FEW;
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

function columnOf(segment: Segment, name: string): Column {
  let column = segment.columns.get(name);
  if (!column) segment.columns.set(name, (column = { steps: [], values: [], count: 0 }));
  return column;
}

/** Add what was measured at a stage's end, unless its steps have told the same figure. */
function measure(segment: Segment, column: Column, value: number): void {
  if (!column.steps.length) push(column, segment.step, value);
}

/** Add a point; those that a run has gone back behind, because it went on from a saved state, go. */
function push(column: Column, step: number, value: number): void {
  while (column.steps.length && (column.steps.at(-1) ?? 0) >= step) {
    column.steps.pop();
    column.values.pop();
    column.count -= 1;
  }
  column.steps.push(step);
  column.values.push(value);
  column.count += 1;
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
  known.forEach((series) => void series.load());
}
