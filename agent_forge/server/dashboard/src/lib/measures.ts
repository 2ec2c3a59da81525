/** A metric's internal name as words, with its unit and the factor to that unit. */

import { words } from "./format";

export interface Label {
  name: string;
  unit: string;
  factor: number;
}

const ENDINGS: [string, string, number][] = [
  ["_bits_per_byte", "bits per byte", 1], ["_tokens_per_second", "tokens per second", 1],
  ["_per_second", "per second", 1], ["_nats", "nats", 1], ["_bytes", "MB", 1e-6],
  ["_seconds", "s", 1], ["_share", "%", 100], ["_kept", "%", 100],
];
const WHOLE: Record<string, [string, string, number]> = {
  loss: ["Loss", "nats per token", 1], tokens_per_second: ["Tokens per second", "", 1],
  bytes: ["Size", "MB", 1e-6], bytes_of_fp32: ["Size against float32", "%", 100],
  bytes_of_parent: ["Size against the parent", "%", 100], bits: ["Bits per weight", "", 1],
  bits_per_weight: ["Bits per weight", "", 1], bits_per_byte: ["Bits per byte", "", 1],
  seed_share: ["Weights coded as seeds", "%", 100],
  zeros: ["Weights that are zero", "%", 100], quality: ["Quality against the parent", "%", 100],
  gain: ["Gain", "nats per token", 1], mean: ["Mean fitness", "", 1], grad_norm: ["Norm of the gradient", "", 1],
};

export function labelOf(key: string): Label {
  const [name, unit, factor] = WHOLE[key] ?? [];
  if (name !== undefined) return { name, unit: unit ?? "", factor: factor ?? 1 };
  for (const [ending, its, by] of ENDINGS) {
    if (!key.endsWith(ending)) continue;
    const rest = ending === "_kept" ? key : key.slice(0, -ending.length);
    return { name: named(rest), unit: its, factor: by };
  }
  return { name: named(key), unit: "", factor: 1 };
}

const named = (key: string) => words(key.replaceAll("/", ", "));

/** The bounds of an interval are shown beside its value, not as figures of their own. */
export const isBound = (key: string): boolean => /(^|_)(low|high)$/.test(key);
