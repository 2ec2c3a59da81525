"""The default run, all eight phases: what the last model kept of the first, and each phase's costs.

    python -m scripts.bench run run_all [--write] [KEY=VALUE ...]
    python -m scripts.bench run run_all --run-dir DIR [--machine TEXT] [--commit HASH] [--command LINE]

Runs `forge run-all` into a fresh directory (or reads a finished run with --run-dir) and prints what
the last model kept of the base of its chain, one row per phase, and the totals. README holds these
tables; --write renders it at once. Then every metric of every phase. Times are of this machine;
compare shares and ratios.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from agent_forge.pipeline.outcome import OUTCOME, Outcome
from agent_forge.pipeline.report import markdown_tables, metric_text, read_run
from scripts.bench.result import NOT_NOTED, Figure, Result, here

CLAIM = "`make run-all` takes a model through all eight phases on two cores"
BAR = "at most 15 minutes over the phases"
MOST_SECONDS = 900.0


def run(arguments: Sequence[str] = ()) -> Result:
    """Run or read, then print the tables and the metrics."""
    parser = argparse.ArgumentParser(prog="run_all", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--run-dir", type=Path, help="read this finished run, make none")
    parser.add_argument("--write", action="store_true", help="render README and docs/results.md")
    parser.add_argument("--machine", default=NOT_NOTED, help="where the finished run was made")
    parser.add_argument(
        "--commit", default=NOT_NOTED, help="by which code the finished run was made"
    )
    parser.add_argument("--command", default="forge run-all", help="how the finished run was made")
    parser.add_argument("--note", default="", help="what a reader must know of it")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE settings of run-all")
    args = parser.parse_intermixed_args(arguments)
    run_dir = args.run_dir or Path("outputs/bench_run_all")
    if args.run_dir is None:
        make(run_dir, args.overrides)
    outcomes = read_run(run_dir)
    tables = markdown_tables(outcomes)
    print(tables)
    for outcome in outcomes:
        for name, value in outcome.report.get("metrics", {}).items():
            print(f"{outcome.phase}.{name}: {metric_text(value)}")
    made_here = {**here("run_all", arguments), "note": args.note}
    return result(outcomes, tables, finished(args) if args.run_dir else made_here)


def finished(args: argparse.Namespace) -> dict[str, str]:
    """Return where, when and how a finished run was made: the day of its last file, and what was
    said.
    """
    times = [path.stat().st_mtime for path in (args.run_dir / ".forge").glob(f"*/{OUTCOME}")]
    day = datetime.fromtimestamp(max(times), UTC).date().isoformat()
    origin = {"machine": args.machine, "commit": args.commit, "command": args.command}
    return {**origin, "date": day, "note": args.note}


def make(run_dir: Path, overrides: Sequence[str]) -> None:
    """Run all phases afresh; leave with their exit code when that is not 0."""
    shutil.rmtree(run_dir, ignore_errors=True)
    started = time.monotonic()
    command = [sys.executable, "-m", "agent_forge", "run-all", f"run_dir={run_dir}", *overrides]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(code)
    print(f"whole command: {time.monotonic() - started:.0f} s")
    costs = {o.phase: [o.seconds, o.peak_memory_bytes] for o in read_run(run_dir)}
    (run_dir / "bench.json").write_text(json.dumps(costs) + "\n")


def result(outcomes: Sequence[Outcome], tables: str, origin: dict[str, str]) -> Result:
    """Return the run's seconds as the headline, with the tables that README holds."""
    seconds = sum(outcome.seconds for outcome in outcomes)
    phases = [Figure(claim=o.phase, figure=round(o.seconds, 1), unit="s") for o in outcomes]
    memory = max(outcome.peak_memory_bytes for outcome in outcomes) / 1e6
    peak = Figure(claim="highest peak memory of a phase", figure=round(memory), unit="MB")
    return Result(
        claim=CLAIM, topic="The default run", bar=BAR, figure=round(seconds), unit="s",
        n="one run, one seed", met=seconds <= MOST_SECONDS, figures=[peak, *phases],
        blocks={"run-all tables": tables}, **origin,
    )  # fmt: skip
