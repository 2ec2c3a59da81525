/** Numbers and times in words that a stranger reads: at most three figures, units behind them. */

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function number(value: number, figures = 3): string {
  if (!Number.isFinite(value)) return "not a number";
  const size = Math.abs(value);
  if (size >= 999_500) return inWords(value, figures);
  if (size >= 1000) return signed(Math.round(value).toLocaleString("en-US"));
  if (size !== 0 && size < 5e-6) return "≈ 0";
  return signed(String(Number(value.toPrecision(figures))));
}

/** A measured number: its three figures are written with their zeros, as in 1.90. */
export function measured(value: number): string {
  const size = Math.abs(value);
  if (size < 0.001 || size >= 999.5) return number(value);
  const rounded = Number(value.toPrecision(3));
  return signed(rounded.toFixed(2 - Math.floor(Math.log10(Math.abs(rounded)))));
}

/** Labels of an axis, all with as many decimals as its step has. */
export function tickLabels(values: number[], step: number): string[] {
  const decimals = [0, 1, 2, 3, 4, 5].find((one) => Math.abs(step * 10 ** one - Math.round(step * 10 ** one)) < 1e-6);
  if (!decimals) return values.map((value) => number(value, 4));
  return values.map((value) => signed((Math.abs(value) < step / 2 ? 0 : value).toFixed(decimals)));
}

const signed = (text: string) => text.replace("-", "−");

function inWords(value: number, figures: number): string {
  const [factor, word] = ([[1e12, "trillion"], [1e9, "billion"], [1e6, "million"]] as const)
    .find(([least]) => Math.abs(value) >= 0.9995 * least) ?? [1, ""];
  return `${signed(String(Number((value / factor).toPrecision(figures))))} ${word}`;
}

export function bytes(value: number): string {
  if (!value) return "";
  let unit = 0;
  let rest = value;
  while (rest >= 999.5 && unit < UNITS.length - 1) {
    rest /= 1000;
    unit += 1;
  }
  // Models are compared in MB, also those below one.
  if (unit === 1 && rest >= 9.995) return `${measured(rest / 1000)} MB`;
  return `${unit > 1 ? measured(rest) : number(rest)} ${UNITS[unit]}`;
}

export function count(value: number): string {
  return value >= 1e6 ? number(value) : Math.round(value).toLocaleString("en-US");
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
  const text = name.replace(/[_-]+/g, " ").trim().replace(/\b(\w+) \1\b/g, "$1");
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

const TASKS: Record<string, string> = { tools: "tool calls", choice: "multiple choice", unseen: "unseen text" };

/** The name of a task of a gate, as people say it. */
export const taskName = (name: string): string => TASKS[name] ?? name.replaceAll("_", " ");

/** A sentence that a phase wrote, with its figures rounded and its names in words. */
export function tidy(text: string, isStart = true): string {
  const said = text
    .replace(/(?<![\w.])(\d{1,3}(?:,\d{3})+|\d{4,}) bytes\b/g, (_, digits: string) => bytes(Number(digits.replaceAll(",", ""))))
    .replace(/(?<![\w.,])-?\d+\.\d+(?![\w]|\.\d)/g, (digits) => (/\d{4}|\.\d{4}/.test(digits) ? number(Number(digits)) : signed(digits)))
    .replace(/(?<![\w./=`-])[a-z]+(?:_[a-z0-9]+)+(?![\w./=`])/g, (name) => name.replaceAll("_", " "))
    .replaceAll(" -> ", " → ");
  const isPath = /^\S*\//.test(said);
  return isStart && !isPath ? said.charAt(0).toUpperCase() + said.slice(1) : said;
}

/** The name of a phase as people write it. */
export function phaseName(name: string): string {
  return PHASES[name] ?? words(name);
}

/** A checkpoint's name beside its phase; what a phase has named after itself is said once. */
export const modelName = (one: { name: string; phase: string }): string =>
  one.name === one.phase ? phaseName(one.phase) : `${one.name.replaceAll("_", " ")}, ${phaseName(one.phase)}`;

export const PHASE_ORDER = [
  "cognate", "evomerge", "quietstar", "bitnet", "train", "bake", "adas", "compress",
];
