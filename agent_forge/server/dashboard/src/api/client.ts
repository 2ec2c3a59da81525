/** Ask the server: one function for JSON, one for files; every failure is an ApiError in one line. */

const STORED = "forge-key";

export class ApiError extends Error {
  readonly status: number;
  readonly retryAfter: number;

  /** status: HTTP status, 0 when the server did not answer. retryAfter: seconds, 0 if unknown. */
  constructor(status: number, message: string, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

type Listener = () => void;
const listeners = new Set<Listener>();
let refusal = "";

/** Take a key from the fragment (#key=…) and remove it from the address bar and the history. */
export function takeKeyFromAddress(): void {
  const match = /^#key=([^&]+)/.exec(window.location.hash);
  if (match?.[1]) {
    setKey(decodeURIComponent(match[1]));
    window.history.replaceState(null, "", window.location.pathname + "#/");
  }
}

export function key(): string {
  return window.sessionStorage.getItem(STORED) ?? "";
}

export function setKey(value: string): void {
  refusal = "";
  if (value) window.sessionStorage.setItem(STORED, value.trim());
  else window.sessionStorage.removeItem(STORED);
  listeners.forEach((tell) => tell());
}

/** Why the last key was refused, "" when it was not. */
export function refusedBecause(): string {
  return refusal;
}

/** Leave the session because the server does not take the key any more. */
export function refuseKey(): void {
  if (!key()) return;
  window.sessionStorage.removeItem(STORED);
  refusal = "The server does not take this key any more: it has expired, was revoked, or was mistyped.";
  listeners.forEach((tell) => tell());
}

let asksAgain = 0;

/** When the server takes this key's requests again, in milliseconds since the epoch; 0 if it does now. */
export function asksAgainAt(): number {
  return asksAgain;
}

function waitFor(seconds: number): void {
  asksAgain = Math.max(asksAgain, Date.now() + 1000 * seconds);
  listeners.forEach((tell) => tell());
  window.setTimeout(() => {
    if (Date.now() < asksAgain) return;
    asksAgain = 0;
    listeners.forEach((tell) => tell());
  }, 1000 * seconds + 50);
}

export function onKeyChange(listener: Listener): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  headers.set("authorization", `Bearer ${key()}`);
  if (init.body) headers.set("content-type", "application/json");
  let answer: Response;
  try {
    answer = await fetch(path, { ...init, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer. Jobs go on without it.");
  }
  if (!answer.ok) throw await failure(answer);
  return answer;
}

async function failure(answer: Response): Promise<ApiError> {
  if (answer.status === 401) refuseKey();
  const wait = Number(answer.headers.get("retry-after") ?? 0) || 0;
  if (answer.status === 429) waitFor(wait);
  let message = `${answer.status} ${answer.statusText}`;
  try {
    const body = (await answer.json()) as { error?: { message?: string } };
    message = body.error?.message ?? message;
  } catch {
    // The answer is not JSON; its status says enough.
  }
  return new ApiError(answer.status, message, wait);
}

export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await request(path, { signal })).json() as Promise<T>;
}

export async function send<T>(method: "POST" | "PUT", path: string, body?: unknown): Promise<T> {
  const content = body === undefined ? undefined : JSON.stringify(body);
  return (await request(path, { method, body: content })).json() as Promise<T>;
}

const PART = 8_000_000; // bytes of one request
const TRIES = 4;

/**
 * Download a file in parts; a part that breaks off is asked for again, and no other.
 * The key travels in a header, which a link cannot carry. tell: gets the share that is there.
 */
export async function download(
  path: string, name: string, size: number, tell: (share: number) => void,
): Promise<void> {
  const parts: Blob[] = [];
  for (let start = 0; start < size; start += PART) {
    parts.push(await part(path, start, Math.min(start + PART, size) - 1));
    tell(Math.min(1, (start + PART) / size));
  }
  const blob = new Blob(parts);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  window.setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function part(path: string, first: number, last: number): Promise<Blob> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      const answer = await request(path, { headers: { range: `bytes=${first}-${last}` } });
      const blob = await answer.blob();
      if (blob.size === last - first + 1) return blob;
      throw new ApiError(0, `The server sent ${blob.size} bytes of ${last - first + 1}.`);
    } catch (error) {
      const isLost = error instanceof TypeError || (error instanceof ApiError && [0, 429, 503].includes(error.status));
      if (!isLost || attempt === TRIES) throw error;
      await new Promise((resolve) => window.setTimeout(resolve, 500 * 2 ** attempt));
    }
  }
}
