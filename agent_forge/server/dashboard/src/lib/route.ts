/** The page is in the fragment, so that the server has one page to send and links can be shared. */

import { useSyncExternalStore } from "react";

export interface Route {
  page: string;
  id: string;
  query: URLSearchParams;
}

function parse(hash: string): Route {
  const [path = "", search = ""] = hash.replace(/^#\/?/, "").split("?");
  const [page = "", id = ""] = path.split("/");
  return { page: page || "runs", id: decodeURIComponent(id), query: new URLSearchParams(search) };
}

let hash = "";
let route = parse("");

function current(): Route {
  if (window.location.hash !== hash) {
    hash = window.location.hash;
    route = parse(hash);
  }
  return route;
}

function subscribe(tell: () => void): () => void {
  window.addEventListener("hashchange", tell);
  return () => window.removeEventListener("hashchange", tell);
}

export function useRoute(): Route {
  return useSyncExternalStore(subscribe, current);
}

export function link(page: string, id = "", query: Record<string, string> = {}): string {
  const search = new URLSearchParams(query).toString();
  return `#/${page}${id ? `/${encodeURIComponent(id)}` : ""}${search ? `?${search}` : ""}`;
}

export function go(target: string): void {
  window.location.hash = target;
}
