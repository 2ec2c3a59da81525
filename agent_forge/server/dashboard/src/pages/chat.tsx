/** Talk with one or two checkpoints at once; what they write is shown as text, never as HTML. */

import { useEffect, useRef, useState, type FormEvent } from "react";
import { useQuery } from "@tanstack/react-query";
import { ApiError, get } from "../api/client";
import { useCheckpoints } from "../api/queries";
import { emptyTurn, reply, type ChatSettings, type Fact, type Piece, type Turn } from "../lib/chat";
import { modelName, seconds } from "../lib/format";
import { Command, Failure } from "../ui/parts";

const PERSONAS: [string, string][] = [
  ["None", ""],
  ["Helpful", "You are helpful: answer fully and kindly."],
  ["Creative", "You are creative: look for answers that are new."],
  ["Precise", "You are precise: answer briefly, and say when you do not know."],
];

const EXAMPLES = ["What is 48 plus 77?", "Remember that my door code is 4821."];

interface Listed {
  data: { id: string }[];
}

export function Chat({ query }: { query: URLSearchParams }) {
  const served = useQuery({ queryKey: ["served"], queryFn: () => get<Listed>("/v1/models"), retry: false });
  const [models, setModels] = useState([query.get("a") ?? "", query.get("b") ?? ""].filter((one, i) => one || i === 0));
  const [settings, setSettings] = useState({ system: "", temperature: "", maxTokens: "200", seed: "" });
  const [wantsAgent, setAsAgent] = useState<boolean | null>(null);
  const [turns, setTurns] = useState<Turn[][]>([[], []]);
  const [memories, setMemories] = useState<Fact[][]>([[], []]);
  const [text, setText] = useState("");
  const stop = useRef<AbortController | null>(null);
  const [busy, setBusy] = useState(false);
  const known = useCheckpoints().data ?? [];
  // The newest first, as the list of models has them: it is what a run has made last.
  const rank = (id: string) => known.findIndex((one) => one.id === id) >>> 0;
  const ids = [...new Set((served.data?.data ?? []).map((one) => one.id.replace(/:agent$/, "")))]
    .sort((a, b) => rank(a) - rank(b));
  const hasAgents = (served.data?.data ?? []).some((one) => one.id.endsWith(":agent"));
  // An agent without its tools writes its calls as text, so its tools are on until they are put off.
  const asAgent = wantsAgent ?? hasAgents;
  const chosen = models.map((one) => one || ids[0] || "");
  const hasNoChat = served.error instanceof ApiError && served.error.status === 404;
  useEffect(() => () => stop.current?.abort(), []);

  const keep = (side: number, facts: Fact[]) =>
    setMemories((all) => all.map((list, index) => (index === side ? facts : list)));
  const beginAgain = () => {
    setTurns([[], []]);
    setMemories([[], []]);
  };

  const send = async (event: FormEvent) => {
    event.preventDefault();
    const said = text.trim();
    if (!said || busy || !chosen[0]) return;
    setText("");
    setBusy(true);
    const control = new AbortController();
    stop.current = control;
    const asked = turns.map((list) => [...list, emptyTurn("user", said)]);
    setTurns(asked);
    const one = (side: number) => {
      const model = `${chosen[side] ?? ""}${asAgent ? ":agent" : ""}`;
      const from: ChatSettings = { ...settings, model, memory: asAgent ? (memories[side] ?? []) : [] };
      const before = asked[side] ?? [];
      return reply(from, before, control.signal, (turn) => {
        setTurns((all) => all.map((list, index) => (index === side ? [...before, turn] : list)));
        if (turn.memory) keep(side, turn.memory);
      });
    };
    await Promise.all(chosen.map((_, side) => one(side)));
    setBusy(false);
  };
  const set = (name: keyof typeof settings) => (value: string) => setSettings({ ...settings, [name]: value });
  return (
    <div className="page chat">
      <div className="card-head">
        <h1>Chat</h1>
        <div className="actions">
          <button type="button" aria-pressed={models.length > 1} onClick={() => setModels(models.length > 1 ? models.slice(0, 1) : [...models, ids[1] ?? ""])}>
            Two side by side
          </button>
          <button type="button" onClick={beginAgain} disabled={busy}>Begin again</button>
        </div>
      </div>
      {hasNoChat ? <p className="warning">This server has no chat. In a terminal: <code>forge chat DIRECTORY</code></p> : <Failure error={served.error} />}
      {served.data && !ids.length ? <p>There is no model to talk with yet. A run makes one.</p> : null}
      <Options settings={settings} set={set} asAgent={asAgent} setAsAgent={setAsAgent} hasAgents={hasAgents} />
      <div className={`sides of-${chosen.length}`}>
        {chosen.map((model, side) => (
          <Side
            key={side} ids={ids} model={model} turns={turns[side] ?? []}
            memory={asAgent ? (memories[side] ?? []) : null} onMemory={(facts) => keep(side, facts)}
            onModel={(id) => setModels(models.map((old, index) => (index === side ? id : old)))}
          />
        ))}
      </div>
      {ids.length && !turns.some((list) => list.length) ? (
        <div className="chips">
          <span className="quiet">For example</span>
          {EXAMPLES.map((one) => <button key={one} type="button" onClick={() => setText(one)}>{one}</button>)}
        </div>
      ) : null}
      <form className="say" onSubmit={(event) => void send(event)}>
        <label htmlFor="say" className="off-screen">Message</label>
        <textarea
          id="say" rows={2} value={text} placeholder="Say something" onChange={(event) => setText(event.target.value)}
          onKeyDown={(event) => {
            if (event.key === "Enter" && !event.shiftKey) void send(event);
          }}
        />
        {busy ? <button type="button" className="danger" onClick={() => stop.current?.abort()}>Stop</button>
          : <button type="submit" className="main" disabled={!text.trim() || !ids.length}>Send</button>}
      </form>
      <Command text={`forge chat ${chosen[0]?.slice(0, 12) || "MODEL"}`} note="the same in a terminal; put the model's directory in the place of its id" />
    </div>
  );
}

function Options({ settings, set, asAgent, setAsAgent, hasAgents }: {
  settings: { system: string; temperature: string; maxTokens: string; seed: string };
  set: (name: "system" | "temperature" | "maxTokens" | "seed") => (value: string) => void;
  asAgent: boolean;
  setAsAgent: (value: boolean) => void;
  hasAgents: boolean;
}) {
  const persona = PERSONAS.find(([, words]) => words === settings.system)?.[0] ?? "Own";
  return (
    <div className="options">
      <div className="chips" role="group" aria-label="Persona">
        <span className="quiet">Persona</span>
        {PERSONAS.map(([name, words]) => (
          <button key={name} type="button" aria-pressed={name === persona} onClick={() => set("system")(words)}>{name}</button>
        ))}
        {hasAgents ? (
          <label className="switch">
            <input type="checkbox" checked={asAgent} onChange={(event) => setAsAgent(event.target.checked)} /> Use its own tools and memory
          </label>
        ) : null}
      </div>
      <details>
        <summary>System message and sampling</summary>
        <div className="fields">
          <label className="field wide">
            <span>First message (system)</span>
            <input value={settings.system} onChange={(event) => set("system")(event.target.value)} />
          </label>
          <Small name="Temperature" value={settings.temperature} hint="the model's own" set={set("temperature")} />
          <Small name="Tokens at most" value={settings.maxTokens} hint="the model's own" set={set("maxTokens")} />
          <Small name="Seed" value={settings.seed} hint="a new one each time" set={set("seed")} />
        </div>
      </details>
    </div>
  );
}

function Small({ name, value, hint, set }: { name: string; value: string; hint: string; set: (value: string) => void }) {
  return (
    <label className="field"><span>{name}</span><input inputMode="decimal" value={value} placeholder={hint} onChange={(event) => set(event.target.value)} /></label>
  );
}

function Side({ ids, model, turns, memory, onMemory, onModel }: {
  ids: string[];
  model: string;
  turns: Turn[];
  /** What the agent remembers; null where the model answers without its tools. */
  memory: Fact[] | null;
  onMemory: (facts: Fact[]) => void;
  onModel: (id: string) => void;
}) {
  const known = useCheckpoints();
  const end = useRef<HTMLDivElement>(null);
  useEffect(() => {
    // In braces: browsers return a promise here, which React would take for a function that cleans up.
    end.current?.scrollIntoView({ block: "nearest" });
  }, [turns]);
  const name = (id: string) => {
    const one = known.data?.find((entry) => entry.id === id);
    return one ? `${modelName(one)}, ${id.slice(0, 8)}` : id;
  };
  const options = ids.includes(model) || !model ? ids : [model, ...ids];
  return (
    <section className="card side" aria-label={`Conversation with ${name(model)}`}>
      <label>
        <span className="off-screen">Model</span>
        <select value={model} onChange={(event) => onModel(event.target.value)}>
          {options.map((id) => <option key={id} value={id}>{name(id)}</option>)}
        </select>
      </label>
      <div className="turns" tabIndex={0} role="log" aria-label="Messages">
        {turns.map((turn, index) => <TurnView key={index} turn={turn} />)}
        <div ref={end} />
      </div>
      {memory ? <MemoryPanel facts={memory} onChange={onMemory} /> : null}
    </section>
  );
}

/** What the agent has kept in this conversation: it begins its next answer with these facts. */
function MemoryPanel({ facts, onChange }: { facts: Fact[]; onChange: (facts: Fact[]) => void }) {
  const [about, setAbout] = useState("");
  const [fact, setFact] = useState("");
  const add = () => {
    onChange([...facts.filter((one) => !about.trim() || one.about !== about.trim()), { about: about.trim(), fact: fact.trim() }]);
    setAbout("");
    setFact("");
  };
  return (
    <details className="memory" open>
      <summary>Memory <span className="quiet">{facts.length ? `${facts.length} ${facts.length === 1 ? "fact" : "facts"}` : "empty"}</span></summary>
      <ul>
        {facts.map((one, index) => (
          <li key={`${one.about} ${one.fact}`}>
            <span>{one.about ? <strong>{one.about}: </strong> : null}{one.fact}</span>
            <button type="button" onClick={() => onChange(facts.filter((_, place) => place !== index))}>
              Forget<span className="off-screen"> {one.about || one.fact}</span>
            </button>
          </li>
        ))}
      </ul>
      <form className="actions" onSubmit={(event) => { event.preventDefault(); if (fact.trim()) add(); }}>
        <input aria-label="Subject of a fact" placeholder="subject" value={about} onChange={(event) => setAbout(event.target.value)} />
        <input aria-label="Fact" placeholder="a fact to remember" value={fact} onChange={(event) => setFact(event.target.value)} />
        <button type="submit" disabled={!fact.trim()}>Add</button>
      </form>
      <p className="quiet">The agent's own calls of remember and forget change this list. It lives as long as this page.</p>
    </details>
  );
}

const ENDS: Record<string, string> = {
  length: "It reached the most tokens that were allowed.",
  stopped: "Stopped by you.",
  cut: "The connection ended before the reply did.",
  tool_calls: "It waits for the result of its call.",
};

function TurnView({ turn }: { turn: Turn }) {
  return (
    <article className={`turn ${turn.role}`} aria-label={turn.role === "user" ? "You" : "Model"}>
      {turn.pieces.map((piece, index) => <PieceView key={index} piece={piece} />)}
      {turn.error ? <p className="failure" role="alert">{turn.error}</p> : null}
      {turn.role === "assistant" && !turn.finish ? <span className="quiet" role="status">…</span> : null}
      {turn.finish && ENDS[turn.finish] ? <p className="quiet">{ENDS[turn.finish]}</p> : null}
      {turn.finish && turn.tokens ? (
        <p className="quiet">{turn.tokens} tokens in {seconds(turn.seconds)}</p>
      ) : null}
    </article>
  );
}

function PieceView({ piece }: { piece: Piece }) {
  switch (piece.kind) {
    case "text":
      return <p className="words">{piece.text}</p>;
    case "thought":
      return <p className="thought"><span className="tag">thinks</span> {piece.text}</p>;
    case "call":
      return <p className="tool"><span className="tag">{piece.name ? `calls ${piece.name}` : "a call that cannot be read"}</span> <code>{piece.text}</code></p>;
    case "result":
      return <p className={piece.failed ? "tool bad" : "tool"}><span className="tag">{piece.failed ? "fails" : "gets"}</span> <code>{piece.text}</code></p>;
  }
}
