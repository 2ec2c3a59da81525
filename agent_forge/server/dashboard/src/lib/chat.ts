/** One conversation with /v1/chat/completions: what comes is added to the reply as it comes. */

import { request } from "../api/client";

/** What a model did, in order: a thought, a call of a tool, its result, text. */
export type Piece =
  | { kind: "text" | "thought"; text: string }
  | { kind: "call"; name: string; text: string }
  | { kind: "result"; text: string; failed: boolean };

/** What an agent has kept. */
export interface Fact {
  fact: string;
  about: string;
}

export interface Turn {
  role: "user" | "assistant";
  pieces: Piece[];
  /** How the reply ended, "" while it comes. */
  finish: string;
  error: string;
  tokens: number;
  seconds: number;
  /** What the agent remembers at the end of this turn; null where it did not say. */
  memory: Fact[] | null;
}

interface AgentEvent {
  event: string;
  name?: string;
  arguments?: unknown;
  broken?: string;
  text?: string;
  error?: string | boolean | null;
}

interface Delta {
  content?: string | null;
  reasoning?: string | null;
  agent_events?: AgentEvent[];
  agent_memory?: Fact[];
  tool_calls?: { function: { name: string; arguments: string } }[];
}

interface Chunk {
  error?: { message: string };
  choices?: { delta: Delta; finish_reason: string | null }[];
  usage?: { completion_tokens: number } | null;
}

export interface ChatSettings {
  model: string;
  system: string;
  temperature: string;
  maxTokens: string;
  seed: string;
  /** What the agent remembers when it begins. */
  memory: Fact[];
}

export const textOf = (turn: Turn): string =>
  turn.pieces.map((piece) => (piece.kind === "text" ? piece.text : "")).join("");

export const emptyTurn = (role: Turn["role"], text = ""): Turn => ({
  role, pieces: text ? [{ kind: "text", text }] : [], finish: "", error: "", tokens: 0, seconds: 0,
  memory: null,
});

function bodyOf(settings: ChatSettings, turns: Turn[]): string {
  const messages = turns
    .filter((turn) => !turn.error && (turn.role === "user" || textOf(turn)))
    .map((turn) => ({ role: turn.role, content: textOf(turn) }));
  const system = settings.system.trim();
  return JSON.stringify({
    model: settings.model,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
    ...(settings.temperature ? { temperature: Number(settings.temperature) } : {}),
    ...(settings.maxTokens ? { max_tokens: Number(settings.maxTokens) } : {}),
    ...(settings.memory.length ? { agent_memory: settings.memory } : {}),
    ...(settings.seed ? { seed: Number(settings.seed) } : {}),
  });
}

/** Ask for a reply; `tell` gets the growing turn after every chunk. */
export async function reply(
  settings: ChatSettings, turns: Turn[], signal: AbortSignal, tell: (turn: Turn) => void,
): Promise<void> {
  const began = performance.now();
  let turn = emptyTurn("assistant");
  try {
    const answer = await request("/v1/chat/completions", {
      method: "POST", body: bodyOf(settings, turns), signal,
    });
    for await (const chunk of chunks(answer)) {
      turn = { ...added(turn, chunk), seconds: (performance.now() - began) / 1000 };
      tell(turn);
    }
  } catch (error) {
    const stopped = error instanceof DOMException && error.name === "AbortError";
    turn = stopped ? { ...turn, finish: "stopped" } : { ...turn, error: (error as Error).message };
  }
  tell({ ...turn, finish: turn.finish || (turn.error ? "error" : "cut") });
}

async function* chunks(answer: Response): AsyncGenerator<Chunk> {
  const reader = answer.body?.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const part = await reader?.read();
    if (!part || part.done) return;
    const lines = (rest + part.value).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const text = line.slice(5).trim();
      if (text === "[DONE]") return;
      yield JSON.parse(text) as Chunk;
    }
  }
}

function added(turn: Turn, chunk: Chunk): Turn {
  if (chunk.error) return { ...turn, error: chunk.error.message };
  const choice = chunk.choices?.[0];
  const pieces: Delta = choice ? choice.delta : {};
  let list = turn.pieces;
  if (pieces.reasoning) list = grown(list, "thought", pieces.reasoning);
  if (pieces.content) list = grown(list, "text", pieces.content);
  for (const event of pieces.agent_events ?? []) list = [...list, pieceOf(event)];
  for (const call of pieces.tool_calls ?? []) {
    list = [...list, { kind: "call", name: call.function.name, text: call.function.arguments }];
  }
  return {
    ...turn,
    pieces: list,
    finish: choice?.finish_reason ?? turn.finish,
    memory: pieces.agent_memory ?? turn.memory,
    tokens: chunk.usage?.completion_tokens ?? turn.tokens,
  };
}

function grown(list: Piece[], kind: "text" | "thought", text: string): Piece[] {
  const last = list.at(-1);
  if (last && (last.kind === "text" || last.kind === "thought") && last.kind === kind) {
    return [...list.slice(0, -1), { kind, text: last.text + text }];
  }
  return [...list, { kind, text }];
}

function pieceOf(event: AgentEvent): Piece {
  if (event.event === "result") {
    return { kind: "result", text: event.text || String(event.error ?? ""), failed: Boolean(event.error) };
  }
  // Why a call cannot be read, its result says.
  return { kind: "call", name: event.name ?? "", text: event.broken ?? JSON.stringify(event.arguments ?? {}) };
}
