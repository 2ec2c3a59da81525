// Play one scene in Chromium and print what was seen as one line of JSON.
// node browser.mjs SCENE URL KEY FOLDER-WITH-NODE_MODULES

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [scene, url, key, home] = process.argv.slice(2);
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
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) {
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
    await page.locator(".live.live").waitFor();
    seen.address = page.url();
    seen.live = await page.locator(".live").innerText();
    seen.in_local_storage = await page.evaluate(
      (value) => JSON.stringify(localStorage).includes(value), key,
    );
  },

  async axe() {
    const job = await start(["train.steps=20"]);
    const source = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
    seen.violations = [];
    seen.looked_at = 0;
    for (const colorScheme of ["light", "dark"]) {
      const one = await context({ colorScheme });
      const page = await open(one, "settings");
      await page.evaluate(source);
      for (const hash of [...PAGES, `runs/${job.id}`]) {
        await page.evaluate((target) => (location.hash = `#/${target}`), hash);
        await page.waitForSelector("main h1, main h2");
        await page.waitForFunction(() => !document.body.innerText.includes("Loading"));
        const found = await page.evaluate(() => window.axe.run(document));
        seen.looked_at += 1;
        for (const rule of found.violations) {
          const where = rule.nodes.map((node) => node.target.join(" ")).slice(0, 3);
          seen.violations.push(`${colorScheme} ${hash}: ${rule.id}: ${where.join(", ")}`);
        }
      }
      await one.close();
    }
  },

  async narrow() {
    const job = await start(["train.steps=20"]);
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
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
