"""Run the checks, print them, and write report.md and sbom.cdx.json; exit 1 where one failed."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from scripts.compliance import leak, power_of_ten, sbom, scanners
from scripts.compliance.check import FAILED, NOT_JUDGED, ROOT, Check

MOST_LINES = 12  # lines per check on the terminal; the report has all


def parts(tools: str, out: Path) -> dict[str, Callable[[], list[Check]]]:
    """Return the parts of the report by name, in their order."""
    return {
        "power-of-ten": lambda: [power_of_ten.check()],
        "credentials": lambda: [scanners.credentials()],
        "sbom": lambda: [sbom.check(out / "sbom.cdx.json")],
        "bandit": lambda: [scanners.bandit(tools)],
        "pip-audit": lambda: [scanners.pip_audit(tools)],
        "npm-audit": scanners.npm_audit,
        "leak": lambda: [leak.check()],
    }


def report(checks: list[Check]) -> str:
    """Return the report as Markdown."""
    head = ["# Compliance", "", "| check | | |", "|---|---|---|"]
    head += [f"| {one.name} | {one.status} | {one.summary} |" for one in checks]
    for one in checks:
        head += ["", f"## {one.name}", "", one.summary, "", *one.lines]
    return "\n".join(head) + "\n"


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m scripts.compliance", description=__doc__)
    default = os.environ.get("FORGE_AUDIT_PYTHON", sys.executable)
    parser.add_argument("--tools", default=default, help="a Python that has bandit and pip-audit")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "compliance")
    parser.add_argument("--strict", action="store_true", help="what was not judged fails too")
    parser.add_argument("--only", nargs="*", help="names of parts")
    options = parser.parse_args()
    known = parts(options.tools, options.out)
    unknown = [name for name in options.only or () if name not in known]
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; known: {', '.join(known)}")
    checks: list[Check] = []
    for name in options.only or known:
        for one in known[name]():
            checks.append(one)
            print(f"{one.status:10} {one.name}: {one.summary}", flush=True)
            for line in one.lines[:MOST_LINES]:
                print(f"           {line}")
            if len(one.lines) > MOST_LINES:
                print(f"           … {len(one.lines) - MOST_LINES} more in the report")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.md").write_text(report(checks), encoding="utf-8")
    print(f"wrote {options.out / 'report.md'}")
    bad = {FAILED, NOT_JUDGED} if options.strict else {FAILED}
    return int(any(one.status in bad for one in checks))


if __name__ == "__main__":
    sys.exit(main())
