/** The frame around every page: who you are, where you can go, whether the data are live. */

import { useQueryClient } from "@tanstack/react-query";
import { useEffect, useRef, useState, useSyncExternalStore } from "react";
import { asksAgainAt, key, onKeyChange } from "./api/client";
import { link, useRoute, type Route } from "./lib/route";
import { useLink, useLiveQueries } from "./live/hooks";
import { Chat } from "./pages/chat";
import { Compare } from "./pages/compare";
import { Login } from "./pages/login";
import { Model } from "./pages/model";
import { Models } from "./pages/models";
import { NewRun } from "./pages/new-run";
import { Run } from "./pages/run";
import { Runs } from "./pages/runs";
import { Settings } from "./pages/settings";

const PAGES: [string, string][] = [
  ["runs", "Runs"], ["new", "New run"], ["models", "Models"], ["chat", "Chat"],
  ["settings", "Settings"],
];

export function App() {
  const signedIn = useSyncExternalStore(onKeyChange, () => key() !== "");
  return signedIn ? <House /> : <Login />;
}

function House() {
  useLiveQueries();
  const route = useRoute();
  const client = useQueryClient();
  const main = useRef<HTMLElement>(null);
  useEffect(() => () => client.clear(), [client]);
  useEffect(() => {
    const name = PAGES.find(([page]) => page === route.page)?.[1] ?? "Runs";
    document.title = `${name} · Agent Forge`;
    window.scrollTo(0, 0);
  }, [route.page, route.id]);
  return (
    <>
      <a className="skip" href="#content" onClick={(event) => {
        event.preventDefault();
        main.current?.focus();
      }}>
        Skip to the content
      </a>
      <header className="top">
        <a className="brand" href={link("runs")}>
          <img src="/assets/anvil.svg" alt="" width="26" height="26" /> Agent Forge
        </a>
        <nav aria-label="Pages">
          {PAGES.map(([page, name]) => (
            <a key={page} href={link(page)} aria-current={isAt(route, page) ? "page" : undefined}>
              {name}
            </a>
          ))}
        </nav>
        <LiveMark />
      </header>
      <RateMark />
      <main id="content" ref={main} tabIndex={-1}>
        <Page route={route} />
      </main>
    </>
  );
}

function isAt(route: Route, page: string): boolean {
  return route.page === page || (page === "models" && route.page === "compare");
}

function Page({ route }: { route: Route }) {
  switch (route.page) {
    case "new":
      return <NewRun key={route.query.toString()} query={route.query} />;
    case "models":
      return route.id ? <Model key={route.id} id={route.id} /> : <Models />;
    case "compare":
      return <Compare query={route.query} />;
    case "chat":
      return <Chat query={route.query} />;
    case "settings":
      return <Settings />;
    default:
      return route.id ? <Run key={route.id} id={route.id} /> : <Runs />;
  }
}

const WORDS = {
  live: "Live",
  connecting: "Connecting",
  lost: "Connection lost; trying again. Jobs go on.",
};

function LiveMark() {
  const state = useLink();
  return (
    <span className={`link-mark ${state}`} role="status">
      <span aria-hidden="true" className="dot" />
      {WORDS[state]}
    </span>
  );
}

/** Why nothing comes for a while: this key has asked more often than the server allows. */
function RateMark() {
  const until = useSyncExternalStore(onKeyChange, asksAgainAt);
  const [now, setNow] = useState(0);
  useEffect(() => {
    if (!until) return undefined;
    setNow(Date.now());
    const clock = window.setInterval(() => setNow(Date.now()), 1000);
    return () => window.clearInterval(clock);
  }, [until]);
  if (!until) return null;
  const left = Math.max(1, Math.ceil((until - (now || until)) / 1000));
  return (
    <p className="warning rate" role="status">
      Too many requests with this key: the server answers it again in {left} s, and this page asks again
      by itself. Runs go on.
    </p>
  );
}
