/** Start a run: a phase, its sources and settings, what it will take, and the command for it. */

import { useMutation, useQuery } from "@tanstack/react-query";
import { useMemo, useState } from "react";
import { send } from "../api/client";
import { RUN_ALL, useCheckpoints, usePhases, useSchema, validate } from "../api/queries";
import type { Estimate, Job, Validation } from "../api/types";
import { bytes, count, modelName, PHASE_ORDER, phaseName, seconds, words } from "../lib/format";
import { nearest } from "../lib/nearest";
import { go, link } from "../lib/route";
import { flatSettings, forgeCommand, objection, type Setting } from "../lib/settings";
import { Card, Command, Failure, Table, Waiting } from "../ui/parts";
import { SettingsForm } from "../ui/settings-form";

// Experiments of conf/experiment, with what each is for.
const PRESETS: [string, string][] = [
  ["tiny", "Tiny: all eight phases in minutes, to see that everything works"],
  ["", "Nano: all eight phases with the defaults, in a quarter of an hour"],
  ["smollm2", "SmolLM2-135M on two CPU cores"],
  ["smollm2_gpu", "SmolLM2-135M on a GPU"],
];

export function NewRun({ query }: { query: URLSearchParams }) {
  const phases = usePhases();
  const [phase, setPhase] = useState(query.get("phase") ?? RUN_ALL);
  if (!phases.data) return <Waiting error={phases.error} what="the phases" />;
  return (
    <div className="page">
      <h1>New run</h1>
      <Card title="What">
        <div className="choices" role="radiogroup" aria-label="What to run">
          {[{ name: RUN_ALL, summary: "All eight phases, one after the other" }, ...phases.data].map((one) => (
            <label key={one.name} className={one.name === phase ? "choice on" : "choice"}>
              <input
                type="radio" name="phase" value={one.name} checked={one.name === phase}
                onChange={() => setPhase(one.name)}
              />
              <span><strong>{phaseName(one.name)}</strong><br /><span className="quiet">{words(one.summary)}</span></span>
            </label>
          ))}
        </div>
      </Card>
      <Form key={phase} phase={phase} source={query.get("source") ?? ""} />
    </div>
  );
}

function Form({ phase, source }: { phase: string; source: string }) {
  const isRun = phase === RUN_ALL;
  const [part, setPart] = useState("");
  const schema = useSchema(isRun ? part : phase);
  const [values, setValues] = useState<Record<string, string>>({});
  const [sources, setSources] = useState<string[]>(source ? [source] : []);
  const [preset, setPreset] = useState(isRun ? "tiny" : "");
  const [lines, setLines] = useState("");
  const composed = usePreset(preset, part !== "");
  const settings = useMemo(() => {
    const own = schema.data ? flatSettings(schema.data) : [];
    return isRun ? inRun(own, part, composed.data?.config) : own;
  }, [schema.data, isRun, part, composed.data]);
  const problems = [...settingProblems(settings, values), ...lineProblems(settings, lines, isRun)];
  const overrides = useMemo(() => {
    const typed = lines.split("\n").map((line) => line.trim()).filter(Boolean);
    const chosen = Object.entries(values).map(([key, value]) => `${key}=${value}`);
    const from = sources.length ? [`sources=[${sources.join(",")}]`] : [];
    return [...(preset ? [`experiment=${preset}`] : []), ...from, ...chosen, ...typed];
  }, [lines, values, sources, preset]);
  const check = useMutation({
    mutationFn: () => validate({ phase_name: phase, config: overrides }),
  });
  const start = useMutation({
    mutationFn: () => send<Job>("POST", "/v1/jobs", { phase_name: phase, config: overrides }),
    onSuccess: (job) => go(link("runs", job.id)),
  });
  const change = (key: string, value: string | null) => {
    setValues(({ [key]: _, ...rest }) => (value === null ? rest : { ...rest, [key]: value }));
    check.reset();
  };
  return (
    <>
      {isRun ? (
        <Card title="Preset">
          <div className="choices" role="radiogroup" aria-label="Preset">
            {PRESETS.map(([name, what]) => (
              <label key={name} className={name === preset ? "choice on" : "choice"}>
                <input type="radio" name="preset" checked={name === preset} onChange={() => { setPreset(name); check.reset(); }} />
                <span>{what}</span>
              </label>
            ))}
          </div>
        </Card>
      ) : null}
      <Sources chosen={sources} isRun={isRun} needsNone={phase === PHASE_ORDER[0]} onChange={(ids) => { setSources(ids); check.reset(); }} />
      {isRun ? (
        <Card title="Settings of its phases">
          <label>
            Phase{" "}
            <select value={part} onChange={(event) => setPart(event.target.value)}>
              <option value="">choose one to change its settings …</option>
              {PHASE_ORDER.map((name) => <option key={name} value={name}>{phaseName(name)}</option>)}
            </select>
          </label>
        </Card>
      ) : null}
      {isRun && !part ? null : schema.data && (!isRun || composed.data) ? (
        <SettingsForm
          key={part} schema={isRun ? { ...schema.data, "x-groups": {} } : schema.data} settings={settings}
          values={values} onChange={change}
        />
      ) : <Waiting error={schema.error ?? composed.error} what="the settings" />}
      <Card title="Other settings">
        <label htmlFor="lines">One KEY=VALUE per line, as on the command line</label>
        <textarea
          id="lines" rows={3} spellCheck={false} value={lines}
          placeholder={isRun ? "bitnet.train.steps=50" : "train.steps=50"}
          onChange={(event) => { setLines(event.target.value); check.reset(); }}
        />
      </Card>
      <section className="card start" aria-label="Start">
        {problems.map((problem) => <p key={problem} className="failure" role="alert">{problem}</p>)}
        <Failure error={check.error ?? start.error} />
        {check.data ? <Estimates answer={check.data} /> : null}
        <div className="actions">
          <button type="button" className="main" disabled={start.isPending || problems.length > 0} onClick={() => start.mutate()}>
            {start.isPending ? "Starting …" : "Start"}
          </button>
          <button type="button" disabled={check.isPending || problems.length > 0} onClick={() => check.mutate()}>
            {check.isPending ? "Checking …" : "Check and estimate"}
          </button>
          <Command text={forgeCommand(phase, overrides)} note={sources.length ? "put directories in the place of ids" : ""} />
        </div>
      </section>
    </>
  );
}

/** All settings of a run with a preset, as the server composes them. */
const usePreset = (preset: string, enabled: boolean) =>
  useQuery({
    queryKey: ["composed", "preset", preset],
    queryFn: () => validate({ phase_name: RUN_ALL, config: preset ? [`experiment=${preset}`] : [] }),
    enabled,
    staleTime: Infinity,
    retry: false,
  });

/** A phase's settings as a whole run names them, with the run's own defaults. */
function inRun(own: Setting[], part: string, config: unknown): Setting[] {
  return own.flatMap((one) => {
    const standard = [part, ...one.key.split(".")].reduce<unknown>(
      (values, name) => (values as Record<string, unknown> | undefined)?.[name], config,
    );
    // What a run settles itself, such as where a phase writes, is no setting of its phases.
    if (standard === undefined || one.key === "gate.base") return [];
    return [{ ...one, key: `${part}.${one.key}`, schema: { ...one.schema, default: standard } }];
  });
}

function settingProblems(settings: Setting[], values: Record<string, string>): string[] {
  return settings.flatMap(({ key, schema }) => {
    const text = values[key];
    const problem = text === undefined ? "" : objection(schema, text);
    return problem ? [`${key} ${problem}; it is ${text === "" ? "empty" : text}.`] : [];
  });
}

/** What is wrong with typed lines; the server looks again, with all it knows. */
function lineProblems(settings: Setting[], lines: string, isRun: boolean): string[] {
  const known = settings.map((one) => one.key);
  return lines.split("\n").map((line) => line.trim()).filter(Boolean).flatMap((line) => {
    const name = line.split("=")[0] ?? "";
    if (!line.includes("=")) return [`'${line}' is not KEY=VALUE.`];
    const parts = known.some((key) => key === name || key.startsWith(`${name}.`) || name.startsWith(`${key}.`));
    if (isRun || parts || !/^[a-z_]+(\.[a-z_]+)+$/.test(name)) return [];
    const best = nearest(name, known);
    return [`There is no setting '${name}'.${best ? ` Did you mean '${best}'?` : ""}`];
  });
}

function Sources({ chosen, isRun, needsNone, onChange }: {
  chosen: string[];
  isRun: boolean;
  /** Whether the phase makes its model itself. */
  needsNone: boolean;
  onChange: (ids: string[]) => void;
}) {
  const models = useCheckpoints();
  const usable = (models.data ?? []).filter((one) => one.status === "ok");
  const name = (id: string) => usable.find((one) => one.id === id)?.name ?? id;
  return (
    <Card title={isRun ? "Start from a model (optional)" : "Source"}>
      {usable.length ? (
        <label>
          Add a checkpoint{" "}
          <select value="" onChange={(event) => event.target.value && onChange([...chosen, event.target.value])}>
            <option value="">choose …</option>
            {usable.filter((one) => !chosen.includes(one.id)).map((one) => (
              <option key={one.id} value={one.id}>
                {modelName(one)}, {bytes(one.deployable_bytes)}, {one.id.slice(0, 8)}
              </option>
            ))}
          </select>
        </label>
      ) : <p className="quiet">{isRun ? "Without a model, the first phase trains its own." : "There is no checkpoint yet; the first phase (Cognate) needs none."}</p>}
      {isRun || needsNone || chosen.length || !usable.length ? null : <p className="quiet">This phase works on a model: choose one.</p>}
      <ul className="overrides">
        {chosen.map((id) => (
          <li key={id}>
            <code>{name(id)}</code>{" "}
            <button type="button" onClick={() => onChange(chosen.filter((one) => one !== id))}>Remove<span className="off-screen"> {name(id)}</span></button>
          </li>
        ))}
      </ul>
    </Card>
  );
}

function Estimates({ answer }: { answer: Validation }) {
  if (!answer.valid) return <p className="failure" role="alert">{answer.error}</p>;
  const rows = answer.estimates as unknown as Estimate[];
  const total = rows.reduce((sum, one) => sum + one.seconds, 0);
  const memory = Math.max(0, ...rows.map((one) => one.memory_bytes));
  const disk = rows.reduce((sum, one) => sum + one.disk_bytes, 0);
  return (
    <div role="status">
      <p className="good">
        Ready: about {seconds(total)}, {bytes(memory)} of memory, {bytes(disk)} of disk
        {rows[0] ? `, on ${rows[0].device === "cpu" ? "the CPU" : rows[0].device}` : ""}. <span className="quiet">These are estimates, good to a factor of two.</span>
      </p>
      {rows.length > 1 ? (
        <details>
          <summary>By phase</summary>
          <Table
            label="Estimates" head={["Phase", "Time", "Memory", "Disk", "Parameters"]}
            rows={rows.map((one) => ({
              key: one.phase,
              cells: [phaseName(one.phase), seconds(one.seconds), bytes(one.memory_bytes), bytes(one.disk_bytes), count(one.parameters)],
            }))}
          />
        </details>
      ) : null}
      {rows.flatMap((one) => one.notes).map((note) => <p key={note} className="warning">{note}</p>)}
    </div>
  );
}
