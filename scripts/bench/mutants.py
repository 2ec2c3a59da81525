"""How many wrong lines of the numeric rooms some test notices.

    python scripts/mutate.py --mutants 208 --relevant 5 --work outputs/mutants --out outputs/mutants.json
    python -m scripts.bench run mutants outputs/mutants.json

Reads what `scripts/mutate.py` has judged, and results/notes/survivors.json, which says of each
change that no test noticed why that is so. A change that is not judged is neither killed nor
survived; it is counted apart.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.bench.result import RESULTS, Figure, Result, bars_met, here
from scripts.bench.stats import wilson

CLAIM = "Tests notice a wrong line in the numeric rooms"
BAR = "at least .9 of 200 seeded changes, at least .8 in each room"
LEAST, LEAST_IN_A_ROOM = 0.9, 0.8
REASONS = RESULTS / "notes" / "survivors.json"
Mutants = Sequence[dict[str, Any]]


def run(arguments: Sequence[str] = ()) -> Result:
    """Print the share killed per room and every survivor with its reason."""
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("mutants", type=Path, help="what scripts/mutate.py --out wrote")
    parser.add_argument("--reasons", type=Path, default=REASONS, help="change -> why it survives")
    parser.add_argument("--seed", type=int, default=0, help="that scripts/mutate.py had")
    args = parser.parse_args(arguments)
    mutants = json.loads(args.mutants.read_text(encoding="utf-8"))
    judged = [m for m in mutants if m["fate"]]
    reasons = json.loads(args.reasons.read_text(encoding="utf-8"))
    tables = [*shares(judged), "", *survivors(judged, reasons)]
    print(*tables, sep="\n")
    rooms = dict.fromkeys(m["room"] for m in judged)
    figures = [
        killed(f"in {room}", [m for m in judged if m["room"] == room], LEAST_IN_A_ROOM)
        for room in rooms
    ]
    whole = killed(f"over {len(rooms)} rooms", judged, LEAST)
    left = len(mutants) - len(judged)
    return Result(
        claim=CLAIM, topic="Tests", bar=BAR, n=f"{len(judged)} changes, seed {args.seed}",
        **bars_met([whole, *figures]), figures=[whole, *figures],
        note=f"{left} further changes of the sample were not judged." if left else "",
        tables="\n".join(tables), **here("mutants", arguments),
    )  # fmt: skip


def killed(where: str, mutants: Mutants, least: float) -> Figure:
    """Return the share of changes that some test noticed, with Wilson's interval."""
    share, low, high = wilson([float(m["fate"] == "killed") for m in mutants])
    return Figure(
        claim=f"noticed {where}", figure=share, unit="of changes", interval=(low, high),
        n=f"{len(mutants)} changes", bar=f"at least {least:g}", met=share >= least,
    )  # fmt: skip


def shares(mutants: Mutants) -> list[str]:
    """Return the table of rooms."""
    lines = ["| room | changes | noticed | share |", "|---|---|---|---|"]
    for room in [*dict.fromkeys(m["room"] for m in mutants), "all"]:
        those = [m for m in mutants if room in (m["room"], "all")]
        count = sum(m["fate"] == "killed" for m in those)
        lines.append(f"| {room} | {len(those)} | {count} | {count / len(those):.0%} |")
    return lines


def survivors(mutants: Mutants, reasons: dict[str, str]) -> list[str]:
    """Return the table of what no test noticed. Raises ValueError for a survivor without a reason."""
    lines = ["| change | kind | why no test notices it |", "|---|---|---|"]
    for m in mutants:
        if m["fate"] == "killed":
            continue
        change = named(m)
        if change not in reasons:
            raise ValueError(f"no reason for the survivor {change}; add it to the file of reasons")
        cells = (change, m["kind"], reasons[change])
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def named(mutant: dict[str, Any]) -> str:
    """Return file, line, column and change of a mutant."""
    place = f"{mutant['file']}:{mutant['line']}:{mutant['column']}"
    return f"{place} `{mutant['old'].strip()}` → `{mutant['new'].strip()}`"
