/** A form for the settings of a phase, drawn from their schema; only what differs is sent. */

import { useState } from "react";
import { useData } from "../api/queries";
import type { SettingSchema } from "../api/types";
import { words } from "../lib/format";
import { nearest } from "../lib/nearest";
import { objection, written, type Setting } from "../lib/settings";
import { Card, Prose } from "./parts";

interface Props {
  schema: SettingSchema;
  settings: Setting[];
  values: Record<string, string>;
  onChange: (key: string, value: string | null) => void;
}

export function SettingsForm({ schema, settings, values, onChange }: Props) {
  const [search, setSearch] = useState("");
  const [expert, setExpert] = useState(false);
  const text = search.trim().toLowerCase();
  const usable = settings.filter((one) => one.key !== "sources" && one.key !== "gate.base");
  const shown = usable.filter((one) =>
    text ? matches(one, text) : expert || !one.schema["x-expert"] || one.key in values,
  );
  const groups = [...new Set(shown.map((one) => one.group))];
  const best = text && !shown.length ? nearest(text, usable.map((one) => one.key)) : "";
  const changed = Object.keys(values).length;
  return (
    <Card
      title={`Settings${changed ? `, ${changed} changed` : ""}`}
      aside={
        <label>
          <input type="checkbox" checked={expert} onChange={(event) => setExpert(event.target.checked)} /> Show expert settings
        </label>
      }
    >
      <Presets schema={schema} values={values} onChange={onChange} />
      <label htmlFor="search" className="above">Find a setting</label>
      <input id="search" type="search" placeholder="a name or a word of its explanation" value={search} onChange={(event) => setSearch(event.target.value)} />
      {text && !shown.length ? (
        <p className="warning">
          No setting is called '{search}'.{" "}
          {best ? <>Did you mean <button type="button" onClick={() => setSearch(best)}>{best}</button>?</> : null}
        </p>
      ) : null}
      {groups.map((group) => {
        const own = shown.filter((one) => one.group === group);
        const touched = own.filter((one) => one.key in values).length;
        return (
          <details key={`${group}${text ? "!" : ""}`} open={text !== "" || group === "general" || touched > 0}>
            <summary>{words(group)} <span className="quiet">{own.length}{touched ? `, ${touched} changed` : ""}</span></summary>
            <div className="fields">
              {own.map((one) => <Field key={one.key} setting={one} text={values[one.key]} onChange={onChange} />)}
            </div>
          </details>
        );
      })}
    </Card>
  );
}

function matches(setting: Setting, text: string): boolean {
  return `${setting.key} ${setting.schema.description ?? ""}`.toLowerCase().includes(text);
}

/** Options of the config groups, such as optim=muon: each stands for many settings. */
function Presets({ schema, values, onChange }: Omit<Props, "settings">) {
  const groups = Object.entries(schema["x-groups"] ?? {});
  if (!groups.length) return null;
  return (
    <div className="fields">
      {groups.map(([group, options]) => (
        <label key={group} className="field">
          <span>{words(group)} preset</span>
          <select value={values[group] ?? ""} onChange={(event) => onChange(group, event.target.value || null)}>
            <option value="">the phase's own</option>
            {options.map((option) => <option key={option} value={option}>{option}</option>)}
          </select>
        </label>
      ))}
    </div>
  );
}

function Field({ setting, text, onChange }: {
  setting: Setting;
  text: string | undefined;
  onChange: Props["onChange"];
}) {
  const { key, schema } = setting;
  const standard = written(schema.default);
  const value = text ?? standard;
  const problem = text === undefined ? "" : objection(schema, text);
  const change = (next: string) => onChange(key, next === standard ? null : next);
  const id = `set-${key}`;
  const unit = schema["x-unit"] && !["text", "count"].includes(schema["x-unit"]) ? `, ${schema["x-unit"]}` : "";
  return (
    <div className={text === undefined ? "field" : "field changed"}>
      <label htmlFor={id}>
        {schema.title ?? key}<span className="quiet">{unit}</span>
      </label>
      <Input id={id} schema={schema} value={value} isWrong={problem !== ""} onChange={change} />
      <p id={`${id}-help`} className="quiet help">
        {schema.description ? <><Prose text={sentence(schema.description)} /><br /></> : null}
        <code>{key}</code>, default {standard || "empty"}
        {schema["x-allowed"] && schema["x-allowed"] !== "true or false" ? `; ${schema["x-allowed"]}` : ""}
      </p>
      {problem ? <p className="failure" role="alert">{problem}</p> : null}
      {text !== undefined ? <button type="button" onClick={() => onChange(key, null)}>Back to {standard}</button> : null}
    </div>
  );
}

const sentence = (text: string) =>
  `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

function Input({ id, schema, value, isWrong, onChange }: {
  id: string;
  schema: SettingSchema;
  value: string;
  isWrong: boolean;
  onChange: (value: string) => void;
}) {
  const isData = schema["x-takes"] === "data source";
  const shared = { id, "aria-describedby": `${id}-help`, "aria-invalid": isWrong || undefined };
  if (isData) return <DataSource {...shared} value={value} onChange={onChange} />;
  if (schema.type === "boolean" || schema.enum) {
    const options = schema.enum?.map(String) ?? ["true", "false"];
    return (
      <select {...shared} value={value} onChange={(event) => onChange(event.target.value)}>
        {options.map((option) => <option key={option}>{option}</option>)}
      </select>
    );
  }
  const isNumber = schema.type === "integer" || schema.type === "number";
  return (
    <input
      {...shared} inputMode={isNumber ? "decimal" : "text"} spellCheck={false} value={value}
      onChange={(event) => onChange(event.target.value)}
    />
  );
}

function DataSource({ value, onChange, ...shared }: {
  id: string;
  value: string;
  onChange: (value: string) => void;
}) {
  const data = useData();
  const known = (data.data ?? []).map((one) => `[${one.name}]`);
  const options = [...new Set([value, "[]", ...known])];
  return (
    <select {...shared} value={value} onChange={(event) => onChange(event.target.value)}>
      {options.map((option) => <option key={option}>{option}</option>)}
    </select>
  );
}
