"""Skills that a ternary and a small model keep after one GPU-hour of training each.

    python -m scripts.bench run skills_hour outputs/smollm2 [--device cuda] [KEY=VALUE ...]
    python -m scripts.bench run --results outputs/smoke skills_hour --smoke

Two models are made of the same parent, with the settings of experiment=smollm2_gpu:

    52 MB   `forge bitnet`: ternary weights, embedding and head of 8 bits
    27 MB   `forge compress` of the parent itself, because no setting of bitnet is as small: 5% of the
            fp32 bytes, with --recover steps of recovery end to end

`forge compare -t skills` then scores parent and child: five domains of held-out text, by their
perplexity, and the tasks whose package is installed. A task on which the parent is at chance has
nothing to lose; it is shown and has no bar. KEY=VALUE are settings of both trainings. What is in
--work is neither trained nor scored again; what was made with other settings is refused. --smoke
does all of it with a tiny model, in about a minute: it tries the script and measures nothing.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_forge import checkpoint, evaluate
from agent_forge.checkpoint import atomic
from scripts.bench.bfcl import SMOKE, tiny_model
from scripts.bench.own_tools import forge
from scripts.bench.phase_once import Finished, phase_once
from scripts.bench.result import Figure, Result, bars_met, here

CLAIM = "SmolLM2-135M keeps its skills in 52 MB and in 27 MB, after one GPU-hour each"
BAR = "52 MB: at most 1.15 x fp32 in each of five domains and 95% of the tasks with signal; 27 MB: 1.35 x"
EXPERIMENT = "experiment=smollm2_gpu"
LEAST_KEPT, MOST_MINUTES, MEGABYTE = 0.95, 60.0, 1e6
RECOVER_STEPS = 3000
SMOKE_ITEMS = 2


@dataclass(frozen=True, slots=True)
class Small:
    """One of the two models: how it is made, and what it is held to.

    most_ratio: of its perplexity over the parent's in each domain. tasks: whether tasks have a bar.
    """

    name: str
    phase: str
    most_megabytes: float
    most_ratio: float
    tasks: bool


SMALL = (
    Small("52 MB", "bitnet", 52.5, 1.15, tasks=True),
    Small("27 MB", "compress", 27.5, 1.35, tasks=False),
)


def run(arguments: Sequence[str] = ()) -> Result:
    """Make both models, compare each with the parent, print each bar, and return the figures."""
    args = _options(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    figures, rows = [], {}
    for small in SMALL:
        words = (small.phase, EXPERIMENT, f"runtime.device={args.device}")
        finished = phase_once(args.work / small.phase, words, settings(small, args))
        rows[small.name] = _compared(args, finished.path)
        figures += [*_costs(small, finished), *judged(small, rows[small.name])]
    for figure in figures:
        verdict = (
            "" if figure.met is None else f" ({figure.bar}: {'met' if figure.met else 'MISSED'})"
        )
        print(f"{figure.claim}: {figure.figure} {figure.unit} {figure.interval or ''}{verdict}")
    return Result(
        claim=CLAIM, topic="Ternary weights", bar=BAR, n=f"{args.items} items per domain and task",
        figures=figures, tables=_table(rows),
        note="A smoke run of a tiny model: the figures mean nothing." if args.smoke else "",
        **bars_met(figures), **here("skills_hour", arguments),
    )  # fmt: skip


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="skills_hour", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("source", type=Path, nargs="?", help="the checkpoint that both are made of")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--recover", type=int, default=RECOVER_STEPS, help="steps of recovery of the 27 MB")
    add("--items", type=int, default=100, help="held-out items per domain and task")
    add("--tasks", default="skills", help="what is scored, as for `forge compare -t`")
    add("--work", type=Path, default=Path("outputs/skills_hour"))
    add("--smoke", action="store_true", help="a tiny model, in about a minute; measures nothing")
    add("settings", nargs="*", metavar="KEY=VALUE", help="settings of both trainings")
    args = parser.parse_intermixed_args(arguments)
    if args.source is not None and "=" in str(args.source):
        args.settings.insert(0, str(args.source))
        args.source = None
    if args.smoke:
        args.work, args.items, args.tasks = args.work / "smoke", SMOKE_ITEMS, "domains"
        args.source = args.source or tiny_model(args.work)
    if args.source is None:
        parser.error("name the checkpoint that both are made of, as in outputs/smollm2")
    return args


def settings(small: Small, args: argparse.Namespace) -> list[str]:
    """Return the settings of one of the two trainings, the user's own last."""
    chosen = [f"sources=[{args.source}]"]
    if small.phase == "compress":
        chosen += [
            "budget.quality_floor=0", "budget.bytes_ratio=0.05", f"recover.steps={args.recover}",
            "recover.rows=32", "recover.length_tokens=256",
        ]  # fmt: skip
    if args.smoke:
        chosen += SMOKE[small.phase]
    return [*chosen, *args.settings]


def _compared(args: argparse.Namespace, child: Path) -> list[dict[str, Any]]:
    """Return the rows of `forge compare`, from --work where the same two were compared before."""
    identity = checkpoint.open(child).manifest.id
    noted = args.work / f"{identity[:16]}-{args.tasks}-{args.items}-{args.device}.json"
    if not noted.exists():
        printed, _ = forge(
            "compare", str(args.source), str(child), "-t", args.tasks, "-n", str(args.items),
            "--json", f"runtime.device={args.device}",
        )  # fmt: skip
        atomic.write_bytes(noted, printed.encode())
    return [json.loads(line) for line in noted.read_text(encoding="utf-8").splitlines()]


def _costs(small: Small, finished: Finished) -> list[Figure]:
    size = checkpoint.open(finished.path).manifest.deployable_bytes / MEGABYTE
    return [
        Figure(
            claim=f"{small.name}: size", figure=round(size, 2), unit="MB",
            bar=f"at most {small.most_megabytes}", met=size <= small.most_megabytes,
        ),
        Figure(
            claim=f"{small.name}: minutes by the clock", figure=round(finished.minutes, 1), unit="minutes",
            bar=f"at most {MOST_MINUTES:.0f}", met=finished.minutes <= MOST_MINUTES,
        ),
    ]  # fmt: skip


def judged(small: Small, rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Return the perplexity ratio of each domain and the kept share of each task; a bar is judged by
    the value, as it is written. A row is one of `forge compare --json`.
    """
    figures = []
    for row in rows:
        count, low, high = f"{row['n']} items", row["low"], row["high"]
        if row["task"] in evaluate.DOMAINS:
            ratio = 1 / row["kept"] if row["kept"] else float("inf")
            figures.append(Figure(
                claim=f"{small.name}: perplexity of {row['task']}", figure=round(ratio, 4), unit="x fp32",
                interval=(1 / high, 1 / low) if low else None, n=count,
                bar=f"at most {small.most_ratio}", met=ratio <= small.most_ratio,
            ))  # fmt: skip
            continue
        has_bar = small.tasks and not row["at_chance"]
        figures.append(Figure(
            claim=f"{small.name}: {row['task']}, share kept" + (" (the parent is at chance)" if row["at_chance"] else ""),
            figure=round(row["kept"], 4), interval=(low, high), n=count,
            bar=f"at least {LEAST_KEPT}" if has_bar else "", met=row["kept"] >= LEAST_KEPT if has_bar else None,
        ))  # fmt: skip
    return figures


def _table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = ["| model | task | parent | child | kept | n |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {name} | {row['task']} | {row['first']:.3f} | {row['second']:.3f} | "
        f"{row['kept']:.3f} [{row['low']:.3f}, {row['high']:.3f}] | {row['n']} |"
        for name, of_model in rows.items()
        for row in of_model
    ]
    return "\n".join(lines)
