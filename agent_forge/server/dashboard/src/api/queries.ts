/** What the pages ask the server, as queries that share one cache. */

import { keepPreviousData, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useMemo } from "react";
import { get, send } from "./client";
import type {
  Checkpoint, CheckpointFile, ExportedFile, Job, Lineage, PhaseResult, PhaseSummary, Pipeline, Queue, Results,
  RunRecord, ServiceInfo, SettingSchema, Validation,
} from "./types";

export const RUN_ALL = "run-all";
export const ACTIVE = ["running", "pausing", "cancelling"];
export const RESUMABLE = ["paused", "interrupted", "failed"];

export const useJobs = (limit: number) =>
  useQuery({
    queryKey: ["jobs", limit],
    queryFn: ({ signal }) => get<Job[]>(`/v1/jobs?limit=${limit}`, signal),
    placeholderData: keepPreviousData,
  });

export const useJob = (id: string) =>
  useQuery({
    queryKey: ["job", id],
    queryFn: ({ signal }) => get<Job>(`/v1/jobs/${id}`, signal),
    enabled: id !== "",
  });

export const usePipeline = (id: string, enabled: boolean) =>
  useQuery({
    queryKey: ["pipeline", id],
    queryFn: ({ signal }) => get<Pipeline>(`/v1/pipelines/${id}`, signal),
    enabled: enabled && id !== "",
  });

/** What the phases have written; `past`: the run had ended before the service found it. */
export const useRecord = (id: string, past: boolean) =>
  useQuery({
    queryKey: ["record", id, past],
    queryFn: ({ signal }) => get<RunRecord>(`/v1/jobs/${id}/record?events=${past}`, signal),
    placeholderData: keepPreviousData,
  });

export const useLog = (id: string, enabled: boolean) =>
  useQuery({
    queryKey: ["job", id, "log"],
    queryFn: ({ signal }) => get<{ text: string }>(`/v1/jobs/${id}/log?lines=200`, signal),
    enabled,
  });

export const useExported = (id: string) =>
  useQuery({
    queryKey: ["exported", id],
    queryFn: ({ signal }) => get<ExportedFile[]>(`/v1/exports/${id}`, signal),
  });

export const useQueue = () =>
  useQuery({ queryKey: ["queue"], queryFn: ({ signal }) => get<Queue>("/v1/queue", signal) });

export const useService = () =>
  useQuery({
    queryKey: ["service"],
    queryFn: ({ signal }) => get<ServiceInfo>("/v1/service", signal),
  });

export const usePhases = () =>
  useQuery({
    queryKey: ["phases"],
    queryFn: ({ signal }) => get<PhaseSummary[]>("/v1/phases", signal),
    staleTime: Infinity,
  });

export const useSchema = (phase: string) =>
  useQuery({
    queryKey: ["schema", phase],
    queryFn: ({ signal }) => get<SettingSchema>(`/v1/phases/${phase}/schema`, signal),
    enabled: phase !== "" && phase !== RUN_ALL,
    staleTime: Infinity,
  });

export const useData = () =>
  useQuery({
    queryKey: ["data"],
    queryFn: ({ signal }) => get<{ name: string; kind: string }[]>("/v1/data", signal),
  });

export const useCheckpoints = () =>
  useQuery({
    queryKey: ["checkpoints"],
    queryFn: ({ signal }) => get<Checkpoint[]>("/v1/checkpoints?limit=10000", signal),
  });

/** What the phase that made a checkpoint came to, as the newest 200 runs tell; by the checkpoint's id. */
export function useEnds(): Map<string, PhaseResult> {
  const jobs = useJobs(200).data;
  return useMemo(() => {
    const ends = (jobs ?? []).flatMap((job) => {
      const results = job.results as Results;
      return results.phases ?? [results as PhaseResult];
    });
    // In a run whose phase gave back its input, the phase that made it stands first.
    return new Map(ends.filter((one) => one.checkpoint_id).reverse().map((one) => [one.checkpoint_id ?? "", one]));
  }, [jobs]);
}

const ofCheckpoint = <T,>(id: string, part: string) => ({
  queryKey: ["checkpoint", id, part],
  queryFn: ({ signal }: { signal: AbortSignal }) =>
    get<T>(`/v1/checkpoints/${encodeURIComponent(id)}${part}`, signal),
  enabled: id !== "",
});

export const useCheckpoint = (id: string) => useQuery(ofCheckpoint<Checkpoint>(id, ""));
export const useFiles = (id: string) => useQuery(ofCheckpoint<CheckpointFile[]>(id, "/files"));
export const useLineage = (id: string) => useQuery(ofCheckpoint<Lineage>(id, "/lineage"));
export const useManifest = (id: string) =>
  useQuery(ofCheckpoint<Record<string, unknown>>(id, "/manifest"));

export interface StartRequest {
  phase_name: string;
  config: string[];
}

export const validate = (request: StartRequest) =>
  send<Validation>("POST", "/v1/phases/validate", request);

/** Something that changes jobs; the lists are read again when it is done. */
export function useJobAction<T>(act: (input: T) => Promise<unknown>) {
  const client = useQueryClient();
  return useMutation({
    mutationFn: act,
    onSettled: () =>
      Promise.all(
        ["jobs", "job", "queue", "pipeline"].map((name) =>
          client.invalidateQueries({ queryKey: [name] }),
        ),
      ),
  });
}
