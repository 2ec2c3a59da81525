/** One run: what it is, how far and how well, its chart, its settings, what it said. */

import { useQuery } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { ACTIVE, RUN_ALL, useExported, useJob, useJobs, useLog, usePipeline, useRecord, useSchema, validate } from "../api/queries";
import type { Job, Message, PhaseResult, Results } from "../api/types";
import { ago, moment, percent, phaseName, seconds, tidy } from "../lib/format";
import { headline } from "../lib/headline";
import { link } from "../lib/route";
import { differences, flatSettings, flatten, forgeCommand, written } from "../lib/settings";
import { useSeries } from "../live/hooks";
import type { JobSeries } from "../live/series";
import { Actions } from "../ui/actions";
import { LiveChart } from "../ui/chart";
import { FileTable } from "../ui/files";
import { Card, Command, Failure, Progress, State, Table, Waiting } from "../ui/parts";
import { PhaseDetails } from "../ui/phase-details";
import { PipelineView, stepsOf } from "../ui/pipeline";

export function Run({ id }: { id: string }) {
  const job = useJob(id);
  if (!job.data) return <Waiting error={job.error} what="the run" />;
  return <RunView job={job.data} />;
}

function RunView({ job }: { job: Job }) {
  const series = useSeries(job.id);
  const pipeline = usePipeline(job.id, job.command === RUN_ALL);
  const steps = stepsOf(job, pipeline.data, series);
  const [picked, setPicked] = useState("");
  const isActive = ACTIVE.includes(job.state);
  const record = useRecord(job.id, job.origin === "terminal" && !isActive);
  const past = record.data?.events;
  const isLoaded = series.loaded;
  useEffect(() => {
    if (isLoaded && past?.length) series.takePast(past as unknown as Message[]);
  }, [series, past, isLoaded]);
  const newest = series.newest?.phase ?? "";
  const phase = picked || (steps.some((one) => one.name === newest) ? newest : (steps[0]?.name ?? job.command));
  const step = steps.find((one) => one.name === phase);
  const left = isActive ? series.secondsLeft() : 0;
  const results = job.results as Results;
  const ends = results.phases ?? (results.phase ? [results as PhaseResult] : []);
  return (
    <div className="page">
      <p className="crumbs"><a href={link("runs")}>Runs</a> › {job.id}</p>
      <section className="card now" aria-label="State">
        <div className="card-head">
          <h1>{phaseName(job.command)} <State state={job.state} /></h1>
          <Actions job={job} isLead />
        </div>
        {job.message && job.state !== "succeeded" ? <p className={job.state === "failed" ? "failure" : "said"}>{tidy(job.message)}</p> : null}
        {isActive ? null : <Made results={results} />}
        <div className="how-far">
          {job.state === "succeeded" ? null : (
            <>
              <Progress value={job.progress} label="Progress of the run" />
              <span className="big">{percent(job.progress)}</span>
            </>
          )}
          <span className="quiet">
            {when(job, results)}
            {left ? ` · about ${seconds(left)} left in this phase` : ""}
            {job.attempt > 1 ? ` · attempt ${job.attempt}` : ""}
          </span>
        </div>
        <PipelineView steps={steps} picked={phase} onPick={steps.length > 1 ? setPicked : undefined} />
      </section>
      {isActive || series.says(phase) ? (
        <Card title={isActive ? "Live" : "Curves"}><LiveChart key={phase} series={series} phase={phase} /></Card>
      ) : null}
      {job.command === "export" && job.state === "succeeded" ? <Exported id={job.id} /> : null}
      {step ? <PhaseDetails job={job} step={step} series={series} ends={ends} reports={record.data?.phases ?? []} /> : null}
      <SettingsCard job={job} />
      <Story series={series} job={job} />
      <Card title="The same in a terminal">
        <Command text={forgeCommand(job.command, [...job.overrides, ...sourcesOf(job)])} note={job.sources.length ? "put directories of checkpoints in the place of ids" : undefined} />
        <p className="quiet">Queued {moment(job.created)}{job.origin === "terminal" ? " in a terminal" : ""}.</p>
      </Card>
    </div>
  );
}

/** The files of an export. */
function Exported({ id }: { id: string }) {
  const files = useExported(id);
  return (
    <Card title="Exported files">
      {files.data ? <FileTable files={files.data} at={`/v1/exports/${id}`} /> : <Waiting error={files.error} what="the files" />}
    </Card>
  );
}

/** What the run has made, and what to do with it. */
function Made({ results }: { results: Results }) {
  const text = headline(results);
  if (!text && !results.checkpoint_id) return null;
  return (
    <>
      {text ? <p className="made">{text}.</p> : null}
      {results.checkpoint_id ? (
        <p className="actions">
          <a className="button main" href={link("chat", "", { a: results.checkpoint_id })}>Chat with the result</a>
          <a className="button" href={link("models", results.checkpoint_id)}>Look at the model</a>
        </p>
      ) : null}
    </>
  );
}

/** When it began and how long it took; a run that was found later has only the times of its phases. */
function when(job: Job, results: Results): string {
  const worked = (results.phases ?? []).reduce((sum, one) => sum + (one.seconds ?? 0), 0);
  if (job.ended && job.origin === "terminal") return worked ? `Its phases took ${seconds(worked)}` : `Ended ${ago(job.ended)}`;
  const began = job.started ? `Began ${ago(job.started)}` : `Queued ${ago(job.created)}`;
  return job.ended && job.started ? `${began} · took ${seconds(job.ended - job.started)}` : began;
}

const sourcesOf = (job: Job) => (job.sources.length ? [`sources=[${job.sources.join(",")}]`] : []);

/** The run's own settings, and how they differ from the defaults or from another run. */
function SettingsCard({ job }: { job: Job }) {
  const [other, setOther] = useState("");
  const [isOpen, setOpen] = useState(false);
  const jobs = useJobs(50);
  const rival = jobs.data?.find((one) => one.id === other);
  const own = useComposed(job, isOpen);
  const rivals = useComposed(rival, isOpen);
  const defaults = useDefaults(job, isOpen && !other);
  const before = other ? rivals.data : defaults.data;
  const rows = own.data && before ? differences(before, own.data) : [];
  const isFound = job.origin === "terminal";
  const candidates = (jobs.data ?? []).filter((one) => one.command === job.command && one.id !== job.id);
  return (
    <Card title="Settings">
      {job.overrides.length ? (
        <ul className="overrides">{job.overrides.map((one) => <li key={one}><code>{one}</code></li>)}</ul>
      ) : <p>{isFound ? "No setting was given on its command line." : "Every setting has its default."}</p>}
      {isFound ? <p className="quiet">It was begun in a terminal: settings of a file, and those that name a folder, are not known here.</p> : null}
      <details onToggle={(event) => setOpen(event.currentTarget.open)}>
        <summary>Compare with the defaults or another run</summary>
        <label>
          Compare with{" "}
          <select value={other} onChange={(event) => setOther(event.target.value)}>
            <option value="">the defaults</option>
            {candidates.map((one) => (
              <option key={one.id} value={one.id}>
                {phaseName(one.command)} of {moment(one.created)} ({one.state})
              </option>
            ))}
          </select>
        </label>
        <Failure error={own.error ?? rivals.error ?? defaults.error} />
        {own.isFetching || rivals.isFetching || defaults.isFetching ? <p className="quiet">Composing …</p> : null}
        {own.data && before && !rows.length ? <p>No setting differs.</p> : null}
        {rows.length ? (
          <Table
            label="Settings that differ" head={["Setting", other ? "The other run" : "Default", "This run"]}
            stack={["", other ? "The other run" : "Default", "This run"]}
            rows={rows.map((row) => ({ key: row.key, cells: [<code key="k">{row.key}</code>, <span key="b" className="value">{row.before}</span>, <strong key="a" className="value">{row.after}</strong>] }))}
          />
        ) : null}
        {own.data ? (
          <details>
            <summary>All {Object.keys(own.data).length} settings</summary>
            <Table
              label="All settings" head={["Setting", "Value"]} stack={["", "Value"]}
              rows={Object.entries(own.data).map(([key, value]) => ({ key, cells: [<code key="k">{key}</code>, <span key="v" className="value">{written(value)}</span>] }))}
            />
          </details>
        ) : null}
      </details>
    </Card>
  );
}

/** All settings of a run, composed by the server as its job composed them. */
function useComposed(job: Job | undefined, enabled: boolean) {
  return useQuery({
    queryKey: ["composed", job?.id],
    queryFn: () => composed(job?.command ?? "", [...(job?.overrides ?? []), ...(job ? sourcesOf(job) : [])]),
    enabled: enabled && job !== undefined,
    staleTime: Infinity,
    retry: false,
  });
}

function useDefaults(job: Job, enabled: boolean) {
  const schema = useSchema(enabled ? job.command : "");
  const whole = useQuery({
    queryKey: ["composed", "defaults", job.command],
    queryFn: () => composed(RUN_ALL, []),
    enabled: enabled && job.command === RUN_ALL,
    staleTime: Infinity,
    retry: false,
  });
  if (job.command === RUN_ALL) return whole;
  const data = schema.data
    ? Object.assign({}, ...flatSettings(schema.data)
      .filter((one) => !one.schema["x-takes"])
      .map((one) => flatten(one.schema.default, one.key))) as Record<string, unknown>
    : undefined;
  return { data, error: schema.error, isFetching: schema.isFetching };
}

async function composed(phase: string, overrides: string[]): Promise<Record<string, unknown>> {
  const answer = await validate({ phase_name: phase, config: overrides });
  if (!answer.valid) throw new Error(answer.error);
  return flatten(answer.config);
}

const STARTS: Record<string, string> = { warning: "Warning: ", artefact: "Wrote " };

/** What the run said, and the end of its log. */
function Story({ series, job }: { series: JobSeries; job: Job }) {
  const [isOpen, setOpen] = useState(job.state === "failed");
  const log = useLog(job.id, isOpen);
  const told = new Set<string>();
  const lines = series.notes.filter((one) => {
    // What several stages say in the same words is shown once, as in a terminal.
    const text = one.message?.replace(`${one.stage}: `, "") ?? "";
    const isNew = !text || !told.has(text);
    told.add(text);
    return isNew;
  }).slice(-60).reverse();
  return (
    <Card title="What it said">
      {lines.length ? (
        <ul className="story" tabIndex={0} aria-label="Messages">
          {lines.map((one) => (
            <li key={one.seq} className={one.type}>
              <time dateTime={new Date(one.time * 1000).toISOString()}>{new Date(one.time * 1000).toLocaleTimeString("en-GB")}</time>
              <span>{STARTS[one.type] ?? ""}{tidy(one.message ?? "", !(one.type in STARTS)) || `${phaseName(one.phase)} ${one.stage ?? ""}`}</span>
            </li>
          ))}
        </ul>
      ) : <p className="quiet">Nothing yet.</p>}
      <details open={isOpen} onToggle={(event) => setOpen(event.currentTarget.open)}>
        <summary>Log (the last 200 lines)</summary>
        <Failure error={log.error} />
        <pre tabIndex={0}>{log.data?.text || "The log is empty."}</pre>
      </details>
    </Card>
  );
}
