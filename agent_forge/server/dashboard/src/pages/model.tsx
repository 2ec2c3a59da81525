/** One checkpoint: figures, ancestors and children, card, files, and what can be made of it. */

import { useMutation } from "@tanstack/react-query";
import { useState } from "react";
import { request, send } from "../api/client";
import { useCheckpoint, useEnds, useFiles, useLineage, useManifest } from "../api/queries";
import type { Checkpoint, PhaseResult } from "../api/types";
import { bytes, moment, number, phaseName, words } from "../lib/format";
import { skillsOf } from "../lib/headline";
import { go, link } from "../lib/route";
import { FileTable } from "../ui/files";
import { Card, Command, Failure, Waiting } from "../ui/parts";
import { LineageGraph } from "../ui/lineage";
import { Metrics } from "../ui/phase-details";
import { VerdictTable } from "../ui/pipeline";
import { parameters } from "./models";

const FORMATS = [["gguf", "GGUF (llama.cpp)"], ["ollama", "Ollama"], ["hf", "Hugging Face"], ["packed", "Packed"]];

export function Model({ id }: { id: string }) {
  const model = useCheckpoint(id);
  const end = useEnds().get(id);
  const verify = useMutation({ mutationFn: () => send<Checkpoint>("POST", `/v1/checkpoints/${id}/verify`) });
  if (!model.data) return <Waiting error={model.error} what="the model" />;
  const one = model.data;
  return (
    <div className="page">
      <p className="crumbs"><a href={link("models")}>Models</a> › {one.id.slice(0, 12)}</p>
      <section className="card now" aria-label="Model">
        <div className="card-head">
          <h1>{one.name}</h1>
          <div className="actions">
            <a className="button main" href={link("chat", "", { a: one.id })}>Chat</a>
            <a className="button" href={link("new", "", { phase: nextPhase(one.phase), source: one.id })}>Go on from here</a>
            <button type="button" disabled={verify.isPending} onClick={() => verify.mutate()}>
              {verify.isPending ? "Reading every file …" : "Verify"}
            </button>
          </div>
        </div>
        {end ? <p className="made">{[bytes(one.deployable_bytes), ...skillsOf(end)].join("; ")}.</p> : null}
        <p>{about(one, end).join(" · ")}</p>
        {one.status === "ok" ? null : <p className="failure">This checkpoint is {one.status}. {one.error}</p>}
        <Failure error={verify.error} />
        {verify.data ? (
          <p className={verify.data.status === "ok" ? "good" : "failure"} role="status">
            {verify.data.status === "ok" ? "Every file has the hash that its manifest names." : `${verify.data.status}: ${verify.data.error}`}
          </p>
        ) : null}
        {end?.verdict ? <VerdictTable verdict={end.verdict} /> : null}
        {Object.keys(one.metrics).length ? (
          <details open={!end?.verdict}>
            <summary>Figures that {phaseName(one.phase)} measured</summary>
            <Metrics metrics={one.metrics} />
          </details>
        ) : null}
      </section>
      <Lineage id={id} />
      <Export id={id} />
      <Files id={id} />
      <CardText id={id} />
      <Manifest id={id} />
      <Command text={`forge inspect ${one.name}`} note="the same in a terminal; put the checkpoint's directory in the place of its name" />
    </div>
  );
}

/** What is known of a model beside its scores; what its name and its first line say is left out. */
function about(one: Checkpoint, end: PhaseResult | undefined): string[] {
  const parameterCount = parameters(one);
  return [
    one.name === one.phase ? "" : `made by ${phaseName(one.phase)}`,
    ["", "model", one.name].includes(one.role) ? "" : words(one.role).toLowerCase(),
    end ? "" : `${bytes(one.deployable_bytes)} as shipped`,
    parameterCount ? `${parameterCount} parameters` : "",
    end?.tokens_per_second ? `${number(end.tokens_per_second)} tokens per second` : "",
    moment(one.time), `seed ${one.seed}`, one.encrypted ? "encrypted at rest" : "not encrypted",
  ].filter(Boolean);
}

const NEXT: Record<string, string> = {
  cognate: "evomerge", evomerge: "quietstar", quietstar: "bitnet", bitnet: "train", train: "bake", bake: "adas", adas: "compress",
};
const nextPhase = (phase: string) => NEXT[phase] ?? "bitnet";

function Lineage({ id }: { id: string }) {
  const lineage = useLineage(id);
  return (
    <Card title="Lineage">
      {lineage.data ? <LineageGraph lineage={lineage.data} here={id} /> : <Waiting error={lineage.error} what="the lineage" />}
    </Card>
  );
}

function Export({ id }: { id: string }) {
  const [format, setFormat] = useState("gguf");
  const start = useMutation({
    mutationFn: () =>
      send<{ metadata: { task_id: string } }>("POST", "/v1/models/create", { type: "export", params: { model_id: id, format } }),
    onSuccess: (made) => go(link("runs", made.metadata.task_id)),
  });
  return (
    <Card title="Export">
      <div className="actions">
        <label>
          Format{" "}
          <select value={format} onChange={(event) => setFormat(event.target.value)}>
            {FORMATS.map(([name, text]) => <option key={name} value={name}>{text}</option>)}
          </select>
        </label>
        <button type="button" disabled={start.isPending} onClick={() => start.mutate()}>Export</button>
      </div>
      <Failure error={start.error} />
    </Card>
  );
}

function Files({ id }: { id: string }) {
  const files = useFiles(id);
  if (!files.data) return <Card title="Files"><Waiting error={files.error} what="the files" /></Card>;
  return (
    <Card title={`Files (${files.data.length})`}>
      <FileTable files={files.data} at={`/v1/checkpoints/${id}/files`} />
    </Card>
  );
}

function CardText({ id }: { id: string }) {
  const [text, setText] = useState("");
  const [error, setError] = useState<unknown>(null);
  const open = async (isOpen: boolean) => {
    if (!isOpen || text) return;
    try {
      setText(await (await request(`/v1/checkpoints/${id}/card`)).text());
    } catch (problem) {
      setError(problem);
    }
  };
  return (
    <Card title="Card">
      <details onToggle={(event) => void open(event.currentTarget.open)}>
        <summary>Model card, in Markdown</summary>
        <Failure error={error} />
        <pre tabIndex={0}>{text || "Loading …"}</pre>
      </details>
    </Card>
  );
}

function Manifest({ id }: { id: string }) {
  const manifest = useManifest(id);
  return (
    <Card title="Manifest">
      <details>
        <summary>Settings, seed, parents, versions, hashes</summary>
        <Failure error={manifest.error} />
        <pre tabIndex={0}>{JSON.stringify(manifest.data ?? {}, null, 2)}</pre>
      </details>
    </Card>
  );
}
