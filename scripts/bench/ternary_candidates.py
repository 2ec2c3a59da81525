"""What each candidate for the ternary recipe brings over the shipped one, at equal tokens.

    python -m scripts.bench run ternary_candidates --parent outputs/run_all/1-cognate/trunk --seeds 3
    python -m scripts.bench run ternary_candidates --smoke
    python -m scripts.bench run --results FOLDER ternary_candidates --only "KL alone"

Leave-one-in: `forge bitnet` as shipped, with one thing changed. Every seed trains every variant on
as many tokens, in an order that turns from seed to seed. Compared are the KL from the parent and
the bits per byte on held-out text and held-out tool calls; a candidate is judged on the kind where
it does worst. Every finished trial is a line of WORK/trials.jsonl: a killed bench goes on.

An embedding of fewer bits can only lose against the shipped float one; it is there for its bytes,
which are told too. So the ternary one has one of 4 bits beside it.

--only compares some candidates with a shipped recipe that is trained beside them. Such a record
names its candidates, and is kept beside the others in results/ under a name of its own, as
ternary_candidates_NAME.json: it says nothing of candidates that other records measured.
"""

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from agent_forge import models
from agent_forge.checkpoint import Checkpoint
from agent_forge.config.compose import compose
from agent_forge.phases.bitnet import Config
from scripts.bench import trials
from scripts.bench.ablate_stages import in_turn
from scripts.bench.result import Figure, Result, here
from scripts.bench.stats import mean_interval

CLAIM = "A candidate is part of the ternary recipe only where it beats the recipe without it"
BAR = "a gain in held-out KL on the worst kind whose interval over the seeds excludes 0"

SHIPPED = "shipped"
KINDS = ("text", "tools")
# What every trial sets: the phase's own measurements are cut short, because the bench has its own.
BARE = (
    "measure_items=4", "unseen_items=4", "domain_items=0", "runtime.device=cpu",
    "runtime.compile=off",
)  # fmt: skip
CANDIDATES: Mapping[str, tuple[str, ...]] = {
    "attention relations": ("distill.relation_weight=1",),
    "longer windows": (),  # see `overrides`
    "cross-entropy at .1": ("distill.ce_weight=0.1",),
    "KL alone": ("distill.ce_weight=0",),
    "ternary embedding and head": ("linear.embedding_bits=2",),
    "4-bit embedding and head": ("linear.embedding_bits=4",),
}
LONGER = "longer windows"


def overrides(variant: str, rows: int, length: int) -> list[str]:
    """Return the settings of a variant. rows, length: the windows per step of the shipped one."""
    if variant == LONGER:  # half as many of twice the length, in calibration too
        calibration = compose("bitnet", Config, ["out=o", "sources=[s]"]).init.rows // 2
        rows, length, more = rows // 2, 2 * length, [f"init.rows={calibration}"]
    else:
        more = list(CANDIDATES.get(variant, ()))
    return [f"train.rows={rows}", f"train.length_tokens={length}", *more]


def run(arguments: Sequence[str] = ()) -> Result:
    """Train what is not yet trained, and print the gains."""
    parser = argparse.ArgumentParser(prog="ternary_candidates", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    trials.add_arguments(parser, seeds=3)
    parser.set_defaults(rows=8, length=192)
    parser.add_argument("--scale", type=float, default=1.0, help="times the shipped steps")
    parser.add_argument("--dtype", default="float32", help="runtime.dtype of the trials")
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, help="these candidates alone")
    options = trials.settled(parser.parse_args(arguments))
    names = options.only or list(CANDIDATES)
    if options.smoke:
        options.scale = 0.02
    bench = Candidates(options)
    for seed in range(options.seeds):
        for variant in in_turn([SHIPPED, *names], seed):
            bench.trial(variant, seed)
    worst = {name: bench.worst_kind(name) for name in names}
    figures = [bench.gain(name, worst[name], "kl", " (its worst kind)") for name in names]
    figures += [bench.gain(n, k, "kl") for n in names for k in KINDS if k != worst[n]]
    figures += [bench.gain(n, k, "bits") for n in names for k in KINDS]
    figures += [bench.shipped(kind, measure) for kind in KINDS for measure in ("kl", "bits")]
    figures += [bench.costs(name, what) for name in names for what in ("bytes", "seconds")]
    for figure in figures:
        print(f"{figure.claim}: {figure.figure:+.4f} {figure.interval} {figure.unit}")
    winners = [f for f in figures[: len(names)] if f.interval and f.interval[0] > 0]
    tokens = bench.steps * options.rows * options.length
    return Result(
        claim=CLAIM, topic="Ternary weights", bar=BAR, figure=float(len(winners)),
        unit=f"of {len(names)} candidates win and are off", met=not winners,
        n=f"{options.seeds} paired seeds of {tokens:,} tokens", figures=figures,
        note="Gains are the shipped recipe's figure less the candidate's: above 0 the candidate is "
        f"better. The candidates of this record: {', '.join(names)}.",
        **here("ternary_candidates", arguments),
    )  # fmt: skip


class Candidates:
    """Variants, seeds and what their trials came to."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.trials = options, trials.Trials(options)
        shipped = compose("bitnet", Config, ["out=o", "sources=[s]"]).train.steps
        self.steps = max(1, round(options.scale * shipped))
        self.parent: dict[str, list[Tensor]] = {}

    def trial(self, variant: str, seed: int) -> dict[str, Any]:
        """Return {"kl", "bits"} by kind, seconds and the packed file's bytes of a variant."""
        options = self.options
        small = [*trials.SMOKE_BITNET] if options.smoke else []
        settings = [
            *overrides(variant, options.rows, options.length), f"train.steps={self.steps}",
            f"runtime.dtype={options.dtype}", *small,
        ]  # fmt: skip

        def compute() -> dict[str, Any]:
            place = self.trials.work / "t"
            config = compose("bitnet", Config, [*BARE, *settings, f"seed={seed}", f"out={place}"])
            child, seconds = self.trials.run("bitnet", config, [self.trials.parent])
            size = child.manifest.deployable_bytes
            return {**self._scores(child), "seconds": seconds, "bytes": size}

        return self.trials.once({"variant": variant, "seed": seed, "settings": settings}, compute)

    @torch.no_grad()
    def _scores(self, child: Checkpoint) -> dict[str, dict[str, float]]:
        """Return KL from the parent in nats per scored token, and bits per byte, kind by kind."""
        model = models.load(child).eval()
        scores: dict[str, dict[str, float]] = {"kl": {}, "bits": {}}
        for kind in KINDS:
            kl = nats = 0.0
            tokens = text_bytes = 0
            rows = self.trials.held_out(kind)
            for (ids, mask), log_p in zip(rows, self._parents(kind), strict=True):
                log_q = log_probabilities(model, ids, mask)
                targets = torch.tensor(ids)[torch.tensor(mask)]
                kl += float((log_p.exp() * (log_p - log_q)).sum())
                nats -= float(log_q.gather(1, targets[:, None]).sum())
                tokens += len(targets)
                text_bytes += len(self.trials.tokenizer.decode(targets.tolist()).encode())
            scores["kl"][kind] = kl / tokens
            scores["bits"][kind] = nats / math.log(2) / text_bytes
        return scores

    def _parents(self, kind: str) -> list[Tensor]:
        """Return the parent's log-probabilities at the scored places of each held-out window."""
        if kind not in self.parent:
            model = models.load(self.trials.parent).eval()
            rows = self.trials.held_out(kind)
            self.parent[kind] = [log_probabilities(model, ids, mask) for ids, mask in rows]
        return self.parent[kind]

    def gains(self, variant: str, kind: str, measure: str) -> list[float]:
        """Return what a variant gains over the shipped recipe, seed by seed."""
        return [
            self.trial(SHIPPED, seed)[measure][kind] - self.trial(variant, seed)[measure][kind]
            for seed in range(self.options.seeds)
        ]

    def worst_kind(self, variant: str) -> str:
        """Return the kind of data on which a variant's mean gain in KL is least."""
        return min(KINDS, key=lambda kind: statistics.mean(self.gains(variant, kind, "kl")))

    def gain(self, variant: str, kind: str, measure: str, remark: str = "") -> Figure:
        """Return the mean gain of a variant with its interval over the seeds."""
        name = "KL" if measure == "kl" else "bits per byte"
        return self._figure(
            f"{variant}, {name} of {kind}{remark}", self.gains(variant, kind, measure), measure
        )

    def shipped(self, kind: str, measure: str) -> Figure:
        """Return the shipped recipe's own figure."""
        name = "KL" if measure == "kl" else "bits per byte"
        values = [self.trial(SHIPPED, s)[measure][kind] for s in range(self.options.seeds)]
        return self._figure(f"the shipped recipe itself, {name} of {kind}", values, measure)

    def costs(self, variant: str, what: str) -> Figure:
        """Return the packed bytes or processor seconds of a variant over the shipped recipe's."""
        ratios = [
            self.trial(variant, seed)[what] / self.trial(SHIPPED, seed)[what]
            for seed in range(self.options.seeds)
        ]
        unit = {"bytes": "x the packed file", "seconds": "x the processor time"}[what]
        return Figure(
            claim=f"{variant}, {what}", figure=statistics.median(ratios), unit=unit,
            n=f"median of {len(ratios)}",
        )  # fmt: skip

    def _figure(self, claim: str, values: Sequence[float], measure: str) -> Figure:
        mean, low, high = mean_interval(values)
        unit = "nats per token" if measure == "kl" else "bits per byte"
        return Figure(
            claim=claim, figure=mean, unit=unit, interval=(low, high),
            n=f"{len(values)} paired seeds",
        )  # fmt: skip


@torch.no_grad()
def log_probabilities(model: Any, ids: Sequence[int], mask: Sequence[bool]) -> Tensor:
    """Return log p at the places that mask scores, each given the tokens before: (n, V) float32."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
    return torch.log_softmax(logits[torch.tensor(mask[1:])], -1)
