"""Kill the server of jobs again and again, at all the wrong moments, and see whether it lies.

    python -m scripts.bench run serve_restarts                      1,000 cycles with a stub job
    python -m scripts.bench run serve_restarts --real 20            and 20 with a real run-all

Each cycle starts a server, lets it begin or stop a job, and kills it (SIGKILL): at a random moment,
between the row of an attempt and its process, between the process and its handle (which may die
with it), before or after the request to stop. While it is down, jobs are killed, the boot's name changes (a reboot), or a
job's pid is given to another process. The next server has to find the truth. At the end all jobs
are resumed, and every event in their records has to be in the database once.
"""

import argparse
import itertools
import json
import os
import random
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_forge.core.events import read_events
from agent_forge.server.jobs import ACTIVE, FINAL
from agent_forge.server.launchers import processes
from scripts.bench.result import ROOT, Figure, Result, bars_met, here
from scripts.bench.serve_child import DATABASE, WAIT_SECONDS, Server

CLAIM = "A server of jobs that is killed at any moment tells the truth when it starts again"
BAR = "no job runs on paper 15 s after its death; no event lost; no orphan; the database is whole"

STUB = [sys.executable, "-S", str(ROOT / "scripts" / "bench" / "serve_stub.py")]
REAL = [sys.executable, "-m", "agent_forge"]
TRUTH_SECONDS = 15.0
LONG_SECONDS = 1800.0
PHASES = (
    "cognate", "evomerge", "quietstar", "bitnet", "train", "bake", "adas", "compress",
)  # fmt: skip
JOB_KILLED = 0.4  # the share of the kills of a real run's server in which the run dies too
# Scenes after which the job is dead for certain, so the time until the truth counts.
DEADLY = ("job_killed", "reboot", "pid_reused", "lost_start")
ENDED = ("succeeded", "rejected", "failed", "interrupted", "paused", "cancelled")
SCENES = (
    "random", "before_start", "after_start", "before_stop", "after_stop", "job_killed", "reboot",
    "pid_reused", "paused", "lost_start",
)  # fmt: skip
# Scenes in which the server kills itself at a point, by the name of that point.
POINTS = {one: one for one in ("before_start", "after_start", "before_stop", "after_stop")} | {
    "lost_start": "after_start"
}


@dataclass
class Cycles:
    """The state of the test: where, with which jobs, and what was seen.

    late: seconds from a job's death, or from the start of the server that could see it, until the
    database said so. problems: what must not be.
    """

    root: Path
    seed: int
    number: int = 0
    late: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    scenes: Counter[str] = field(default_factory=Counter)
    boot: str = ""
    events: int = 0

    def __post_init__(self) -> None:
        """Make the generator of random moments."""
        self.random = random.Random(self.seed)
        self.root.mkdir(parents=True, exist_ok=True)

    def run(self, count: int) -> None:
        """Run that many cycles, every scene in turn."""
        server = Server(self.root, STUB)
        for scene in itertools.islice(itertools.cycle(SCENES), count):
            self.number += 1
            self.scenes[scene] += 1
            server = self.cycle(server, scene)
            if self.number % 50 == 0:
                print(f"{self.number} cycles, {len(self.problems)} problems", flush=True)
        server.close()

    def cycle(self, server: Server, scene: str) -> Server:
        """Do something, kill the server, change the world; return the next, once it was judged."""
        if scene in POINTS:
            server.order(do="die", point=POINTS[scene])
        steps, pause = self.random.randint(2, 8), self.random.choice([0.0, 0.02])
        lasting = ["end=hang"] if scene not in ("random", "before_start") else []
        job = server.order(
            do="submit", overrides=[f"steps={steps}", f"pause={pause}", *lasting]
        )  # fmt: skip
        job_id = job.get("id") or self.newest()
        if scene in ("before_start", "after_start", "lost_start"):
            server.died()
        elif scene == "random":
            time.sleep(self.random.uniform(0.0, 0.8))
        else:
            self.wait(lambda: self.has_events(job_id), f"{scene}: the job writes events")
        if scene == "lost_start":
            self.wait(lambda: self.has_events(job_id), f"{scene}: the job writes events")
        if scene.endswith("_stop"):
            server.order(do="cancel", job=job_id)
            server.died()
        if scene == "paused":
            server.order(do="pause", job=job_id)
        server.kill()
        self.change_the_world(scene, job_id)
        return self.judged(scene, job_id)

    def change_the_world(self, scene: str, job_id: str) -> None:
        """Do, while no server runs, what makes a careless one lie."""
        if scene in DEADLY:
            self.end_processes(job_id)
        if scene == "reboot":
            self.boot = f"boot-{self.number}"
        if scene == "pid_reused":
            stolen = {"pid": os.getpid(), "start": 1.0, "boot": self.boot or processes.boot_id()}
            self.edit("UPDATE attempt SET handle = ? WHERE id = ?",
                      [json.dumps(stolen), self.tokens(job_id)[-1]])  # fmt: skip

    def judged(self, scene: str, job_id: str) -> Server:
        """Start the next server, and wait until it tells the truth about the job; return it."""
        server = Server(self.root, STUB, boot=self.boot)
        began = time.monotonic()
        expected = {
            "before_stop": {"cancelled"}, "after_stop": {"cancelled"}, "paused": {"paused"},
            "job_killed": {"interrupted"}, "reboot": {"interrupted"},
            "pid_reused": {"interrupted"}, "lost_start": {"interrupted"},
            "after_start": {"running"},
        }.get(scene, {"succeeded"})  # fmt: skip
        self.wait(lambda: self.state(job_id) in expected, f"{scene}: {sorted(expected)}")
        if scene in DEADLY:
            self.late.append(time.monotonic() - began)
            if self.late[-1] > TRUTH_SECONDS:
                self.problems.append(f"{scene}: the truth took {self.late[-1]:.1f} s")
                print(self.problems[-1], flush=True)
        if scene == "after_start":
            self.check_adopted(server, job_id)
        return server

    def check_adopted(self, server: Server, job_id: str) -> None:
        """Check that the job whose start was cut off runs once, and let it end."""
        if len(self.tokens(job_id)) != 1:
            self.problems.append(f"job {job_id} was started again while it ran")
        server.order(do="cancel", job=job_id)
        self.wait(lambda: self.state(job_id) == "cancelled", "an adopted job is cancelled")

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a condition holds; note a problem where it does not come to hold."""
        end = time.monotonic() + WAIT_SECONDS
        while not condition():
            if time.monotonic() > end:
                self.problems.append(f"cycle {self.number}: never: {what}")
                print(self.problems[-1], flush=True)
                return
            time.sleep(0.03)

    def wait_long(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds, as long as a real run may take."""
        end = time.monotonic() + LONG_SECONDS
        while not condition():
            if time.monotonic() > end:
                self.problems.append("a real run did not end")
                return
            time.sleep(0.2)

    def progress(self, job_id: str) -> float:
        """Return the percent of a job."""
        return float(self.rows("SELECT progress FROM job WHERE id = ?", [job_id])[0][0])

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return rows of the database, read beside its server."""
        connection = sqlite3.connect(f"file:{self.root / DATABASE}?mode=ro", uri=True, timeout=10)
        try:
            return connection.execute(query, list(values)).fetchall()
        finally:
            connection.close()

    def edit(self, query: str, values: Sequence[Any]) -> None:
        """Change the database while no server runs."""
        with sqlite3.connect(self.root / DATABASE) as connection:
            connection.execute(query, list(values))
        connection.close()

    def newest(self) -> str:
        """Return the id of the newest job."""
        return str(self.rows("SELECT id FROM job ORDER BY created DESC LIMIT 1")[0][0])

    def state(self, job_id: str) -> str:
        """Return what the database says of a job."""
        return str(self.rows("SELECT state FROM job WHERE id = ?", [job_id])[0][0])

    def tokens(self, job_id: str) -> list[str]:
        """Return the attempts of a job."""
        query = "SELECT id FROM attempt WHERE job_id = ? ORDER BY number"
        return [row[0] for row in self.rows(query, [job_id])]

    def alive(self, job_id: str) -> list[processes.Identity]:
        """Return the processes of a job."""
        return [one for token in self.tokens(job_id) for one in processes.of_attempt(token)]

    def end_processes(self, job_id: str) -> None:
        """Kill a job as the system would."""
        for one in self.alive(job_id):
            processes.send(one, signal.SIGKILL)
        self.wait(lambda: not self.alive(job_id), "a killed job dies")

    def has_events(self, job_id: str) -> bool:
        """Return whether a job has written progress."""
        record = self.rows("SELECT record FROM job WHERE id = ?", [job_id])[0][0]
        return any(e.kind == "progress" for e in read_events(Path(record) / "events.jsonl"))

    def finish(self) -> None:
        """Resume what was interrupted, cancel what hangs, and check all that was written."""
        server = Server(self.root, STUB, boot=self.boot)
        for (job_id,) in self.rows("SELECT id FROM job WHERE state IN ('paused', 'interrupted')"):
            server.order(do="cancel", job=job_id)
        ended = [str(state) for state in FINAL]
        marks = ", ".join("?" * len(ended))
        query = f"SELECT count(*) FROM job WHERE state NOT IN ({marks})"
        self.wait(lambda: self.rows(query, ended)[0][0] == 0, "all jobs end")
        server.close()
        self.check_events()
        self.check_orphans()
        self.check_database()

    def check_database(self) -> None:
        """Let SQLite look for damage."""
        if self.rows("PRAGMA integrity_check")[0][0] != "ok":
            self.problems.append("the database is damaged")

    def check_events(self) -> None:
        """Compare the events in the records with those in the database."""
        lost = repeated = 0
        for job_id, record in self.rows("SELECT id, record FROM job"):
            written = [
                (f"{file.parent.name if file.parent != Path(record) else ''}:{e.attempt}", e.seq)
                for file in Path(record).rglob("events.jsonl") for e in read_events(file)
            ]  # fmt: skip
            query = "SELECT source, source_seq FROM event WHERE job_id = ? AND source != ''"
            stored = self.rows(query, [job_id])
            lost += len(set(written) - set(stored))
            repeated += len(stored) - len(set(stored))
        if lost or repeated:
            self.problems.append(f"{lost} events lost, {repeated} stored twice")
        self.events = self.rows("SELECT count(*) FROM event")[0][0]

    def check_orphans(self) -> None:
        """Look for processes of jobs that have ended."""
        query = "SELECT id, state FROM job"
        orphans = [
            one for job_id, state in self.rows(query) if state not in ACTIVE
            for one in self.alive(job_id)
        ]  # fmt: skip
        if orphans:
            self.problems.append(f"{len(orphans)} orphans")


def real_cycles(root: Path, kills: int, seed: int, phases: str) -> dict[str, Any]:
    """Kill the server, and now and then the job, while a real run goes through its phases.

    phases: of the run, by name and divided by commas.

    Returns the number of kills of each, the state in the end, the final checkpoint's id, the events
    that were lost, and the seconds until each death of the job was noted.
    """
    chance, cycles = random.Random(seed), Cycles(root, seed)
    overrides = [
        "experiment=tiny", "runtime.threads=1", "runtime.save_every_seconds=1", f"phases=[{phases}]",
    ]  # fmt: skip
    counts: Counter[str] = Counter()
    server = Server(root, REAL)
    job_id = server.order(do="submit", command="run-all", overrides=overrides)["id"]
    while counts["server"] < kills and cycles.state(job_id) != "succeeded":
        time.sleep(chance.uniform(1.0, 6.0))
        server.kill()
        counts["server"] += 1
        if chance.random() < JOB_KILLED:
            cycles.end_processes(job_id)
            counts["job"] += 1
        began, server = time.monotonic(), Server(root, REAL)
        cycles.wait(lambda: cycles.state(job_id) in ENDED or cycles.alive(job_id), "the truth")
        if cycles.state(job_id) == "interrupted":
            cycles.late.append(time.monotonic() - began)
            server.order(do="resume", job=job_id)
        print(f"{counts['server']} kills, {cycles.progress(job_id):.0f}%", flush=True)
    cycles.wait_long(lambda: cycles.state(job_id) in ENDED)
    server.close()
    cycles.check_events()
    cycles.check_orphans()
    cycles.check_database()
    results = cycles.rows("SELECT state, results FROM job WHERE id = ?", [job_id])[0]
    return {
        **counts, "state": results[0], "id": json.loads(results[1]).get("checkpoint_id"),
        "problems": cycles.problems, "late": cycles.late, "events": cycles.events,
    }  # fmt: skip


def flat(root: Path, jobs: int) -> dict[str, tuple[int, int]]:
    """Run many jobs on one server; return resident bytes and handles after a tenth and after all."""
    cycles, server = Cycles(root, 0), Server(root, STUB)
    usage: dict[str, tuple[int, int]] = {}
    for number in range(1, jobs + 1):
        job_id = server.order(do="submit", overrides=["steps=20"])["id"]
        cycles.wait(lambda job_id=job_id: cycles.state(job_id) == "succeeded", "a job ends")
        if number in (jobs // 10, jobs):
            answer = server.order(do="usage")
            place = "tenth" if number == jobs // 10 else "all"
            usage[place] = (answer["resident_bytes"], answer["handles"])
    server.close()
    return usage


def stub_cycles(place: Path, args: argparse.Namespace) -> Cycles:
    """Run the cycles with a stub job, on several roots at a time; return all that was seen."""
    parts = [Cycles(place / f"stub-{n}", args.seed + n) for n in range(args.roots)]
    counts = [args.cycles // args.roots + (n < args.cycles % args.roots) for n in range(args.roots)]

    def work(part: Cycles, count: int) -> None:
        part.run(count)
        part.finish()

    with ThreadPoolExecutor(args.roots) as pool:
        list(pool.map(work, parts, counts))
    whole = Cycles(place / "whole", args.seed)
    for part in parts:
        whole.late += part.late
        whole.problems += part.problems
        whole.events += part.events
    return whole


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(prog="serve_restarts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cycles", type=int, default=1000, help="with a stub job")
    parser.add_argument("--roots", type=int, default=4, help="servers at a time, each its own jobs")
    parser.add_argument("--real", type=int, default=20, help="kills while a real run-all runs")
    parser.add_argument("--phases", default=",".join(PHASES), help="of the real run")
    parser.add_argument("--jobs", type=int, default=100, help="on one server, for its memory")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def run(arguments: Sequence[str] = ()) -> Result:
    """Run the cycles and judge them."""
    args = options(arguments)
    with tempfile.TemporaryDirectory() as place:
        cycles = stub_cycles(Path(place), args)
        usage = flat(Path(place) / "flat", args.jobs)
        real_root = Path(place) / "real"
        real = real_cycles(real_root, args.real, args.seed, args.phases) if args.real else None
    for problem in [*cycles.problems, *(real["problems"] if real else [])]:
        print(problem)
    grown = usage["all"][0] - usage["tenth"][0]
    late = sorted(cycles.late)
    figures = [
        Figure(
            claim="problems in kill-and-restart cycles with a stub job",
            figure=float(len(cycles.problems)), unit="problems", bar="0",
            n=f"{args.cycles} cycles, {cycles.events:,} events", met=not cycles.problems,
            key="stub_problems",
        ),
        Figure(
            claim="slowest truth after a restart", figure=late[-1], unit="s",
            bar=f"at most {TRUTH_SECONDS:g} s", n=f"{len(late)} deaths, median "
            f"{statistics.median(late):.2f} s", met=late[-1] <= TRUTH_SECONDS, key="slowest_truth",
        ),
        Figure(
            claim="growth of the server's memory from a tenth of the jobs to all",
            figure=grown / 1e6, unit="MB", bar="at most 5 MB", n=f"{args.jobs} jobs",
            met=grown < 5e6, key="memory_growth",
        ),
        Figure(
            claim="growth of its file handles", figure=float(usage["all"][1] - usage["tenth"][1]),
            unit="handles", bar="at most 2", n=f"{args.jobs} jobs",
            met=usage["all"][1] - usage["tenth"][1] <= 2, key="handle_growth",
        ),
    ]  # fmt: skip
    if real:
        figures.append(
            Figure(
                claim="problems while a real run-all was killed", bar="0", unit="problems",
                figure=float(len(real["problems"])), key="real_problems",
                n=f"{real['server']} kills of the server, {real.get('job', 0)} of the job",
                met=not real["problems"] and real["state"] == "succeeded",
            )
        )  # fmt: skip
    return Result(
        claim=CLAIM, topic="Service", bar=BAR, figures=figures, **bars_met(figures),
        **here("serve_restarts", arguments),
    )  # fmt: skip
