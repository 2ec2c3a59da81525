/** This browser and this server: the key in use, dark or light, what the server is. */

import { key, setKey } from "../api/client";
import { useService } from "../api/queries";
import { setTheme, useTheme, type Theme } from "../lib/theme";
import { Card, Command, Failure } from "../ui/parts";

const THEMES: [Theme, string][] = [["system", "As the system"], ["light", "Light"], ["dark", "Dark"]];

export function Settings() {
  const service = useService();
  const chosen = useTheme();
  return (
    <div className="page">
      <h1>Settings</h1>
      <Card title="Look">
        <div className="choices" role="radiogroup" aria-label="Look">
          {THEMES.map(([value, name]) => (
            <label key={value} className={value === chosen ? "choice on" : "choice"}>
              <input type="radio" name="theme" checked={value === chosen} onChange={() => setTheme(value)} />
              <span>{name}</span>
            </label>
          ))}
        </div>
      </Card>
      <Card title="Key">
        <p>This tab uses the key <code>{`${key().slice(0, 8)}…`}</code>. It forgets it when it is closed.</p>
        <button type="button" onClick={() => setKey("")}>Sign out</button>
        <h3>Keys are made and revoked in a terminal</h3>
        <Command text="forge keys list" />
        <Command text="forge keys create NAME --scope read --expires-days 90" note="a key that can look and change nothing" />
        <Command text="forge keys revoke ID" note="at once, in a running server too" />
        <p className="quiet">
          A link signs another browser in: add <code>#key=</code> and the key to this page's address. The
          part behind # is not sent to the server and is removed from the address at once.
        </p>
        <p className="quiet">
          A key that asks too often is answered "try again in … s"; this page waits and asks again by itself.
        </p>
      </Card>
      <Card title="Server">
        <Failure error={service.error} />
        {service.data ? (
          <dl className="facts">
            <div><dt>Version</dt><dd>{service.data.version}</dd></div>
            <div><dt>Parts</dt><dd>{service.data.parts.join(", ")}</dd></div>
            <div><dt>Events so far</dt><dd>{service.data.last_seq.toLocaleString("en-US")}</dd></div>
          </dl>
        ) : null}
        <p className="quiet">The interface is described at <a href="/openapi.json">/openapi.json</a>. Nothing on this page comes from another machine.</p>
        <Command text="forge serve" />
      </Card>
    </div>
  );
}
