/** The buttons of a job: what can be done with it in its state, and nothing else. */

import { send } from "../api/client";
import { RESUMABLE, useJobAction } from "../api/queries";
import type { Job } from "../api/types";
import { forgeCommand } from "../lib/settings";
import { Command, Failure } from "./parts";

const CANCELLABLE = ["queued", "running", "pausing", "paused", "interrupted"];

export function Actions({ job, isLead = false }: { job: Job; isLead?: boolean }) {
  const act = useJobAction((verb: string) => send("POST", `/v1/jobs/${job.id}/${verb}`));
  if (job.origin === "terminal") {
    if (RESUMABLE.includes(job.state)) {
      return <Command text={forgeCommand(job.command, job.overrides)} note="goes on, in the folder where it was begun" />;
    }
    if (job.ended) return <p className="quiet">Made in a terminal.</p>;
    return <p className="quiet">Started in a terminal: it is stopped there.</p>;
  }
  const button = (verb: string, text: string, look = "") => (
    <button
      type="button"
      className={look}
      disabled={act.isPending}
      onClick={() => act.mutate(verb)}
    >
      {text}
    </button>
  );
  return (
    <div className="actions">
      {RESUMABLE.includes(job.state) ? button("resume", "Resume", "main") : null}
      {job.state === "running" || job.state === "queued" ? button("pause", job.state === "queued" ? "Set aside" : "Pause", isLead ? "main" : "") : null}
      {CANCELLABLE.includes(job.state) ? button("cancel", "Cancel", "danger") : null}
      <Failure error={act.error} />
    </div>
  );
}
