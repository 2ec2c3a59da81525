/** The first page: a key by hand, or by a link that carries it in its fragment. */

import { useState, type FormEvent } from "react";
import { refusedBecause, setKey } from "../api/client";
import { Command } from "../ui/parts";

export function Login() {
  const [value, setValue] = useState("");
  const [error, setError] = useState(refusedBecause());
  const [busy, setBusy] = useState(false);
  const enter = async (event: FormEvent) => {
    event.preventDefault();
    setBusy(true);
    const problem = await objectionTo(value.trim());
    setBusy(false);
    if (problem) setError(problem);
    else setKey(value.trim());
  };
  return (
    <main className="login">
      <h1>
        <img src="/assets/anvil.svg" alt="" width="36" height="36" /> Agent Forge
      </h1>
      {error ? <p className="failure" role="alert">{error}</p> : null}
      <form onSubmit={(event) => void enter(event)}>
        <label htmlFor="key">Key of this server</label>
        <input
          id="key" type="password" autoComplete="off" spellCheck={false} required autoFocus
          value={value} onChange={(event) => setValue(event.target.value)}
        />
        <button type="submit" className="main" disabled={busy || !value.trim()}>
          {busy ? "Checking …" : "Enter"}
        </button>
      </form>
      <p>The server shows its first key when it starts. Another one is made in a terminal:</p>
      <Command text="forge keys create dashboard" />
      <p className="quiet">
        The key stays in this tab until it is closed, and is sent to this server alone.
      </p>
    </main>
  );
}

/** Ask the server whether it takes a key, before the tab keeps it. */
async function objectionTo(key: string): Promise<string> {
  try {
    const headers = { authorization: `Bearer ${key}` };
    const answer = await fetch("/v1/service", { headers, credentials: "omit", cache: "no-store" });
    if (answer.ok) return "";
    if (answer.status === 401) {
      return "The server does not know this key. It may have expired, or a part of it is missing.";
    }
    if (answer.status === 403) return "This key may not read here; make one with the scope 'read'.";
    if (answer.status === 429) {
      const wait = answer.headers.get("retry-after") ?? "60";
      return `Too many tries from this machine. Wait ${wait} seconds, then enter the key again.`;
    }
    return `The server answered ${answer.status} ${answer.statusText}.`;
  } catch {
    return "The server does not answer. Is `forge serve` running?";
  }
}
