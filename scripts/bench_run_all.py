"""The tables of a run: `python scripts/bench_run_all.py [--run-dir DIR] [--write] [KEY=VALUE...]`.

Runs `forge run-all` into a fresh directory (or reads a finished one with --run-dir) and prints what the last model kept
of the base of its chain, one row per phase, and the totals: exactly what README.md holds between its two markers, where
--write puts it. Then every metric of every phase. Times are of this machine; compare shares and ratios.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from agent_forge.pipeline.report import markdown_tables, metric_text, read_run, with_tables

README = Path(__file__).parent.parent / "README.md"


def main() -> int:
    """Run or read, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, help="read this finished run instead of making one")
    parser.add_argument("--write", action="store_true", help="put the tables into README.md")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE settings of run-all")
    arguments = parser.parse_intermixed_args()
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
    tables = markdown_tables(outcomes)
    print(tables)
    if arguments.write:
        README.write_text(with_tables(README.read_text(encoding="utf-8"), tables), encoding="utf-8")
        print(f"\nwrote the tables into {README}")
    if wall:
        print(f"\nwhole command: {wall:.0f} s")
    for o in outcomes:
        for name, value in o.report.get("metrics", {}).items():
            print(f"{o.phase}.{name}: {metric_text(value)}")
    (run_dir / "bench.json").write_text(
        json.dumps({o.phase: [o.seconds, o.peak_memory_bytes] for o in outcomes}) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
