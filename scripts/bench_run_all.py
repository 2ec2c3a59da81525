"""Time and peak memory per phase of a run: `python scripts/bench_run_all.py [--run-dir DIR] [KEY=VALUE...]`.

Runs `forge run-all` into a fresh directory (or reads a finished one with --run-dir) and prints one row a phase, the total,
the share of each phase, and what the final agent reaches: the numbers of the README come from here. Times are of this
machine; compare shares and ratios.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from agent_forge.pipeline.report import kept_cell, metric_text, quality_cell, read_run


def main() -> int:
    """Run or read, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, help="read this finished run instead of making one")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE settings of run-all")
    arguments = parser.parse_args()
    run_dir = arguments.run_dir or Path("outputs/bench_run_all")
    wall = 0.0
    if arguments.run_dir is None:
        shutil.rmtree(run_dir, ignore_errors=True)
        started = time.monotonic()
        command = [sys.executable, "-m", "agent_forge", "run-all", f"run_dir={run_dir}", *arguments.overrides]
        code = subprocess.run(command, check=False).returncode
        wall = time.monotonic() - started
        if code:
            return code
    outcomes = read_run(run_dir)
    total = sum(outcome.seconds for outcome in outcomes) or 1.0
    print(
        "| phase | verdict | time | share | peak memory | deployable | quality | kept of parent |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for o in outcomes:
        print(
            f"| {o.phase} | {'passed' if o.status == 'done' else o.status} | {o.seconds:.0f} s | {o.seconds / total:.0%} | "
            f"{o.peak_memory_bytes / 1e6:.0f} MB | {o.deployable_bytes / 1e6:.3f} MB | {quality_cell(o)} | {kept_cell(o)} |"
        )
    print(f"\nphases: {total:.0f} s; highest peak memory: {max(o.peak_memory_bytes for o in outcomes) / 1e6:.0f} MB")
    if wall:
        print(f"whole command: {wall:.0f} s")
    for o in outcomes:
        for name, value in o.report.get("metrics", {}).items():
            print(f"{o.phase}.{name}: {metric_text(value)}")
    (run_dir / "bench.json").write_text(
        json.dumps({o.phase: [o.seconds, o.peak_memory_bytes] for o in outcomes}) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
