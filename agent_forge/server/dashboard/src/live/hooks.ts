/** Live data for components. */

import { useQueryClient, type QueryClient } from "@tanstack/react-query";
import { useEffect, useSyncExternalStore } from "react";
import type { Job, Message } from "../api/types";
import { seriesOf, type JobSeries } from "./series";
import { live, type Link } from "./socket";

export function useLink(): Link {
  return useSyncExternalStore(live.onState, live.current);
}

/** The points of a job, which grow while it runs. */
export function useSeries(id: string): JobSeries {
  const series = seriesOf(id);
  useSyncExternalStore(series.subscribe, () => series.version);
  useEffect(() => void series.load(), [series]);
  return series;
}

/** Keep the lists of jobs true while messages come. */
export function useLiveQueries(): void {
  const client = useQueryClient();
  useEffect(() => {
    live.start();
    const leave = live.onMessages((messages) => apply(client, messages));
    return () => {
      leave();
      live.stop();
    };
  }, [client]);
  const link = useLink();
  useEffect(() => {
    if (link === "live") void client.invalidateQueries();
  }, [client, link]);
}

function apply(client: QueryClient, messages: Message[]): void {
  const newest = new Map<string, Message>();
  let changed = false;
  for (const message of messages) {
    if (message.type === "progress") newest.set(message.task_id, message);
    else if (["state", "complete", "error", "snapshot"].includes(message.type)) changed = true;
  }
  if (newest.size) {
    const patch = (job: Job): Job => {
      const message = newest.get(job.id);
      return message?.progress === undefined ? job : { ...job, progress: message.progress };
    };
    client.setQueriesData<Job[]>({ queryKey: ["jobs"] }, (jobs) => jobs?.map(patch));
    client.setQueriesData<Job>({ queryKey: ["job"] }, (job) => (job ? patch(job) : job));
  }
  if (changed) {
    for (const name of ["jobs", "job", "queue", "pipeline", "checkpoints", "record"]) {
      void client.invalidateQueries({ queryKey: [name] });
    }
  }
}
