"""How quick the dashboard is with 1,000 runs, of which one has 100,000 points.

    python -m scripts.bench run dashboard [--visits 5] [--runs 1000] [--points 100000]

Fills a service's database, serves it, and opens the pages in Chromium: first paint is what the
browser itself reports of a fresh visit, with nothing in its cache. An interaction is a real press,
and its time is that from the press to the next picture, as the browser's event timing has it. Every
run is a whole run of eight phases with its verdicts, so that lists weigh what they weigh in use.
Needs Chromium and `make dashboard`.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent_forge.server import jobs, store
from agent_forge.server.database import Database
from agent_forge.server.jobs import Job, JobState
from agent_forge.server.store import StoredEvent
from scripts import recorded_run
from scripts.bench.result import ROOT, Figure, Result, bars_met, here
from scripts.dashboard_server import DashboardServer
from scripts.screenshots import Browser, View, browser, chromium

CLAIM = "The dashboard is quick with 1,000 runs and 100,000 points"
BAR = "first paint < 1 s, every press answered < 100 ms, on two cores"
PAINT_SECONDS, PRESS_MS = 1.0, 100.0
LONG = "long"
# A press that lists so many is left out where there are fewer.
LEAST_RUNS = {"200 runs": 200, "800 runs": 800, "all runs": 1000}
PRESSES = """
window.presses = [];
new PerformanceObserver((list) => list.getEntries().forEach((one) => {
  if (one.interactionId) window.presses.push([one.name, one.duration]);
})).observe({ type: "event", durationThreshold: 16, buffered: true });
"""
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def fill(state: Path, runs: int, points: int) -> None:
    """Write a database with `runs` runs that have ended; the newest has `points` points."""
    database = Database(state / "forge.sqlite")
    phases = [phase["outcome"] for phase in recorded_run.phases()]
    ends = [
        {
            "phase": one["phase"], "status": "done", "seconds": one["seconds"],
            "summary": one["report"]["summary"], "metrics": one["report"]["metrics"],
            "verdict": one["verdict"], "deployable_bytes": one["deployable_bytes"],
        }
        for one in phases
    ]  # fmt: skip
    results = {**ends[-1], "status": "succeeded", "phases": ends}
    now = time.time()

    def write(connection: Any) -> None:
        for number in range(runs - 1):
            begun = now - 3600 * (runs - number)
            jobs.insert(connection, _ended(f"run{number:04}", "run-all", begun, results))
        jobs.insert(connection, _ended(LONG, "train", now - 60, {}))
        for step in range(1, points + 1):
            loss = 2 + 3 * math.exp(-5 * step / points) + 0.2 * math.sin(step * 1.7)
            event = StoredEvent(
                seq=0, job_id=LONG, attempt=1, time=now - 60 + step * 60 / points, kind="progress",
                phase="train", stage="work", step=step, total=points,
                metrics={"loss": loss, "tokens_per_second": 900.0 + step % 7},
            )  # fmt: skip
            store.add_event(connection, event, "train", step)

    database.write(write).result()
    database.close()


def _ended(name: str, command: str, begun: float, results: dict[str, Any]) -> Job:
    return Job(
        id=name, command=command, overrides=["experiment=tiny"], state=JobState.SUCCEEDED,
        progress=100.0, created=begun, started=begun, ended=begun + 900, attempt=1,
        results=results, error_code=0,
    )  # fmt: skip


class Visitor:
    """Opens pages and presses what is on them, as somebody with a mouse would."""

    def __init__(self, tab: Browser, server: DashboardServer) -> None:
        self.tab, self.server = tab, server

    def visit(self, place: str, shows: str) -> tuple[float, float]:
        """Open a page in a tab of its own; return seconds until its first paint, and until `shows`
        holds.
        """
        self.tab.visit(f"{self.server.url}/assets/anvil.svg")
        self.tab.call("Network.enable")
        self.tab.call("Network.setCacheDisabled", cacheDisabled=True)
        script = f"sessionStorage.setItem('forge-key', {json.dumps(self.server.key)});" + PRESSES
        self.tab.call("Page.enable")
        self.tab.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        self.tab.look(View("bench", 1280, 900))
        self.tab.call("Page.navigate", url=f"{self.server.url}/#/{place}")
        self.tab.until(f"location.pathname === '/' && {shows}")
        seen = float(self.tab.value("performance.now()")) / 1000
        self.tab.until(FIRST_PAINT)
        return float(self.tab.value(FIRST_PAINT)) / 1000, seen

    def press(self, find: str, shows: str) -> float:
        """Press what an expression finds; return the milliseconds until the next picture."""
        self.tab.until(find)
        self.tab.value(f"({find}).scrollIntoView({{ block: 'center' }})")
        box = f"(({find}).getBoundingClientRect())"
        x = self.tab.value(f"{box}.x + Math.min(20, {box}.width / 2)")
        y = self.tab.value(f"{box}.y + {box}.height / 2")
        self.tab.value("window.presses.length = 0")
        where = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self.tab.call("Input.dispatchMouseEvent", type="mousePressed", **where)
        self.tab.call("Input.dispatchMouseEvent", type="mouseReleased", **where)
        self.tab.until(shows)
        time.sleep(0.4)  # an event's timing is told after the picture
        timed = self.tab.value("Math.max(8, ...window.presses.map((one) => one[1]))")
        return float(timed)


def named(selector: str, text: str) -> str:
    """Return an expression that finds an element by the beginning of its text."""
    return (
        f"[...document.querySelectorAll({json.dumps(selector)})]"
        f".find((one) => one.innerText.trim().startsWith({json.dumps(text)}))"
    )


def measure(visitor: Visitor, visits: int, runs: int, points: int) -> list[Figure]:
    """Return all figures."""
    rows = "document.querySelectorAll('.runs li').length"
    said = "document.querySelector('.chart-says')?.dataset.points"
    pages = [("runs", f"{rows} > 40", f"{runs:,} runs, the newest 50 listed"),
             (f"runs/{LONG}", f"+{said} >= {points}", f"a run with {points:,} points")]  # fmt: skip
    figures = []
    for place, shows, name in pages:
        taken = [visitor.visit(place, shows) for _ in range(visits)]
        paint, whole = (statistics.median(column) for column in zip(*taken, strict=True))
        figures.append(_figure(f"first paint, {name}", paint, "s", PAINT_SECONDS, visits))
        figures.append(Figure(claim=f"everything shown, {name}", figure=round(whole, 2), unit="s",
                              n=f"median of {visits} visits"))  # fmt: skip
    presses = [
        ("another metric of 100,000 points", named(".chips button", "Tokens per second"),
         "document.querySelector('.chips button[aria-pressed=true]').innerText.startsWith('Tok')"),
        ("to the list of runs", named("nav a", "Runs"), f"{rows} > 40"),
        ("200 runs", named("button", "Show more"), f"{rows} > 150"),
        ("800 runs", named("button", "Show more"), f"{rows} > 700"),
        ("all runs", named("button", "Show more"), f"{rows} > {runs - 5}"),
        ("from all runs to one", "document.querySelector('.runs li:nth-child(3) a')",
         "document.querySelector('.pipeline .pick')"),
        ("another phase of it", named(".pipeline .pick", "Compress"),
         "document.querySelector('.picked .pick').innerText === 'Compress'"),
        ("back to all runs", named("nav a", "Runs"), f"{rows} > 40"),
        ("to settings", named("nav a", "Settings"), "document.title.startsWith('Settings')"),
        ("dark", named(".choice", "Dark"), "document.documentElement.dataset.theme === 'dark'"),
    ]  # fmt: skip
    for name, find, shows in presses:
        if runs < LEAST_RUNS.get(name, 0):
            continue
        figures.append(_figure(f"press: {name}", visitor.press(find, shows), "ms", PRESS_MS, 1))
        print(f"{figures[-1].claim}: {figures[-1].figure} ms", flush=True)
    return figures


def _figure(claim: str, value: float, unit: str, bar: float, n: int) -> Figure:
    return Figure(
        claim=claim, figure=round(value, 2), unit=unit, bar=f"< {bar:g} {unit}", met=value < bar,
        n=f"median of {n} visits" if n > 1 else "one press",
    )  # fmt: skip


def run(arguments: Sequence[str] = ()) -> Result:
    """Fill, serve, visit; return what was measured."""
    parser = argparse.ArgumentParser(prog="dashboard", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--visits", type=int, default=5)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--points", type=int, default=100_000)
    args = parser.parse_args(arguments)
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory(prefix="forge-dashboard-") as folder:
        state = Path(folder) / "state"
        state.mkdir()
        fill(state, args.runs, args.points)
        server = DashboardServer(state, [sys.executable])
        server.start()
        try:
            with browser(chromium()) as tab:
                figures = measure(Visitor(tab, server), args.visits, args.runs, args.points)
        finally:
            server.stop()
    for figure in figures:
        print(f"{figure.claim}: {figure.figure} {figure.unit}, {figure.bar or 'no bar'}")
    return Result(
        claim=CLAIM, topic="Dashboard", bar=BAR, n=f"{args.runs:,} runs, {args.points:,} points",
        **bars_met(figures), figures=figures, **here("dashboard", arguments),
    )  # fmt: skip
