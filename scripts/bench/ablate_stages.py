"""What each mechanism of `forge train` brings: alone over plain training, and in the company of all.

    python -m scripts.bench run ablate_stages --parent outputs/run_all/1-cognate/trunk --seeds 5
    python -m scripts.bench run ablate_stages --smoke

Leave-one-in: plain training with one mechanism switched on. Leave-one-out: all of them, less one.
Every seed trains every variant on the same batches, in an order that turns from seed to seed.
Compared are held-out losses at equal tokens, and at equal seconds of one core: there plain training
gets as many more steps as the variant's time would pay for, in tenths of a run. Every finished
trial is a line of WORK/trials.jsonl: a killed bench goes on.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.bench import trials
from scripts.bench.result import Figure, Result, here
from scripts.bench.stats import mean_interval

CLAIM = "A mechanism of further training is on by default only where it beats plain training"
BAR = "a gain at equal tokens whose interval over the seeds excludes 0"

OFF = (
    "curriculum.enabled=false", "chaos.enabled=false", "dream.enabled=false", "replay.share=0",
    "self_model.weight=0", "average=none",
)  # fmt: skip
MECHANISMS: Mapping[str, tuple[str, ...]] = {
    "curriculum": ("curriculum.enabled=true", "curriculum.every_steps=6"),
    "chaos": ("chaos.enabled=true",),
    "dreams": ("dream.enabled=true",),
    "self-model": ("self_model.weight=0.1",),
    "replay": ("replay.share=0.25",),
    "average": ("average=uniform",),
}
# Schedules in the place of the shipped one, in which the last half of the steps cools down.
SCHEDULES: Mapping[str, tuple[str, ...]] = {
    "a quarter cools down": ("optim.cooldown_share=0.5",),
    "nothing cools down": ("optim.cooldown_share=0.0",),
}
PLAIN, ALL, LESS = "plain", "all", "all less "
DEFAULT_ON = {"average"}
LEAVE_IN = (PLAIN, *MECHANISMS, *SCHEDULES)
LEAVE_OUT = (ALL, *(LESS + name for name in MECHANISMS))


def overrides(variant: str) -> list[str]:
    """Return the settings of a variant."""
    if variant in MECHANISMS:
        return [*OFF, *MECHANISMS[variant]]
    if variant in SCHEDULES:
        return [*OFF, *SCHEDULES[variant]]
    if variant == PLAIN:
        return list(OFF)
    left_out = variant.removeprefix(LESS)
    return [*OFF, *(one for name, more in MECHANISMS.items() if name != left_out for one in more)]


def in_turn(variants: Sequence[str], seed: int) -> list[str]:
    """Return the order of a seed: every variant comes early in one seed and late in another."""
    start = seed % len(variants)
    turned = [*variants[start:], *variants[:start]]
    return turned[::-1] if seed % 2 else turned


def run(arguments: Sequence[str] = ()) -> Result:
    """Train what is not yet trained, and print both tables."""
    parser = argparse.ArgumentParser(prog="ablate_stages", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    trials.add_arguments(parser, seeds=5)
    parser.add_argument("--scale", type=float, default=1.0, help="times the shipped steps")
    parser.add_argument("--leave", choices=("in", "out", "both"), default="both")
    options = trials.settled(parser.parse_args(arguments))
    if options.smoke:
        options.scale = 0.05
    bench = Ablation(options)
    chosen = [
        *(LEAVE_IN if options.leave != "out" else ()),
        *(LEAVE_OUT if options.leave != "in" else ()),
    ]
    for seed in range(options.seeds):
        for variant in in_turn(chosen, seed):
            bench.trial(variant, seed, 1.0)
    figures = [
        *(bench.compared(name, PLAIN, name) for name in chosen if name in LEAVE_IN[1:]),
        *(bench.at_equal_seconds(name) for name in chosen if name in LEAVE_IN[1:]),
        *(bench.compared(f"{name}, beside all others", LESS + name, ALL)
          for name in MECHANISMS if ALL in chosen),
    ]  # fmt: skip
    for figure in figures:
        print(f"{figure.claim}: {figure.figure:+.4f} {figure.interval} {figure.unit}")
    wrong = [name for name in DEFAULT_ON if PLAIN in chosen and bench.wins(name) < 0]
    missed = [name for name in MECHANISMS if PLAIN in chosen and bench.wins(name) > 0]
    missed = [name for name in missed if name not in DEFAULT_ON]
    tokens = sum(trials.shipped_steps(options.scale).values()) * options.rows * options.length
    return Result(
        claim=CLAIM, topic="Training", bar=BAR, figure=float(len(wrong) + len(missed)),
        unit="mechanisms whose default the figures contradict", met=not wrong and not missed,
        n=f"{options.seeds} paired seeds of {tokens:,.0f} tokens", figures=figures,
        note="Gains are in nats per learned token, a mean over text, reasoning and tools; "
        "above 0 the variant is better.",
        **here("ablate_stages", arguments),
    )  # fmt: skip


class Ablation:
    """Variants, seeds and what their trials came to."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.trials = options, trials.Trials(options)

    def trial(self, variant: str, seed: int, longer: float) -> dict[str, Any]:
        """Return losses and seconds of a variant, with `longer` times its steps."""
        shipped = trials.shipped_steps(self.options.scale * longer)
        if self.options.smoke:  # one stage per mechanism
            shipped = {s: n for s, n in shipped.items() if not s.endswith(("_2", "_3"))}
        steps = trials.steps_of(shipped)

        def compute() -> dict[str, Any]:
            child, seconds = self.trials.train(seed, [*overrides(variant), *steps])
            return {"losses": self.trials.losses(child), "seconds": seconds}

        key = {"variant": variant, "seed": seed, "steps": steps, "settings": overrides(variant)}
        return self.trials.once(key, compute)

    def loss(self, variant: str, seed: int, longer: float = 1.0) -> float:
        """Return the mean loss over the kinds of data, in nats per learned token."""
        return statistics.mean(self.trial(variant, seed, longer)["losses"].values())

    def compared(self, claim: str, before: str, after: str) -> Figure:
        """Return the gain of one variant over another at equal tokens."""
        return self._figure(
            f"{claim}, equal tokens",
            [self.loss(before, s) - self.loss(after, s) for s in range(self.options.seeds)],
        )

    def at_equal_seconds(self, variant: str) -> Figure:
        """Return the gain of a variant over plain training that had as much time."""
        seeds = range(self.options.seeds)
        ratio = statistics.median(
            self.trial(variant, s, 1.0)["seconds"] / self.trial(PLAIN, s, 1.0)["seconds"]
            for s in seeds
        )
        longer = max(1.0, round(ratio, 1))
        return self._figure(
            f"{variant}, equal seconds ({ratio:.2f} x)",
            [self.loss(PLAIN, s, longer) - self.loss(variant, s) for s in seeds],
        )

    def wins(self, name: str) -> int:
        """Return 1 where a mechanism alone wins beyond chance, -1 where it loses, else 0."""
        low, high = self.compared(name, PLAIN, name).interval or (0.0, 0.0)
        return int(low > 0) - int(high < 0)

    def _figure(self, claim: str, gains: Sequence[float]) -> Figure:
        mean, low, high = mean_interval(gains)
        return Figure(
            claim=claim, figure=mean, unit="nats per token", interval=(low, high),
            n=f"{len(gains)} paired seeds",
        )  # fmt: skip
