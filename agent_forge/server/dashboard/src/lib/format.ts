/** Numbers and times in words that a stranger reads: at most three figures, units behind them. */

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function number(value: number, figures = 3): string {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(figures - 1);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(figures)));
}

export function bytes(value: number): string {
  if (!value) return "";
  let unit = 0;
  let rest = value;
  while (rest >= 999.5 && unit < UNITS.length - 1) {
    rest /= 1000;
    unit += 1;
  }
  return `${number(rest)} ${UNITS[unit]}`;
}

export function count(value: number): string {
  if (value >= 1e9) return `${number(value / 1e9)} billion`;
  if (value >= 1e6) return `${number(value / 1e6)} million`;
  return Math.round(value).toLocaleString("en-US");
}

export function seconds(value: number): string {
  if (value < 1) return "under 1 s";
  if (value < 90) return `${Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  if (value < 172_800) {
    const minutes = Math.round(value / 60);
    return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  }
  return `${number(value / 86_400, 2)} days`;
}

export function percent(value: number): string {
  return `${value >= 10 || value === 0 ? Math.floor(value) : value.toFixed(1)}%`;
}

/** How long ago a time (seconds since the epoch) was. */
export function ago(time: number, now = Date.now() / 1000): string {
  const past = Math.max(0, now - time);
  return past < 5 ? "just now" : `${seconds(past)} ago`;
}

export function moment(time: number): string {
  return new Date(time * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

/** A snake_case or kebab-case name as words. */
export function words(name: string): string {
  const text = name.replace(/[_-]+/g, " ").trim();
  return text.charAt(0).toUpperCase() + text.slice(1);
}

const PHASES: Record<string, string> = {
  cognate: "Cognate",
  evomerge: "EvoMerge",
  quietstar: "Quiet-STaR",
  bitnet: "BitNet",
  train: "Train",
  bake: "Bake",
  adas: "ADAS",
  compress: "Compress",
  "run-all": "All phases",
  import: "Import",
  merge: "Merge",
  export: "Export",
};

/** The name of a phase as people write it. */
export function phaseName(name: string): string {
  return PHASES[name] ?? words(name);
}

export const PHASE_ORDER = [
  "cognate", "evomerge", "quietstar", "bitnet", "train", "bake", "adas", "compress",
];
