/** What runs now, what waits, and what came of the runs before. */

import { useState } from "react";
import { send } from "../api/client";
import {
  ACTIVE, RESUMABLE, RUN_ALL, useJobAction, useJobs, usePipeline, useQueue,
} from "../api/queries";
import type { Job, Results } from "../api/types";
import { ago, percent, phaseName, seconds, tidy } from "../lib/format";
import { headline } from "../lib/headline";
import { link } from "../lib/route";
import { useSeries } from "../live/hooks";
import { Actions } from "../ui/actions";
import { LiveChart } from "../ui/chart";
import { Card, Command, Failure, Progress, State, Waiting } from "../ui/parts";
import { PipelineView, stepsOf } from "../ui/pipeline";

const PAGE = 50;

export function Runs() {
  const [limit, setLimit] = useState(PAGE);
  const jobs = useJobs(limit);
  if (!jobs.data) return <Waiting error={jobs.error} what="the runs" />;
  const active = jobs.data.filter((job) => ACTIVE.includes(job.state));
  const stopped = jobs.data.filter((job) => RESUMABLE.includes(job.state));
  const over = jobs.data.filter(
    (job) => job.state !== "queued" && !ACTIVE.includes(job.state) && !RESUMABLE.includes(job.state),
  );
  const isNew = jobs.data.length === 0;
  return (
    <div className="page">
      <h1 className="off-screen">Runs</h1>
      {isNew ? <Welcome /> : null}
      {active.map((job) => <Now key={job.id} job={job} />)}
      {!isNew && !active.length ? <Idle waiting={stopped.length} /> : null}
      <QueueCard />
      {stopped.length ? (
        <Card title="Stopped, can go on">
          <RunTable jobs={stopped} label="Runs that can go on" />
        </Card>
      ) : null}
      {over.length ? (
        <Card title="Earlier runs">
          <RunTable jobs={over} label="Earlier runs" />
          {jobs.data.length >= limit && limit < 1000 ? (
            <button type="button" onClick={() => setLimit(Math.min(1000, limit * 4))}>Show more</button>
          ) : null}
        </Card>
      ) : null}
      {isNew ? null : <Command text="forge status outputs/run_all" note="the phases of a run, in a terminal; put its directory in the place of this one" />}
    </div>
  );
}

function Welcome() {
  return (
    <section className="card now">
      <h2>Nothing has been forged here yet</h2>
      <p>
        Agent Forge turns a base model into a small agent in eight phases. Start with the tiny run: it
        goes through all of them in a few minutes.
      </p>
      <a className="button main" href={link("new", "", { phase: RUN_ALL })}>Start the first run</a>
      <Command text="forge run-all experiment=tiny" note="the same in a terminal" />
    </section>
  );
}

function Idle({ waiting }: { waiting: number }) {
  return (
    <section className="card now idle">
      <h2>Nothing is running</h2>
      {waiting ? <p>{waiting === 1 ? "One run" : `${waiting} runs`} below can go on where they stopped.</p> : null}
      <a className="button main" href={link("new")}>New run</a>
    </section>
  );
}

/** The run that is under way: what it is, how far, how well, and what can be pressed. */
function Now({ job }: { job: Job }) {
  const series = useSeries(job.id);
  const pipeline = usePipeline(job.id, job.command === RUN_ALL);
  const steps = stepsOf(job, pipeline.data, series);
  const phase = series.newest?.phase ?? job.command;
  const left = series.secondsLeft();
  return (
    <section className="card now" aria-label={`Running: ${phaseName(job.command)}`}>
      <div className="card-head">
        <h2>
          <State state={job.state} /> <a href={link("runs", job.id)}>{phaseName(job.command)}</a>
        </h2>
        <Actions job={job} isLead />
      </div>
      <div className="how-far">
        <Progress value={job.progress} label="Progress of the run" />
        <span className="big">{percent(job.progress)}</span>
        <span>
          {phase !== job.command ? `in ${phaseName(phase)}` : ""}
          {series.newest?.stage ? `${phase !== job.command ? ", " : ""}${series.newest.stage.replaceAll("_", " ")}` : ""}
          {left ? ` · about ${seconds(left)} left in this phase` : ""}
          {job.started ? <span className="quiet"> · began {ago(job.started)}</span> : null}
          {job.overrides.length ? <code className="quiet"> {job.overrides.join(" ")}</code> : null}
        </span>
      </div>
      {steps.length > 1 ? <PipelineView steps={steps} /> : null}
      <LiveChart series={series} phase={phase} />
    </section>
  );
}

function QueueCard() {
  const queue = useQueue();
  const change = useJobAction((body: object) => send("PUT", "/v1/queue", body));
  const reorder = useJobAction((ids: string[]) => send("POST", "/v1/jobs/reorder", { ids }));
  if (!queue.data) return <Failure error={queue.error} />;
  const { jobs, paused, continue_on_error: goesOn } = queue.data;
  if (!jobs.length && !paused) {
    return (
      <section className="strip" aria-label="Queue">
        <span className="quiet">Nothing waits in the queue.</span>
        <button type="button" onClick={() => change.mutate({ paused: true })}>Hold the queue</button>
        <Failure error={change.error} />
      </section>
    );
  }
  const ids = jobs.map((job) => job.id);
  const move = (index: number, by: number) => {
    const order = [...ids];
    const [one] = order.splice(index, 1);
    if (one) order.splice(index + by, 0, one);
    reorder.mutate(order);
  };
  return (
    <Card
      title={`Queue${jobs.length ? ` (${jobs.length})` : ""}`}
      aside={
        <div className="actions">
          <label>
            <input
              type="checkbox" checked={goesOn}
              onChange={(event) => change.mutate({ continue_on_error: event.target.checked })}
            />{" "}
            Go on after a failure
          </label>
          <button type="button" aria-pressed={paused} onClick={() => change.mutate({ paused: !paused })}>
            {paused ? "Let the queue go on" : "Hold the queue"}
          </button>
        </div>
      }
    >
      <Failure error={change.error ?? reorder.error} />
      {paused ? <p className="warning">The queue is held: what runs goes on, nothing new starts.</p> : null}
      {jobs.length === 0 ? <p className="quiet">Nothing waits.</p> : null}
      <ol className="queue">
        {jobs.map((job, index) => (
          <li key={job.id}>
            <a href={link("runs", job.id)}>{phaseName(job.command)}</a>
            <span className="quiet clip">{job.overrides.join(" ") || "defaults"}</span>
            <span className="actions">
              <button type="button" aria-label={`Move ${phaseName(job.command)} up`} disabled={index === 0} onClick={() => move(index, -1)}>↑</button>
              <button type="button" aria-label={`Move ${phaseName(job.command)} down`} disabled={index === jobs.length - 1} onClick={() => move(index, 1)}>↓</button>
              <Actions job={job} />
            </span>
          </li>
        ))}
      </ol>
    </Card>
  );
}

function RunTable({ jobs, label }: { jobs: Job[]; label: string }) {
  return (
    <ul className="runs" aria-label={label}>
      {jobs.map((job) => {
        const results = job.results as Results;
        return (
          <li key={job.id}>
            <a className="name" href={link("runs", job.id)}>{phaseName(job.command)}</a>
            <State state={job.state} />
            <span className="what">
              {job.state === "succeeded" ? headline(results) || results.summary || "" : tidy(job.message || results.summary || "")}
            </span>
            <span className="quiet">
              {[job.ended ? ago(job.ended) : percent(job.progress), job.origin === "terminal" ? "terminal" : ""]
                .filter(Boolean)
                .join(" · ")}
            </span>
            {RESUMABLE.includes(job.state) ? <Actions job={job} /> : null}
          </li>
        );
      })}
    </ul>
  );
}
