"""What a ternary linear costs over nn.Linear on the CPU: ratio of the times, best of several runs.

    python -m scripts.bench run ternary [threads]

"infer" keeps the ternary weight between calls and rounds activations; "train" quantises the latents
anew and goes backward.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from agent_forge.models.ternary import TernaryLinear, TernarySettings
from scripts.bench.result import Figure, Result, here

CLAIM = "What a ternary linear costs over nn.Linear on the CPU"
BAR = "none: ratios of times"

SHAPES = ((128, 128), (128, 384), (384, 128), (576, 1536))
TOKENS = (1, 64, 1536)
REPEATS = 30


def best_seconds(call: Callable[[], object]) -> float:
    """Return the shortest of REPEATS runs after two to warm up."""
    times = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[2:])


def run(arguments: Sequence[str] = ()) -> Result:
    """Print one row per shape and token count."""
    parser = argparse.ArgumentParser(prog="ternary", description=__doc__)
    parser.add_argument("threads", nargs="?", type=int, default=1)
    torch.set_num_threads(parser.parse_args(arguments).threads)
    torch.manual_seed(0)
    settings = TernarySettings(group_size=128, activation_bits=8, packing="five_trits", skip=[])
    heads = f"{'tokens':>6} {'in':>5} {'out':>5} {'infer':>7} {'train':>7}"
    print(f"{heads}   (ternary / dense, {torch.get_num_threads()} threads)")
    ratios = []
    for tokens in TOKENS:
        for inputs, outputs in SHAPES:
            infer, train = costs(tokens, inputs, outputs, settings)
            print(f"{tokens:>6} {inputs:>5} {outputs:>5} {infer:>7.2f} {train:>7.2f}")
            for use, ratio in (("inference", infer), ("training", train)):
                claim = f"{use}, {tokens} tokens, {inputs} x {outputs}"
                ratios.append(Figure(claim=claim, figure=ratio, unit="x nn.Linear"))
    return Result(
        claim=CLAIM, topic="Ternary weights", bar=BAR, figure=ratios[-1].figure, unit="x nn.Linear",
        n=f"best of {REPEATS} runs", figures=ratios, **here("ternary", arguments),
    )  # fmt: skip


def costs(tokens: int, inputs: int, outputs: int, settings: TernarySettings) -> tuple[float, float]:
    """Return the ratios of a ternary layer's times to nn.Linear's: forward, and with backward."""
    dense = nn.Linear(inputs, outputs, bias=False)
    ternary = TernaryLinear.from_linear(dense, settings)
    x = torch.randn(tokens, inputs, requires_grad=True)
    with torch.no_grad():
        infer = best_seconds(lambda: ternary(x)) / best_seconds(lambda: dense(x))
    train = best_seconds(lambda: ternary(x).sum().backward())
    return infer, train / best_seconds(lambda: dense(x).sum().backward())
