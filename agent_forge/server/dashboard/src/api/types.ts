/** Names for the generated types, and the shapes of what the schema leaves open. */

import type { components } from "./schema";

type Schemas = components["schemas"];

export type Job = Schemas["JobAnswer"];
export type JobState = Schemas["JobState"];
export type PhaseReport = Schemas["PhaseReport"];
export type RunRecord = Schemas["RecordAnswer"];
export type SeriesAnswer = Schemas["SeriesAnswer"];
export type SeriesPart = Schemas["SeriesPart"];
export type Pipeline = Schemas["PipelineAnswer"];
export type Queue = Schemas["QueueAnswer"];
export type Checkpoint = Schemas["CheckpointAnswer"];
export type CheckpointFile = Schemas["FileAnswer"];
export type ExportedFile = Schemas["ExportedFile"];
export type Lineage = Schemas["LineageAnswer"];
export type Validation = Schemas["ValidateAnswer"];
export type ServiceInfo = Schemas["ServiceAnswer"];

/** A measured value with its interval. */
export interface Score {
  value: number;
  low?: number;
  high?: number;
  n?: number;
  chance?: number;
  at_chance?: boolean;
  metric?: string;
}

/** How much of a skill a phase kept: a ratio with its bounds, and the limit that it must reach. */
export interface Retention {
  task: string;
  ratio: number;
  low: number;
  high: number;
  limit: number;
  gated: boolean;
  note?: string;
  at_chance?: boolean;
  n?: number;
}

export interface Verdict {
  passed: boolean;
  reasons: string[];
  retentions: Record<string, Retention>;
  chain: Record<string, Retention>;
  scores: Record<string, Score>;
  parent_scores?: Record<string, Score>;
}

/** What a phase has come to. */
export interface PhaseResult {
  phase: string;
  status: string;
  checkpoint_id?: string;
  checkpoints?: string[];
  seconds?: number;
  summary?: string;
  metrics?: Record<string, unknown>;
  verdict?: Verdict | null;
  deployable_bytes?: number;
  file_bytes?: number;
  peak_memory_bytes?: number;
  tokens_per_second?: number;
}

export interface Results extends Partial<PhaseResult> {
  phases?: PhaseResult[];
}

export interface PhaseSummary {
  name: string;
  order: number;
  summary: string;
}

/** One message of the live stream, or of /v1/jobs/{id}/events. */
export interface Message {
  type: string;
  seq: number;
  task_id: string;
  phase: string;
  time: number;
  attempt?: number;
  percent?: number;
  progress?: number;
  stage?: string;
  step?: number;
  total?: number;
  message?: string;
  level?: string;
  state?: JobState;
  code?: string;
  metrics?: Record<string, unknown>;
  results?: Results;
}

export interface Estimate {
  phase: string;
  device: string;
  parameters: number;
  tokens: number;
  seconds: number;
  memory_bytes: number;
  disk_bytes: number;
  notes: string[];
}

/** A setting, as the form's schema describes it. */
export interface SettingSchema {
  title?: string;
  description?: string;
  type?: string;
  enum?: (string | number)[];
  default?: unknown;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  minLength?: number;
  items?: SettingSchema;
  properties?: Record<string, SettingSchema>;
  "x-unit"?: string;
  "x-allowed"?: string;
  "x-expert"?: boolean;
  "x-takes"?: string;
  "x-groups"?: Record<string, string[]>;
}
