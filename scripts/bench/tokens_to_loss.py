"""How many tokens Muon with our schedule needs for the loss that a tuned AdamW ends with.

    python -m scripts.bench run tokens_to_loss --seeds 5 --steps 300

Both are tuned on a seed of their own, each over four learning rates, and by factors of two beyond
them while the best is the last of its side: AdamW with warm-up and cosine to zero in the plain
loop; ours with Muon for hidden matrices, warm-up, flat, linear cool-down and tail averaging in
learn.train. Then both train from equal weights on equal batches, a seed at a time: AdamW its whole
budget at its two best rates, of which the better one counts (one seed of tuning may mislead it;
ours has its one best rate), ours each share of it in SHARES. All in the products of --dtype. Every
finished run is a line of CACHE/tokens-to-loss.jsonl: a killed comparison goes on, and other
settings start afresh.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from scripts.bench.engines import (
    SHAPES,
    add_arguments,
    ours,
    plain,
    prepare,
    set_environment,
    text_settings,
)
from scripts.bench.result import Figure, Result, here
from scripts.bench.stats import mean_interval

CLAIM = "Muon with our schedule needs fewer tokens than a tuned AdamW for its final loss"
BAR = "at most .75 of its tokens"
MOST_SHARE = 0.75

ADAMW_RATES = (1e-3, 2e-3, 4e-3, 8e-3)
MUON_RATES = (0.01, 0.02, 0.04, 0.08)
# Shares of the baseline's tokens; learning rates are tuned at the last one.
SHARES = (0.25, 0.5, 0.75)
TUNING_SEED = 100
WINDOWS = 128  # held-out windows that measure the loss


def run(arguments: Sequence[str] = ()) -> Result:
    """Train what is not yet trained, and print the comparison."""
    parser = argparse.ArgumentParser(prog="tokens_to_loss", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_arguments(parser)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", help="of the products")
    options = parser.parse_args(arguments)
    set_environment(options)
    runs = Runs(options)
    adam = tuned(runs, "adamw", ADAMW_RATES, 1.0)
    muon = tuned(runs, "muon", MUON_RATES, SHARES[-1])
    print(f"AdamW tuned on seed {TUNING_SEED}: {_listed(adam)}")
    print(f"ours tuned on seed {TUNING_SEED}, {SHARES[-1]:.0%} of the tokens: {_listed(muon)}")
    adam_rates, muon_rate = sorted(adam, key=adam.__getitem__)[:2], min(muon, key=muon.__getitem__)
    ratios, differences = [], []
    for seed in range(options.seeds):
        tried = {rate: runs.loss("adamw", rate, seed, 1.0) for rate in adam_rates}
        baseline = min(tried.values())
        losses = {share: runs.loss("muon", muon_rate, seed, share) for share in SHARES}
        ratios.append(needed_share(losses, baseline))
        differences.append(losses[SHARES[-1]] - baseline)
        shown = ", ".join(f"{share:.0%}: {loss:.4f}" for share, loss in losses.items())
        print(
            f"seed {seed}: AdamW {_listed(tried)}; ours {shown}; share of tokens needed {ratios[-1]:.3f}"
        )
    shown = {"ratios": ratios, "differences": differences, "seconds": runs.seconds}
    print(json.dumps({"options": vars(options), **shown}))
    needed, gain = mean_interval(ratios), mean_interval(differences)
    print(f"ours - AdamW at {SHARES[-1]:.0%} of the tokens, nats: {gain[0]:+.4f} {gain[1:]}")
    print(f"tokens for AdamW's final loss, ratio: {needed[0]:.4f} {needed[1:]}")
    return Result(
        claim=CLAIM, topic="Training", bar=BAR, figure=needed[0], unit="of AdamW's tokens",
        interval=needed[1:], n=f"{options.seeds} paired seeds", met=needed[0] <= MOST_SHARE,
        figures=[
            Figure(
                claim=f"loss against AdamW's at {SHARES[-1]:.0%} of its tokens", figure=gain[0],
                unit="nats per token", interval=gain[1:],
            )
        ],
        **here("tokens_to_loss", arguments),
    )  # fmt: skip


def tuned(runs: "Runs", method: str, rates: tuple[float, ...], share: float) -> dict[float, float]:
    """Return rate -> loss on the tuning seed, over `rates` and beyond them while the best one is at
    an end.
    """
    losses = {rate: runs.loss(method, rate, TUNING_SEED, share) for rate in rates}
    while True:
        best = min(losses, key=losses.__getitem__)
        further = {max(losses): 2 * best, min(losses): best / 2}.get(best)
        if further is None:
            return dict(sorted(losses.items()))
        losses[further] = runs.loss(method, further, TUNING_SEED, share)


def needed_share(losses: dict[float, float], goal: float) -> float:
    """Return the share of tokens at which our loss meets `goal`, linear in the logarithm between
    measured shares.

    The least measured share where that is enough already, infinity where none is.
    """
    points = sorted(losses.items())
    if points[0][1] <= goal:
        return points[0][0]
    for (low, first), (high, last) in pairwise(points):
        if last <= goal:
            return low * (high / low) ** ((first - goal) / (first - last))
    return math.inf


def _listed(losses: dict[float, float]) -> str:
    return ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in losses.items())


class Runs:
    """Trainings by (method, rate, seed, share of the baseline's steps), each done once and kept in
    a file.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from agent_forge.core import device

        device.set_threads(options.threads)
        self.options, self.seconds = options, 0.0
        self.file = Path(options.cache) / "tokens-to-loss.jsonl"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.known = {line["key"]: line for line in map(json.loads, lines)}

    def loss(self, method: str, rate: float, seed: int, share: float) -> float:
        """Return the held-out loss in nats per token at the end of one training."""
        steps = round(share * self.options.steps)
        key = f"{self.options.shape} {self.options.steps} {method} {rate:g} {seed} {steps} {self.options.dtype}"
        if key not in self.known:
            started = time.process_time()
            line = {"key": key, "loss": self._trained(method, rate, seed, steps)}
            line["seconds"] = time.process_time() - started
            with self.file.open("a") as out:
                out.write(json.dumps(line) + "\n")
            self.known[key] = line
        self.seconds += self.known[key]["seconds"]
        return float(self.known[key]["loss"])

    def _trained(self, method: str, rate: float, seed: int, steps: int) -> float:
        import torch

        from agent_forge import data
        from agent_forge.learn.attention import fast_bfloat16_attention

        options = argparse.Namespace(
            **{**vars(self.options), "steps": steps, "compile": "off", "method": method}
        )
        model, mixture, tokenizer = prepare(options, seed)
        if method == "adamw":
            with fast_bfloat16_attention(options.dtype == "bfloat16"):
                plain(model, mixture, options, lambda: None, seed, lr=rate)
        else:
            ours(
                model,
                mixture,
                options,
                lambda: None,
                seed,
                muon_lr=rate,
                cooldown_share=0.5,
                average_share=0.1,
            )
        text = data.TextSource(text_settings(options), tokenizer, "validation")
        ids = torch.from_numpy(text.windows(SHAPES[options.shape].length, WINDOWS))
        with torch.no_grad():
            loss: Any = model.eval()(input_ids=ids, labels=ids).loss
        return float(loss)
