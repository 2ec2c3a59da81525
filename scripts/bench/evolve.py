"""Measure the evolution of merges: what a candidate costs, and whether the winner beats what it is
compared with.

    python -m scripts.bench run evolve --cost DIR       merge against evaluation; the trunk comes first
    python -m scripts.bench run evolve --cost MODEL --copies 3     a lone model and noisy copies of it
    python -m scripts.bench run evolve --seeds 5 DIR [KEY=VALUE ...]     every seed, and a test over them

--cost prints, for each technique, the median CPU time of a merge (planning included, everything
shared already built), as a share of the CPU time of evaluating it on 4,096 tokens, and first the
time of a merge that builds what is shared. CPU seconds on one thread do not depend on what else the
machine does. --seeds prints the winner's gain on the test split over the best source, the soups and
random search, and a paired t test of the gains over the seeds.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent_forge import checkpoint, evaluate, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config.compose import compose
from agent_forge.core.events import EventLog
from agent_forge.phases import PhaseRun
from agent_forge.phases.evomerge import Config
from agent_forge.phases.evomerge.candidates import Stage
from agent_forge.phases.evomerge.genome import GenomeSpace
from agent_forge.phases.evomerge.run import run as run_evomerge
from agent_forge.phases.evomerge.sources import open_sources
from scripts.bench.result import Figure, Result, bars_met, here
from scripts.bench.stats import paired

CLAIM = "Evolution finds a merge that beats the best source and the greedy soup"
BAR = "p < .05 over both, paired over the seeds; a candidate's merge below 10% of its evaluation"
MOST_P, MOST_SHARE = 0.05, 0.1
JUDGED = ("best source of each seed", "greedy soup")

TOKENS, ROW = 4096, 256
REPEATS = 5


def run(arguments: Sequence[str] = ()) -> Result:
    """Measure the cost of a candidate, or the winner's gains over seeds, or both."""
    parser = argparse.ArgumentParser(prog="evolve", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("directory", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--copies", type=int, default=0, help="noisy copies of a lone model")
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument(
        "--out", type=Path, help="directory for the runs of --seeds; they resume there"
    )
    chosen = parser.parse_args(arguments)
    if not chosen.cost and not chosen.seeds:
        parser.error("name --cost, --seeds N, or both")
    torch.set_num_threads(chosen.threads)
    figures: list[Figure] = []
    if chosen.cost:
        with tempfile.TemporaryDirectory() as folder:
            paths = [chosen.directory]
            if chosen.copies:
                paths = noisy_copies(chosen.directory, chosen.copies, Path(folder))
            sources = checkpoint.expand([str(path) for path in paths])
            figures += cost(sources, getattr(torch, chosen.dtype))
    if chosen.seeds:
        figures += compare(chosen)
    return Result(
        claim=CLAIM, topic="Evolution", bar=BAR, n=f"{chosen.seeds} seeds", **bars_met(figures),
        figures=figures, **here("evolve", arguments),
    )  # fmt: skip


def noisy_copies(directory: Path, count: int, folder: Path) -> list[Path]:
    """Write `count` copies of a model with every weight moved by about 1%, in bfloat16.

    Return the trunk and them.
    """
    tokenizer = models.load_tokenizer(directory)
    paths = []
    for number in range(count + 1):
        model = models.load(directory)
        generator = torch.Generator().manual_seed(number)
        for value in model.parameters() if number else ():
            noise = (
                torch.randn(value.shape, generator=generator) * float(value.detach().std()) * 0.01
            )
            value.data.add_(noise)
        model.to(torch.bfloat16)
        paths.append(folder / (f"copy-{number}" if number else "trunk"))
        checkpoint.write(
            paths[-1],
            lambda path, m=model: models.save(m, tokenizer, path),
            phase="bench",
            seed=0,
            config={},
            name=paths[-1].name,
            role="specialist" if number else "trunk",
        )
    return paths


def cost(sources: list[Checkpoint], dtype: torch.dtype) -> list[Figure]:
    """Print and return what merging a candidate costs against evaluating it on TOKENS tokens."""
    config = compose("evomerge", Config, ["out=unused"])
    with tempfile.TemporaryDirectory() as scratch:
        opened = open_sources(sources, Path(scratch), torch.device("cpu"), dtype)
        stage = Stage(opened, 0)
        space = GenomeSpace(config.merge, opened.labels, stage.layers, stage.scalable)
        generator = np.random.default_rng(0)
        size = int(opened.form.config.vocab_size)
        rows = [
            ([int(i) for i in generator.integers(0, size, ROW)], [False, *[True] * (ROW - 1)])
        ] * (TOKENS // ROW)
        model = stage.show(space.recipe(space.parent(1)), "first")
        seconds = statistics.median(timed(lambda: evaluate.row_nll(model, rows)) for _ in range(3))
        parameters = sum(value.numel() for value in model.parameters())
        print(
            f"{parameters:,} parameters, {len(opened.labels)} checkpoints, {torch.get_num_threads()} threads, {dtype}: "
            f"evaluating {TOKENS:,} tokens takes {seconds:.2f} CPU s",
            flush=True,
        )
        print(f"{'technique':18} {'first':>9} {'merge':>9} {'share of evaluation':>20}")
        figures = []
        for technique in space.techniques:
            times = []
            for number in range(REPEATS + 1):
                genome = dataclasses.replace(space.random(generator), technique=technique)
                times.append(
                    timed(
                        lambda g=genome, n=number, t=technique: stage.show(
                            space.recipe(g), f"{t} {n}"
                        )
                    )
                )
            merge = statistics.median(times[1:])
            share = merge / seconds
            print(f"{technique:18} {times[0]:7.3f} s {merge:7.3f} s {share:19.1%}", flush=True)
            figures.append(
                Figure(
                    claim=f"cost of a {technique} candidate",
                    figure=share,
                    unit="of its evaluation",
                    bar=f"at most {MOST_SHARE:.0%}",
                    met=share <= MOST_SHARE,
                )
            )
    return figures


def timed(call: Any) -> float:
    """Return the CPU seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(chosen: argparse.Namespace) -> list[Figure]:
    """Evolve once per seed.

    Print and return the winner's gains on the test split with a paired t test over the seeds.
    """
    folder = chosen.out or Path(tempfile.mkdtemp(prefix="bench-evolve-"))
    gains: dict[str, dict[str, list[float]]] = {"fitness": {}, "gain": {}}
    for seed in range(chosen.seeds):
        tested = evolved(chosen, folder / f"seed-{seed}", seed)
        print(f"seed {seed}: winner {tested['technique']}, {tested['seconds']:.0f} s", flush=True)
        for measure, by_seed in gains.items():
            by_name = {row["over"]: row[measure]["value"] for row in tested["gains"]}
            sources = [
                name
                for name in by_name
                if name not in ("uniform soup", "greedy soup", "random search")
            ]
            best = min(sources, key=lambda name: by_name[name])
            print(
                f"  {measure:8}"
                + "  ".join(f"{name} {value:+.4f}" for name, value in by_name.items()),
                flush=True,
            )
            for name, value in {**by_name, "best source of each seed": by_name[best]}.items():
                by_seed.setdefault(name, []).append(value)
    figures: list[Figure] = []
    for measure, by_seed in gains.items():
        title = {"fitness": "gain in fitness over", "gain": "gain in log retention over"}[measure]
        print(f"{title:28} {'mean':>8} {'95% interval':>20} {'t':>7} {'p (two-sided)':>14}  wins")
        for name, values in by_seed.items() if chosen.seeds > 1 else ():
            mean, low, high, t, p = paired(values)
            wins = sum(value > 0 for value in values)
            print(
                f"{name:28} {mean:+8.4f}   [{low:+.4f}, {high:+.4f}] {t:7.2f} {p:14.4f}"
                f"  {wins} of {len(values)}"
            )
            judged = measure == "fitness" and name in JUDGED
            figures.append(
                Figure(
                    claim=f"{title} {name}", figure=mean, unit="nats", interval=(low, high),
                    n=f"{wins} of {len(values)} seeds win, p = {p:.4f}",
                    bar=f"p < {MOST_P:g}" if judged else "",
                    met=mean > 0 and p < MOST_P if judged else None,
                )
            )  # fmt: skip
    return figures


def evolved(chosen: argparse.Namespace, out: Path, seed: int) -> dict[str, Any]:
    """Return the test figures of one evolution; a finished one is read back."""
    result = out.with_suffix(".json")
    if not result.exists():
        config = compose("evomerge", Config, [f"out={out}", f"seed={seed}", *chosen.overrides])
        sources = checkpoint.expand([str(chosen.directory)])
        workspace = Workspace(out, phase="evomerge", seed=seed, config=config, parents=sources)
        start = time.perf_counter()
        if not out.exists():
            run_evomerge(PhaseRun(config, sources, workspace, EventLog(None, "evomerge")))
        tested = workspace.remember(next(workspace.state.glob("test-*.json")).stem, dict)
        tested["technique"] = checkpoint.open(out).manifest.extra["technique"]
        tested["seconds"] = time.perf_counter() - start
        result.write_text(json.dumps(tested))
    tested: dict[str, Any] = json.loads(result.read_text())
    return tested
