/** Dark or light: the system's choice, or the user's, which this browser keeps. */

import { useCallback, useSyncExternalStore } from "react";

export type Theme = "system" | "light" | "dark";
const STORED = "forge-theme";
const listeners = new Set<() => void>();

export function theme(): Theme {
  const value = window.localStorage.getItem(STORED);
  return value === "light" || value === "dark" ? value : "system";
}

export function applyTheme(): void {
  document.documentElement.dataset.theme = theme();
}

export function setTheme(value: Theme): void {
  window.localStorage.setItem(STORED, value);
  applyTheme();
  listeners.forEach((tell) => tell());
}

function subscribe(tell: () => void): () => void {
  const media = window.matchMedia("(prefers-color-scheme: dark)");
  listeners.add(tell);
  media.addEventListener("change", tell);
  return () => {
    listeners.delete(tell);
    media.removeEventListener("change", tell);
  };
}

export function isDark(): boolean {
  const chosen = theme();
  return chosen === "system" ? matchMedia("(prefers-color-scheme: dark)").matches : chosen === "dark";
}

/** Whether a media query holds; the component is drawn again when that changes. */
export function useMedia(query: string): boolean {
  const watch = useCallback((tell: () => void) => {
    const media = window.matchMedia(query);
    media.addEventListener("change", tell);
    return () => media.removeEventListener("change", tell);
  }, [query]);
  return useSyncExternalStore(watch, () => window.matchMedia(query).matches);
}

/** Whether the page is dark now; charts are drawn again when that changes. */
export function useDark(): boolean {
  return useSyncExternalStore(subscribe, isDark);
}

export function useTheme(): Theme {
  return useSyncExternalStore(subscribe, theme);
}
