/** Settings of a phase: flat keys, values as the command line writes them, differences, limits. */

import type { SettingSchema } from "../api/types";

export interface Setting {
  key: string;
  schema: SettingSchema;
  group: string;
}

/** All settings of a form's schema, in its order. */
export function flatSettings(schema: SettingSchema, prefix = ""): Setting[] {
  return Object.entries(schema.properties ?? {}).flatMap(([name, part]) => {
    const key = prefix + name;
    if (part.properties) return flatSettings(part, `${key}.`);
    return [{ key, schema: part, group: key.includes(".") ? (key.split(".")[0] ?? "") : "general" }];
  });
}

/** A value as `forge` takes it behind KEY=. */
export function written(value: unknown): string {
  if (value === null || value === undefined) return "null";
  if (Array.isArray(value)) return `[${value.map(written).join(",")}]`;
  if (typeof value === "object") {
    const parts = Object.entries(value).map(([name, one]) => `${name}:${written(one)}`);
    return `{${parts.join(",")}}`;
  }
  return String(value);
}

/** Nested settings as dotted keys. */
export function flatten(value: unknown, prefix = ""): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return { [prefix]: value };
  return Object.assign(
    {},
    ...Object.entries(value).map(([name, one]) => flatten(one, prefix ? `${prefix}.${name}` : name)),
  ) as Record<string, unknown>;
}

export interface Difference {
  key: string;
  before: string;
  after: string;
}

export function differences(
  before: Record<string, unknown>,
  after: Record<string, unknown>,
): Difference[] {
  const keys = [...new Set([...Object.keys(before), ...Object.keys(after)])].sort();
  const text = (values: Record<string, unknown>, key: string) =>
    key in values ? written(values[key]) : "—";
  return keys
    .map((key) => ({ key, before: text(before, key), after: text(after, key) }))
    .filter((row) => row.before !== row.after);
}

/** What is wrong with the text of a setting, "" when nothing is. */
export function objection(schema: SettingSchema, text: string): string {
  if (schema.enum && !schema.enum.map(String).includes(text)) {
    return `must be ${schema["x-allowed"] ?? `one of ${schema.enum.join(", ")}`}`;
  }
  if (schema.type === "integer" && !/^-?\d+$/.test(text)) return "must be a whole number";
  if (schema.type !== "integer" && schema.type !== "number") return "";
  const value = Number(text);
  if (text.trim() === "" || Number.isNaN(value)) return "must be a number";
  const low = schema.minimum !== undefined && value < schema.minimum;
  const high = schema.maximum !== undefined && value > schema.maximum;
  const under = schema.exclusiveMinimum !== undefined && value <= schema.exclusiveMinimum;
  const over = schema.exclusiveMaximum !== undefined && value >= schema.exclusiveMaximum;
  return low || high || under || over ? `must be ${schema["x-allowed"] ?? "within its limits"}` : "";
}

/** A word of a command line, in quotes where a shell would read it otherwise. */
export function shellWord(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** The command that starts the same run in a terminal. */
export function forgeCommand(phase: string, overrides: readonly string[]): string {
  return ["forge", phase, ...overrides.map(shellWord)].join(" ");
}
