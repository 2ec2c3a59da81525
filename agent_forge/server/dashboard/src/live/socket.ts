/** One WebSocket per tab: opened with a ticket, opened again behind the last number when it is lost. */

import { ApiError, get, key, send } from "../api/client";
import type { Message, ServiceInfo } from "../api/types";
import { openSeries, reloadAll } from "./series";

export type Link = "connecting" | "live" | "lost";
type Take = (messages: Message[]) => void;

const FIRST_WAIT = 500;
const LONGEST_WAIT = 10_000;
const SILENCE = 40_000; // the server says something every 15 s

class LiveLink {
  state: Link = "connecting";
  private after: number | null = null;
  private socket: WebSocket | null = null;
  private wait = FIRST_WAIT;
  private timer = 0;
  private silence = 0;
  private flushTimer = 0;
  private batch: Message[] = [];
  private running = false;
  private readonly states = new Set<() => void>();
  private readonly takers = new Set<Take>();

  start(): void {
    if (this.running) return;
    this.running = true;
    void this.open();
  }

  stop(): void {
    this.running = false;
    this.after = null;
    window.clearTimeout(this.timer);
    window.clearTimeout(this.silence);
    this.socket?.close();
    this.socket = null;
    this.set("connecting");
  }

  onState = (tell: () => void): (() => void) => {
    this.states.add(tell);
    return () => this.states.delete(tell);
  };

  onMessages(take: Take): () => void {
    this.takers.add(take);
    return () => this.takers.delete(take);
  }

  current = (): Link => this.state;

  private set(state: Link): void {
    if (this.state === state) return;
    this.state = state;
    this.states.forEach((tell) => tell());
  }

  private async open(): Promise<void> {
    if (!this.running || !key()) return;
    try {
      this.after ??= (await get<ServiceInfo>("/v1/service")).last_seq;
      const { ticket } = await send<{ ticket: string }>("POST", "/v1/tickets");
      const scheme = window.location.protocol === "https:" ? "wss" : "ws";
      const socket = new WebSocket(`${scheme}://${window.location.host}/ws?ticket=${ticket}`);
      this.socket = socket;
      socket.onopen = () => this.opened(socket);
      socket.onmessage = (event: MessageEvent<string>) => this.read(event.data);
      socket.onclose = () => this.lost(socket);
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) return;
      if (error instanceof ApiError && error.retryAfter) this.wait = error.retryAfter * 1000;
      this.again();
    }
  }

  private opened(socket: WebSocket): void {
    const request = { type: "subscribe", channel: "phase_updates", after: this.after };
    socket.send(JSON.stringify(request));
    this.wait = FIRST_WAIT;
    this.set("live");
    this.listen();
  }

  private listen(): void {
    window.clearTimeout(this.silence);
    this.silence = window.setTimeout(() => this.socket?.close(), SILENCE);
  }

  private read(text: string): void {
    this.listen();
    const message = JSON.parse(text) as Message;
    if (message.type === "snapshot" || message.type === "gap") {
      if (message.type === "snapshot") this.after = message.seq;
      reloadAll();
    } else if (message.task_id) {
      this.after = Math.max(this.after ?? 0, message.seq);
      openSeries(message.task_id)?.take(message);
    } else return;
    this.batch.push(message);
    this.flushTimer ||= window.setTimeout(() => this.flush(), 150);
  }

  private flush(): void {
    this.flushTimer = 0;
    const messages = this.batch;
    this.batch = [];
    this.takers.forEach((take) => take(messages));
  }

  private lost(socket: WebSocket): void {
    if (this.socket !== socket) return;
    this.socket = null;
    window.clearTimeout(this.silence);
    this.again();
  }

  private again(): void {
    if (!this.running) return;
    this.set("lost");
    this.timer = window.setTimeout(() => void this.open(), this.wait);
    this.wait = Math.min(this.wait * 2, LONGEST_WAIT);
  }
}

export const live = new LiveLink();
