// Play one scene in Chromium and print what was seen as one line of JSON.
// node browser.mjs SCENE URL KEY FOLDER-WITH-NODE_MODULES [ARGUMENT]

import { spawn } from "node:child_process";
import { readFileSync, unlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

const [scene, givenUrl, givenKey, home, argument] = process.argv.slice(2);
let [url, key] = [givenUrl, givenKey];
const require = createRequire(join(home, "package.json"));
const { chromium } = require("playwright-core");
const PAGES = ["runs", "new?phase=bitnet", "models", "chat", "settings"];
const WAIT = 60_000;

const seen = { outside: [], errors: [] };
const browser = await chromium.launch({
  executablePath: process.env.FORGE_CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
});

/** A fresh context; every request that leaves the server and every thrown error is noted. */
async function context(options = {}) {
  const one = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  one.setDefaultTimeout(WAIT);
  one.on("request", (request) => {
    if (!request.url().startsWith(url) && !/^(data|blob):/.test(request.url())) {
      seen.outside.push(request.url());
    }
  });
  one.on("weberror", (error) => seen.errors.push(String(error.error())));
  return one;
}

/** A tab that is signed in, at a page. */
async function open(one, hash) {
  const page = await one.newPage();
  await page.addInitScript((value) => sessionStorage.setItem("forge-key", value), key);
  await page.goto(`${url}/#/${hash}`);
  await page.waitForSelector("main h1, main h2");
  return page;
}

async function ask(method, path, body) {
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  const answer = await fetch(url + path, { method, headers, body: body && JSON.stringify(body) });
  return answer.json();
}

const start = (config) => ask("POST", "/v1/jobs", { phase_name: "bitnet", config });
const state = (page) => page.locator("h1 .state").innerText().then((text) => text.replace(/^\W+/, ""));
const until = (page, word) => page.locator("h1 .state", { hasText: word }).waitFor();
const says = (page) => page.locator(".chart-says");
const points = async (page) => Number(await says(page).getAttribute("data-points"));
const more = (page, count) =>
  page.waitForFunction(
    (least) => Number(document.querySelector(".chart-says")?.getAttribute("data-points")) > least, count,
  );

/** The page has its data. */
async function settled(page) {
  await page.waitForSelector("main h1, main h2");
  await page.waitForFunction(() => !document.body.innerText.includes("Loading"));
}

/** What axe finds at a page as it is now. rules: the names of some, [] for all. */
async function violations(page, where, rules = []) {
  if (!(await page.evaluate(() => "axe" in window))) {
    await page.evaluate(readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
  }
  const found = await page.evaluate(
    (names) => window.axe.run(document, names.length ? { runOnly: { type: "rule", values: names } } : {}),
    rules,
  );
  return found.violations.map((rule) => {
    const places = rule.nodes.map((node) => node.target.join(" ")).slice(0, 3);
    return `${where}: ${rule.id}: ${places.join(", ")}`;
  });
}

/** The run that was recorded. */
async function recorded() {
  const jobs = await ask("GET", "/v1/jobs");
  return jobs.find((job) => job.origin === "terminal").id;
}

async function ended(id) {
  while ((await ask("GET", `/v1/jobs/${id}`)).ended === null) await new Promise((go) => setTimeout(go, 50));
}

/** The buttons of a run's phases. */
async function picks(page) {
  await page.locator(".pipeline .pick").nth(7).waitFor();
  await settled(page);
  return page.locator(".pipeline .pick").all();
}

const openAll = (page) =>
  page.evaluate(() => document.querySelectorAll("details").forEach((one) => (one.open = true)));

/** The servers that scenes have started. One that outlives the browser would keep its caller waiting. */
const children = [];

/** Start the server that a scene may kill. */
async function serve(command) {
  const child = spawn(command[0], command.slice(1), { stdio: ["ignore", "pipe", "inherit"] });
  children.push(child);
  const [line] = await Promise.race([
    new Promise((go) => createInterface({ input: child.stdout }).once("line", (text) => go([text]))),
    new Promise((_, fail) => child.once("exit", () => fail(new Error("the server ended")))),
  ]);
  return { child, ...JSON.parse(line) };
}

const scenes = {
  async flow() {
    const one = await context();
    let page = await open(one, "new?phase=bitnet");
    await page.getByLabel("One KEY=VALUE per line").fill("train.steps=400\ngate.samples=100");
    await page.getByRole("button", { name: "Start", exact: true }).click();
    await until(page, "Running");
    seen.started = await state(page);
    await more(page, 0);
    const address = page.url();
    seen.points_before = await points(page);
    await page.close();
    page = await open(one, address.split("#/")[1]);
    await more(page, seen.points_before - 1);
    seen.points_after = await points(page);
    await more(page, seen.points_after);
    seen.points_later = await points(page);
    await page.getByRole("button", { name: "Pause" }).click();
    await until(page, "Paused");
    seen.paused = await state(page);
    seen.points_paused = await points(page);
    await page.getByRole("button", { name: "Resume" }).click();
    await until(page, "Running");
    seen.resumed = await state(page);
    await more(page, seen.points_paused);
    seen.points_resumed = await points(page);
    await page.getByRole("button", { name: "Cancel" }).click();
    await until(page, "Cancelled");
    seen.cancelled = await state(page);
  },

  async gap() {
    const job = await start(["train.steps=20"]);
    const page = await open(await context(), `runs/${job.id}`);
    await until(page, "Done");
    await more(page, 19);
    seen.points = await points(page);
    seen.gaps = Number(await says(page).getAttribute("data-gaps"));
    seen.says = await says(page).innerText();
    seen.verdict = await state(page);
    seen.keeps = await page.locator(".pipeline .keeps").innerText();
  },

  async refused() {
    const page = await (await context()).newPage();
    await page.addInitScript((value) => {
      if (!sessionStorage.getItem("seen")) sessionStorage.setItem("forge-key", value);
      sessionStorage.setItem("seen", "1");
    }, key);
    await page.goto(url);
    seen.says = await page.locator(".login .failure").innerText();
    seen.kept = await page.evaluate(() => sessionStorage.getItem("forge-key"));
  },

  async link() {
    const page = await (await context()).newPage();
    await page.goto(`${url}/#key=${key}`);
    await page.locator(".link-mark.live").waitFor();
    seen.address = page.url();
    seen.live = await page.locator(".link-mark").innerText();
    seen.in_local_storage = await page.evaluate(
      (value) => JSON.stringify(localStorage).includes(value), key,
    );
  },

  async axe() {
    const job = await start(["train.steps=20"]);
    await ended(job.id);
    seen.violations = [];
    seen.looked_at = 0;
    // The themes differ in their colours alone.
    for (const [colorScheme, rules] of [["light", []], ["dark", ["color-contrast"]]]) {
      const one = await context({ colorScheme });
      const page = await open(one, "settings");
      for (const hash of [...PAGES, `runs/${job.id}`]) {
        await page.evaluate((target) => (location.hash = `#/${target}`), hash);
        await settled(page);
        seen.violations.push(...(await violations(page, `${colorScheme} ${hash}`, rules)));
        seen.looked_at += 1;
      }
      await page.evaluate((target) => (location.hash = `#/${target}`), `runs/${await recorded()}`);
      for (const pick of await picks(page)) {
        await pick.click();
        await openAll(page);
        seen.violations.push(...(await violations(page, `${colorScheme} ${await pick.innerText()}`, rules)));
        seen.looked_at += 1;
      }
      await one.close();
    }
  },

  async narrow() {
    const job = await start(["train.steps=20"]);
    await ended(job.id);
    const page = await open(await context({ viewport: { width: 360, height: 740 } }), "runs");
    seen.wide = [];
    for (const hash of [...PAGES, `runs/${job.id}`]) {
      await page.evaluate((target) => (location.hash = `#/${target}`), hash);
      await page.waitForSelector("main h1, main h2");
      await page.waitForFunction(() => !document.body.innerText.includes("Loading"));
      const over = await page.evaluate(
        () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
      );
      if (over > 0) seen.wide.push(`${hash}: ${over} px`);
    }
    await page.evaluate((target) => (location.hash = `#/${target}`), `runs/${await recorded()}`);
    for (const pick of await picks(page)) {
      await pick.click();
      await openAll(page);
      const over = await page.evaluate(
        () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
      );
      if (over > 0) seen.wide.push(`${await pick.innerText()}: ${over} px`);
    }
  },

  async tabs() {
    const one = await context();
    const job = await start(["train.steps=300", "gate.samples=100"]);
    const pages = [await open(one, `runs/${job.id}`), await open(one, `runs/${job.id}`)];
    for (const page of pages) await more(page, 3);
    await pages[0].getByRole("button", { name: "Cancel" }).click();
    for (const page of pages) await until(page, "Cancelled");
    seen.states = await Promise.all(pages.map(state));
    await new Promise((go) => setTimeout(go, 1500));
    seen.points = await Promise.all(pages.map(points));
  },

  async unread() {
    const job = await start(["train.steps=300", "gate.samples=100"]);
    const one = await context();
    await one.route("**/events*", (route) => route.abort(), { times: 1 });
    const page = await open(one, `runs/${job.id}`);
    await more(page, 0);
    seen.points = await points(page);
    await more(page, seen.points + 10);
    await page.getByRole("button", { name: "Cancel" }).click();
    await until(page, "Cancelled");
  },

  async phases() {
    const page = await open(await context(), `runs/${await recorded()}`);
    seen.views = {};
    for (const pick of await picks(page)) {
      await pick.click();
      await openAll(page);
      const name = (await pick.innerText()).toLowerCase().replaceAll("-", "");
      const card = page.locator("section.card").filter({ has: page.locator("h2", { hasText: "gate" }) });
      seen.views[name] = {
        title: await card.locator("h2").innerText(),
        heads: await card.locator("h3").allInnerTexts(),
        tables: await card.locator("table, .ranges").count(),
        charts: await card.locator("svg.scatter").count(),
        rows: await card.locator("tbody tr").count(),
        thoughts: await card.locator(".thoughts li").count(),
        conversations: await card.locator(".conversations li").count(),
      };
    }
    await page.locator(".pipeline .pick").first().click();
    seen.points = await points(page);
  },

  async killed() {
    const command = JSON.parse(argument);
    let server = await serve(command);
    ({ url, key } = server);
    const job = await start(["train.steps=600", "gate.samples=100"]);
    const one = await context();
    const page = await open(one, `runs/${job.id}`);
    await more(page, 5);
    seen.points_before = await points(page);
    server.child.kill("SIGKILL");
    await page.locator(".link-mark.lost").waitFor();
    seen.lost = await page.locator(".link-mark").innerText();
    server = await serve(command);
    await page.locator(".link-mark.live").waitFor();
    await more(page, seen.points_before + 10);
    seen.points_after = await points(page);
    await page.getByRole("button", { name: "Cancel" }).click();
    await until(page, "Cancelled");
    seen.cancelled = await state(page);
    await new Promise((go) => setTimeout(go, 1500));
    const fresh = await open(one, `runs/${job.id}`);
    await more(fresh, seen.points_after - 1);
    seen.points_of_both = [await points(page), await points(fresh)];
  },

  async chat() {
    const models = await ask("GET", "/v1/models");
    const ids = [...new Set(models.data.map((one) => one.id.replace(/:agent$/, "")))];
    if (ids.length !== 2) throw new Error(`the server lists ${ids.length} models, and not 2`);
    const page = await open(await context(), `chat?a=${ids[0]}&b=${ids[1]}`);
    await page.getByLabel("Use its own tools and memory").check();
    await page.getByRole("button", { name: "Precise" }).click();
    seen.persona = await page.locator('.options button[aria-pressed="true"]').innerText();
    const sides = page.locator(".side");
    await page.getByLabel("Message", { exact: true }).fill("6*7?");
    await page.keyboard.press("Enter");
    await page.locator(".thought").nth(1).waitFor({ timeout: 2 * WAIT });
    seen.before_the_end = [];
    for (const side of await sides.all()) {
      seen.before_the_end.push((await side.locator(".turn.assistant [role=status]").count()) === 1);
    }
    writeFileSync(argument, "");
    const send = page.getByRole("button", { name: "Send" });
    await send.waitFor();
    seen.sides = [];
    for (const side of await sides.all()) {
      seen.sides.push({
        thoughts: await side.locator(".thought").count(),
        tools: await side.locator(".tool .tag").allInnerTexts(),
        said: await side.locator(".words").last().innerText(),
        bold: await side.locator(".words b").count(),
      });
    }
    await page.getByLabel("Message", { exact: true }).fill("Keep it.");
    await page.keyboard.press("Enter");
    await page.locator(".memory li").nth(1).waitFor();
    await send.waitFor();
    seen.memory = await page.locator(".memory li > span").allInnerTexts();
    seen.violations = await violations(page, "chat");
    await page.getByRole("button", { name: "Forget door" }).first().click();
    seen.forgotten = await sides.first().locator(".memory li").count();

    await sides.first().getByLabel("Subject of a fact").fill("lamp");
    await sides.first().getByLabel("Fact", { exact: true }).fill("the lamp is green");
    await sides.first().getByRole("button", { name: "Add" }).click();
    await page.getByText("System message and sampling").click();
    await page.getByLabel("Temperature").fill("0.5");
    await page.getByLabel("Seed").fill("7");
    await page.getByLabel("Message", { exact: true }).fill("Lamp?");
    await page.keyboard.press("Enter");
    await send.waitFor();
    seen.recalled = await sides.first().locator(".tool").last().innerText();
    await page.getByLabel("Tokens at most").fill("12");
    await page.getByLabel("Message", { exact: true }).fill("Tell.");
    await page.keyboard.press("Enter");
    await send.waitFor();
    seen.bounded = await sides.first().locator(".turn").last().innerText();

    await page.getByLabel("Tokens at most").fill("");
    unlinkSync(argument);
    await page.getByLabel("Message", { exact: true }).fill("Tell.");
    await page.keyboard.press("Enter");
    await sides.last().locator(".turn.assistant").last().locator(".words").waitFor();
    await page.getByRole("button", { name: "Stop" }).click();
    await send.waitFor();
    seen.stopped = await sides.last().locator(".turn").last().innerText();
    writeFileSync(argument, "");
  },

  /** What a run has to show that the recorded one has no figures of. */
  async besides() {
    const page = await open(await context(), `runs/${await recorded()}`);
    const buttons = await picks(page);
    await buttons[5].click();
    seen.endings = await page.getByRole("region", { name: "How held-out answers ended" }).innerText();
    await buttons[7].click();
    seen.llama = await page.locator("svg.scatter .other circle").count();
    seen.curve = await page.locator("svg.scatter").last().getAttribute("aria-label");
  },

  async busy() {
    const one = await context();
    const refusal = { status: 429, headers: { "retry-after": "2" }, json: { error: { message: "too many requests" } } };
    await one.route("**/v1/jobs?*", (route) => route.fulfill(refusal), { times: 1 });
    const page = await open(one, "settings");
    await page.evaluate(() => (location.hash = "#/runs"));
    seen.says = await page.locator(".rate").innerText();
    seen.violations = await violations(page, "busy", ["color-contrast"]);
    await page.locator(".card.now").first().waitFor();
    await page.locator(".rate").waitFor({ state: "detached" });
    seen.runs = await page.locator(".runs li").count();
  },

  async hands() {
    const page = await open(await context(), "new?phase=bitnet");
    await page.getByLabel("One KEY=VALUE per line").fill("trian.steps=5");
    seen.suggested = await page.locator(".start .failure", { hasText: "Did you mean" }).innerText();
    await page.getByLabel("Find a setting").fill("train.steps");
    await page.locator("#set-train\\.steps").fill("-3");
    seen.limit = await page.locator(".field .failure").first().innerText();

    const go = (hash) => page.evaluate((target) => (location.hash = `#/${target}`), hash);
    await go("models");
    for (const box of await page.locator("tbody input[type=checkbox]").all()) await box.check();
    await page.getByRole("link", { name: "Compare the two" }).click();
    seen.compared = await page.locator("table").first().locator("tbody tr").nth(1).innerText();
    await page.locator("thead a").first().click();
    await page.getByRole("button", { name: "Verify" }).click();
    seen.verified = await page.locator("p.good, .now .failure").first().innerText();
    const [file] = await Promise.all([
      page.waitForEvent("download"), page.getByRole("button", { name: "Download config.json" }).click(),
    ]);
    seen.downloaded = JSON.parse(readFileSync(await file.path())).model_type;
    await page.getByRole("button", { name: "Export" }).click();
    await until(page, "Done");
    const [exported] = await Promise.all([
      page.waitForEvent("download"), page.getByRole("button", { name: /^Download .*gguf/ }).click(),
    ]);
    seen.exported = readFileSync(await exported.path(), "utf8");

    await go("runs");
    await page.getByRole("button", { name: "Hold the queue" }).click();
    await page.getByText("The queue is held").waitFor();
    for (const steps of [300, 301]) await start([`train.steps=${steps}`]);
    const waiting = page.locator(".queue li");
    await waiting.nth(1).waitFor();
    const names = () => page.locator(".queue .clip").allInnerTexts();
    const moved = (await names())[1];
    await waiting.nth(1).getByRole("button", { name: "Move BitNet up" }).click();
    await page.waitForFunction((first) => document.querySelector(".queue .clip")?.innerText === first, moved);
    seen.order = await names();
    await waiting.nth(1).getByRole("button", { name: "Cancel" }).click();
    await waiting.nth(1).waitFor({ state: "detached" });
    await page.getByRole("button", { name: "Let the queue go on" }).click();
    await page.locator(".now .state.running").waitFor();
    seen.runs = (await page.locator(".now code").innerText()).trim();
    await page.locator(".now").getByRole("button", { name: "Cancel" }).click();
    await page.locator(".now.idle").waitFor();

    await go("settings");
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByLabel("Key of this server").waitFor();
    seen.kept = await page.evaluate(() => sessionStorage.getItem("forge-key"));
  },

  async keyboard() {
    const page = await open(await context(), "new?phase=bitnet");
    const focused = () => page.evaluate(() => document.activeElement?.textContent ?? "");
    for (let step = 0; step < 120 && (await focused()) !== "Start"; step += 1) {
      await page.keyboard.press("Tab");
    }
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => /^#\/runs\/\w/.test(location.hash));
    await page.waitForSelector("h1 .state");
    seen.state = (await state(page)).split("\n")[0];
  },
};

try {
  await scenes[scene]();
} catch (error) {
  for (const page of browser.contexts().flatMap((one) => one.pages())) {
    console.error(page.url(), (await page.locator("body").innerText()).slice(0, 600));
  }
  console.error(seen);
  throw error;
} finally {
  for (const child of children) child.kill();
  await browser.close();
}
console.log(JSON.stringify(seen));
