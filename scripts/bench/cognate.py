"""Measure the specialists of `forge cognate` over seeds: recall by written memory, passes saved,
and who is best at what.

    python -m scripts.bench run cognate --seeds 3 --out outputs/bench_cognate [--experiment cognate_full] [KEY=VALUE ...]

with the settings of `forge cognate`, or those that an experiment gives this phase (KEY=VALUE,
without `cognate.`, is laid over either), makes the models of every seed (what is there already is
kept, an interrupted run goes on) and prints, on validation items that no training saw:

1. recall: facts, a segment of other text, a question; right answers of memory_integration with
   writes on and off;
2. depth: adaptive_computation on easy and hard rows, leaving by its own head, always after one
   pass, and never early;
3. the 3 x 3 matrix of losses, and for each specialist its margin over the best sibling on its own
   probe, with Student's paired t over the seeds (two-sided).

Intervals of shares are Wilson's, of paired differences the normal one over all items of all seeds;
95%. --prepared DIR ... takes directories of checkpoints, one a seed, in place of making them.
"""

import argparse
import math
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from agent_forge import models
from agent_forge.checkpoint import Workspace
from agent_forge.config.compose import all_overrides, compose_tree, to_typed
from agent_forge.core.events import EventLog
from agent_forge.data.synthetic import mixed
from agent_forge.models.cognate import CognateForCausalLM
from agent_forge.phases import PhaseRun
from agent_forge.phases.cognate import Config
from agent_forge.phases.cognate.probes import (
    EASY,
    HARD,
    OWN_PROBE,
    Items,
    probe_rows,
    recall_items,
    row_items,
)
from agent_forge.phases.cognate.run import SPECIALISTS
from agent_forge.phases.cognate.run import run as run_cognate
from agent_forge.phases.cognate.segments import CHANCE
from agent_forge.pipeline.run_all import settings_schema
from scripts.bench.result import Figure, Result, bars_met, here
from scripts.bench.stats import normal_interval, paired_t, wilson

CLAIM = (
    "Cognate's specialists recall by written memory, save passes, and are best at their own skill"
)
BAR = "recall .9; half the passes saved without loss; each best on its own probe, p < .05"
LEAST_RECALL, LEAST_SAVED, MOST_LOST, MOST_P = 0.9, 0.5, 0.01, 0.05

Specialists = dict[str, CognateForCausalLM]
# What run-all sets once for all phases.
SHARED = r"(seed|data|runtime)\b"
WAYS = {
    "one pass": 0.0,
    "own exits": None,
    "all passes": 1.1,
}  # halting threshold; None: the specialist's own


def run(arguments: Sequence[str] = ()) -> Result:
    """Make or open the models of every seed, and print the three tables."""
    parser = argparse.ArgumentParser(prog="cognate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("overrides", nargs="*", help="settings of the phase")
    add(
        "--experiment", default="", help="a name in conf/experiment, or a file, for `forge run-all`"
    )
    add("--seeds", type=int, default=3)
    add("--items", type=int, default=256, help="items of each probe and seed")
    add("--out", type=Path, default=Path("outputs/bench_cognate"))
    add("--prepared", type=Path, nargs="*", default=[])
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    specialists, configs, tokenizers = [], [], []
    for seed in range(len(chosen.prepared) or chosen.seeds):
        folder = chosen.prepared[seed] if chosen.prepared else chosen.out / f"seed-{seed}"
        overrides = ["runtime.threads=1", *chosen.overrides, f"seed={seed}", f"out={folder}"]
        config = settings(overrides, chosen.experiment)
        if not all((folder / name).is_dir() for name in ("trunk", *SPECIALISTS)):
            make(config)
        configs.append(config)
        specialists.append({name: opened(folder / name) for name in SPECIALISTS})
        tokenizers.append(models.load_tokenizer(folder / "trunk"))
    figures = [
        *print_recall(specialists, tokenizers, configs, chosen.items),
        *print_depth(specialists, tokenizers, configs, chosen.items),
        *print_matrix(specialists, tokenizers, configs, chosen.items),
    ]
    return Result(
        claim=CLAIM, topic="Memory and depth", bar=BAR, n=f"{len(configs)} seeds",
        **bars_met(figures), figures=figures, **here("cognate", arguments),
    )  # fmt: skip


def settings(overrides: Sequence[str], experiment: str) -> Config:
    """Return the phase's settings.

    With an experiment those that it gives the phase within run-all.
    """
    if not experiment:
        return to_typed(
            compose_tree("cognate", all_overrides(overrides, None, Config)), Config, "cognate"
        )
    inside = [one if re.match(SHARED, one) else f"cognate.{one}" for one in overrides]
    tree = compose_tree("run_all", all_overrides(inside, experiment, settings_schema()))
    return to_typed(tree.cognate, Config, "cognate")


def make(config: Config) -> None:
    """Run the phase in this process."""
    started = time.process_time()
    out = Workspace(config.out, phase="cognate", seed=config.seed, config=config, parents=[])
    out.save_every_seconds = config.runtime.save_every_seconds
    run_cognate(PhaseRun(config, [], out, EventLog(None, "cognate", (), interval_seconds=60)))
    print(
        f"seed {config.seed}: made in {time.process_time() - started:.0f} s of processor time",
        flush=True,
    )


def opened(directory: Path) -> CognateForCausalLM:
    """Return a specialist."""
    model = models.load(directory).eval()
    assert isinstance(model, CognateForCausalLM), f"{directory} holds no Cognate"
    return model


def print_recall(
    seeds: Sequence[Specialists],
    tokenizers: Sequence[PreTrainedTokenizerFast],
    configs: Sequence[Config],
    count: int,
) -> list[Figure]:
    """Print right answers with writes on and off: one line per seed, and one over all seeds."""
    recall = configs[0].recall
    print(
        f"\nRecall over {recall.filler_segments} segment(s) of text between, segments of {recall.segment_tokens} tokens,"
        f" by memory_integration; chance (naming a code unseen) is {CHANCE:.3f}\n"
        "| seed | n | writes on | writes off |\n|---|---|---|---|"
    )
    rights: dict[bool, list[float]] = {True: [], False: []}
    for seed, (specialists, tokenizer, config) in enumerate(
        zip(seeds, tokenizers, configs, strict=True)
    ):
        cells = []
        for write, values in rights.items():
            items = recall_items(
                specialists["memory_integration"], tokenizer, config, count, write=write
            )
            values += items.right.tolist()
            cells.append(share(items.right.tolist()))
        print(f"| {seed} | {len(items.right)} | {cells[0]} | {cells[1]} |")
    print(
        f"| all | {len(rights[True])} | {share(rights[True])} | {share(rights[False])} |",
        flush=True,
    )
    (right, low, high), (off, off_low, off_high) = wilson(rights[True]), wilson(rights[False])
    return [
        Figure(
            claim="recall by memory_integration, writes on", figure=right, interval=(low, high),
            n=f"{len(rights[True])} questions", bar=f"at least {LEAST_RECALL}",
            met=right >= LEAST_RECALL,
        ),
        Figure(
            claim="the same, writes off", figure=off, interval=(off_low, off_high),
            n=f"{len(rights[False])} questions",
        ),
    ]  # fmt: skip


def print_depth(
    seeds: Sequence[Specialists],
    tokenizers: Sequence[PreTrainedTokenizerFast],
    configs: Sequence[Config],
    count: int,
) -> list[Figure]:
    """Print passes, loss and right answers of the three ways to leave, and the paired difference to
    all passes.
    """
    every: dict[str, list[Items]] = {way: [] for way in WAYS}
    levels = np.concatenate(
        [[row["difficulty"] for row in probe_rows("mixed", config, count)] for config in configs]
    )
    for specialists, tokenizer, config in zip(seeds, tokenizers, configs, strict=True):
        model = specialists["adaptive_computation"]
        own = model.config.halting_threshold
        for way, threshold in WAYS.items():
            model.config.halting_threshold = own if threshold is None else threshold
            every[way].append(row_items(model, tokenizer, probe_rows("mixed", config, count)))
        model.config.halting_threshold = own
    _print_ways(every, levels, len(configs))
    most, reference = (
        np.concatenate([getattr(items, name) for items in every["all passes"]])
        for name in ("passes", "right")
    )
    own_passes, own_right = (
        np.concatenate([getattr(items, name) for items in every["own exits"]])
        for name in ("passes", "right")
    )
    saved = float(1 - own_passes.mean() / most.mean())
    lost, low, high = normal_interval(own_right - reference)
    return [
        Figure(
            claim="passes saved by own exits", figure=saved, bar=f"at least {LEAST_SAVED:.0%}",
            n=f"{len(levels)} items", met=saved >= LEAST_SAVED,
        ),
        Figure(
            claim="right answers over all passes", figure=lost, interval=(low, high),
            n=f"{len(levels)} items", bar=f"at least -{MOST_LOST}", met=lost >= -MOST_LOST,
        ),
    ]  # fmt: skip


def _print_ways(every: dict[str, list[Items]], levels: np.ndarray, seeds: int) -> None:
    """Print the table of the ways to leave, and the passes that hard answers take over easy ones.

    levels: (items,) of all seeds, the difficulty of each.
    """
    print(
        f"\nDepth of adaptive_computation: {EASY} step (easy) or {HARD} (hard), n={len(levels)} over {seeds} seeds;"
        f" chance {mixed.CHANCE:.2f}; passes are means over all tokens of an item, question included\n"
        "| way | passes | fewer than all | easy | hard | at the answer: easy | hard | right: easy | hard | all |"
        " difference to all passes | nats per token |\n|" + "---|" * 12
    )
    most = np.concatenate([items.passes for items in every["all passes"]])
    reference = np.concatenate([items.right for items in every["all passes"]])
    for way, parts in every.items():
        passes, answer, right = (
            np.concatenate([getattr(items, name) for items in parts])
            for name in ("passes", "answer_passes", "right")
        )
        easy, hard = levels == EASY, levels == HARD
        print(
            f"| {way} | {passes.mean():.3f} | {1 - passes.mean() / most.mean():.1%} | {passes[easy].mean():.3f} |"
            f" {passes[hard].mean():.3f} | {answer[easy].mean():.3f} | {answer[hard].mean():.3f} |"
            f" {right[easy].mean():.3f} | {right[hard].mean():.3f} | {right.mean():.3f} |"
            f" {difference(right - reference)} | {statistics.mean(items.loss for items in parts):.4f} |",
            flush=True,
        )
    answer = np.concatenate([items.answer_passes for items in every["own exits"]])
    gap = answer[levels == HARD].mean() - answer[levels == EASY].mean()
    error = math.sqrt(
        sum(answer[levels == level].var(ddof=1) / (levels == level).sum() for level in (EASY, HARD))
    )
    print(
        f"hard answers take {gap:+.3f} [{gap - 1.96 * error:+.3f}, {gap + 1.96 * error:+.3f}] "
        "passes over easy ones"
    )


def print_matrix(
    seeds: Sequence[Specialists],
    tokenizers: Sequence[PreTrainedTokenizerFast],
    configs: Sequence[Config],
    count: int,
) -> list[Figure]:
    """Print the losses of all specialists on all probes, and each specialist's margin on its
    own.
    """
    losses: dict[tuple[str, str], list[float]] = {}
    for specialists, tokenizer, config in zip(seeds, tokenizers, configs, strict=True):
        for name, model in specialists.items():
            for probe in OWN_PROBE.values():
                if probe == "recall":
                    items = recall_items(model, tokenizer, config, count, write=True)
                else:
                    items = row_items(model, tokenizer, probe_rows(probe, config, count))
                losses.setdefault((name, probe), []).append(items.loss)
    print(
        f"\nLosses (nats per token of the answer), mean over {len(configs)} seeds, {count} items per probe and seed"
    )
    print(
        "| specialist | " + " | ".join(OWN_PROBE.values()) + " |\n|" + "---|" * (len(OWN_PROBE) + 1)
    )
    for name in SPECIALISTS:
        print(
            f"| {name} | "
            + " | ".join(f"{statistics.mean(losses[name, p]):.4f}" for p in OWN_PROBE.values())
            + " |"
        )
    print(
        "\n| specialist | probe | margin over the best sibling, a seed each | t | p |\n|---|---|---|---|---|"
    )
    figures = []
    for name, probe in OWN_PROBE.items():
        siblings = [losses[other, probe] for other in SPECIALISTS if other != name]
        margins = [
            min(others) - own for own, *others in zip(losses[name, probe], *siblings, strict=True)
        ]
        t, p = paired_t(margins)
        listed = ", ".join(f"{margin:+.4f}" for margin in margins)
        print(f"| {name} | {probe} | {listed} | {t:.2f} | {p:.4f} |", flush=True)
        margin = statistics.mean(margins)
        figures.append(
            Figure(
                claim=f"{name}'s margin over the best sibling on {probe}", figure=margin,
                unit="nats per token", n=f"p = {p:.4f}", bar=f"p < {MOST_P:g}",
                met=margin > 0 and p < MOST_P,
            )
        )  # fmt: skip
    return figures


def share(right: Sequence[float]) -> str:
    """Return a share with Wilson's interval."""
    value, low, high = wilson(right)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def difference(values: np.ndarray) -> str:
    """Return the mean of paired differences with its interval."""
    mean, low, high = normal_interval(values)
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
