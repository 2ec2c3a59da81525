"""What replay keeps when a model learns one thing after another, and how much new data it saves.

    python -m scripts.bench run replay --parent outputs/run_all/1-cognate/trunk --seeds 5
    python -m scripts.bench run replay --parent outputs/smollm2 --device cuda --rows 32 --length 256 optim.lr=1e-4
    python -m scripts.bench run replay --smoke

1. Forgetting: a model learns prose, then arithmetic, then tool calls, each alone, and after each is
scored on all three. Beside training without replay: real rows of what came before in a quarter or a
half of the windows, and its own dreams in as many. Tokens are equal. Forgetting is the loss on the
first two at the end, less that right after each was learned.
2. Target efficiency: tool calls are learned from a quarter to all of a budget of windows, with real
prose beside them or without. How many windows of tool calls training without replay needs for the
loss that replay has at half of the budget, over that half, is the efficiency (1.87 in
arXiv:2603.04964 at 150 M parameters). Replayed windows come on top, as there. Where even the whole
budget is not enough without replay, the seed counts as that budget, which is the least it can be.
The efficiency counts where replay forgets no more prose than training without it has forgotten
when it reaches the same loss.

KEY=VALUE are settings of `forge train` for every trial: a real model needs a smaller rate than a
nano one.

Every finished trial is a line of WORK/trials.jsonl: a killed bench goes on.
"""

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.bench import trials
from scripts.bench.result import Figure, Result, here
from scripts.bench.stats import mean_interval
from scripts.bench.tokens_to_loss import needed_share

CLAIM = "Replay of real rows keeps what was learned before, and saves new data"
BAR = "forgetting below that without replay, with an interval that excludes 0"

ORDER = ("text", "reasoning", "tools")
TARGET, BUDGETS, JUDGED = "tools", (0.25, 0.5, 1.0), 0.5
BEFORE, LEAST_EFFICIENCY = "text", 1.8  # what may be forgotten while TARGET is learned; the bar
NONE = "no replay"
SHARES: Mapping[str, float] = {
    "real .25": 0.25,
    "real .5": 0.5,
    "dreams .25": 0.25,
    "dreams .5": 0.5,
}
BASE = ("average=none", "optim.cooldown_share=0.5", "dream.distinct_share=0")


def only(kind: str) -> str:
    """Return the mix of one kind of data."""
    return "mix={" + ", ".join(f"{k}: {int(k == kind)}" for k in (*ORDER, "memory")) + "}"


def replaying(variant: str, learned: Sequence[str]) -> list[str]:
    """Return the settings that replay `learned` kinds, or dreams, as a variant does."""
    if variant == NONE or not learned:
        return []
    share = SHARES[variant]
    if variant.startswith("dreams"):
        return ["dream.enabled=true", f"dream.share={share}"]
    mix = ", ".join(f"{kind}: 1.0" for kind in learned)
    return [f"replay.share={share}", f"replay.mix={{{mix}}}"]


def run(arguments: Sequence[str] = ()) -> Result:
    """Train what is not yet trained, and print the matrix and the curve."""
    parser = argparse.ArgumentParser(prog="replay", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    trials.add_arguments(parser, seeds=5)
    parser.add_argument("--steps", type=int, default=138, help="of each kind, and of the budget")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda in bfloat16")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of forge train")
    options = trials.settled(parser.parse_intermixed_args(arguments))
    if options.smoke:
        options.steps = 4
    bench = Replay(options)
    seeds = range(options.seeds)
    forgetting = {v: [bench.forgetting(v, s) for s in seeds] for v in (NONE, *SHARES)}
    figures = [_figure(f"forgetting, {v}", values, "nats") for v, values in forgetting.items()]
    saved = {
        v: _figure(
            f"forgetting saved by {v}",
            [a - b for a, b in zip(forgetting[NONE], forgetting[v], strict=True)], "nats",
        )
        for v in SHARES
    }  # fmt: skip
    for variant in ("real .25", "real .5"):
        figures += _efficiency(variant, [bench.efficiency(variant, s) for s in seeds])
    for figure in [*figures, *saved.values()]:
        verdict = (
            "" if figure.met is None else f" ({figure.bar}: {'met' if figure.met else 'MISSED'})"
        )
        print(f"{figure.claim}: {figure.figure:+.4f} {figure.interval} {figure.unit}{verdict}")
    best = saved["real .5"]
    return Result(
        claim=CLAIM, topic="Training", bar=BAR, figure=best.figure, unit="nats of forgetting saved",
        interval=best.interval, met=bool(best.interval and best.interval[0] > 0),
        n=f"{options.seeds} paired seeds of {options.steps} steps per kind",
        figures=[*figures, *saved.values()], tables=bench.matrices(seeds),
        **here("replay", arguments),
    )  # fmt: skip


class Replay:
    """The trials of both parts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.trials = options, trials.Trials(options, options.device)
        self.base = [*BASE, *options.settings]
        self.key = {"settings": options.settings} if options.settings else {}

    def chain(self, variant: str, seed: int) -> list[dict[str, float]]:
        """Return the losses by kind after each of the three trainings."""

        def compute() -> dict[str, Any]:
            parent, after = self.trials.parent, []
            for place, kind in enumerate(ORDER):
                settings = [
                    *self.base, only(kind), *replaying(variant, ORDER[:place]),
                    *trials.steps_of({"dream_1": self.options.steps}),
                ]  # fmt: skip
                parent, _ = self.trials.train(seed, settings, parent, f"chain-{place % 2}")
                after.append(self.trials.losses(parent))
            return {"after": after}

        key = {"chain": variant, "seed": seed, "steps": self.options.steps, **self.key}
        after: list[dict[str, float]] = self.trials.once(key, compute)["after"]
        return after

    def forgetting(self, variant: str, seed: int) -> float:
        """Return the mean rise of the loss on the first two kinds after they were learned."""
        after = self.chain(variant, seed)
        return statistics.mean(
            after[-1][kind] - after[place][kind] for place, kind in enumerate(ORDER[:-1])
        )

    def target_losses(self, variant: str, budget: float, seed: int) -> dict[str, float]:
        """Return the losses by kind after `budget` of the target's windows."""
        share = SHARES.get(variant, 0.0)
        steps = max(1, round(self.options.steps * budget / (1 - share)))

        def compute() -> dict[str, Any]:
            settings = [
                *self.base, only(TARGET), *replaying(variant, [BEFORE]), *trials.steps_of({"dream_1": steps})
            ]  # fmt: skip
            child, _ = self.trials.train(seed, settings)
            return self.trials.losses(child)

        key = {"target": variant, "seed": seed, "steps": steps, **self.key}
        return self.trials.once(key, compute)

    def efficiency(self, variant: str, seed: int) -> tuple[float, float]:
        """Return how many times the windows training without replay needs for the same loss, at
        most those of the whole budget, and how much less prose replay has forgotten by then (nats
        per token).
        """
        curve = {budget: self.target_losses(NONE, budget, seed) for budget in BUDGETS}
        ours = self.target_losses(variant, JUDGED, seed)
        losses = {budget: one[TARGET] for budget, one in curve.items()}
        needed = min(needed_share(losses, ours[TARGET]), BUDGETS[-1])
        forgotten = np.interp(
            math.log(needed), [math.log(b) for b in BUDGETS], [curve[b][BEFORE] for b in BUDGETS]
        )
        return needed / JUDGED, float(forgotten) - ours[BEFORE]

    def matrices(self, seeds: Sequence[int]) -> str:
        """Return one Markdown table per variant: rows are what was just learned."""
        parts = []
        for variant in (NONE, *SHARES):
            chains = [self.chain(variant, seed) for seed in seeds]
            lines = [f"**{variant}**: nats per token, means over seeds", ""]
            lines += ["| after | " + " | ".join(ORDER) + " |", "|---|" + "---|" * len(ORDER)]
            for place, learned in enumerate(ORDER):
                cells = [statistics.mean(c[place][kind] for c in chains) for kind in ORDER]
                lines.append(f"| {learned} | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |")
            parts.append("\n".join(lines))
        return "\n\n".join(parts)


def _efficiency(variant: str, seeds: Sequence[tuple[float, float]]) -> list[Figure]:
    """Return the target efficiency, judged where prose is forgotten no more, and what is saved of
    it.
    """
    ratios, saved = ([pair[place] for pair in seeds] for place in (0, 1))
    efficiency = _figure(f"target efficiency, {variant}", ratios, "x the windows")
    least = sum(ratio >= BUDGETS[-1] / JUDGED for ratio in ratios)
    spared = _figure(f"{BEFORE} forgotten less at that loss, {variant}", saved, "nats")
    efficiency.n += f", {least} of them at least that" if least else ""
    efficiency.bar = f"at least {LEAST_EFFICIENCY}, with no more forgotten"
    means = [statistics.mean(values) for values in (ratios, saved)]
    efficiency.met = means[0] >= LEAST_EFFICIENCY and means[1] >= 0
    return [efficiency, spared]


def _figure(claim: str, values: Sequence[float], unit: str) -> Figure:
    mean, low, high = mean_interval(values)
    return Figure(
        claim=claim, figure=mean, unit=unit, interval=(low, high), n=f"{len(values)} seeds"
    )
