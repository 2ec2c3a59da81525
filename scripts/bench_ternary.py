"""Print what a ternary linear costs over nn.Linear on the CPU: ratio of the times, best of several runs.

    python scripts/bench_ternary.py [threads]

"infer" keeps the ternary weight between calls and rounds activations; "train" quantises the latents anew and goes backward.
"""

import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from agent_forge.models.ternary import TernaryLinear, TernarySettings

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


def main() -> None:
    """Print one row a shape and token count."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    torch.manual_seed(0)
    settings = TernarySettings(group_size=128, activation_bits=8, packing="five_trits", skip=[])
    print(
        f"{'tokens':>6} {'in':>5} {'out':>5} {'infer':>7} {'train':>7}   "
        f"(ternary / dense, {torch.get_num_threads()} threads)"
    )
    for tokens in TOKENS:
        for inputs, outputs in SHAPES:
            dense = nn.Linear(inputs, outputs, bias=False)
            ternary = TernaryLinear.from_linear(dense, settings)
            x = torch.randn(tokens, inputs, requires_grad=True)
            with torch.no_grad():
                infer = best_seconds(lambda t=ternary, x=x: t(x)) / best_seconds(lambda d=dense, x=x: d(x))
            train = best_seconds(lambda t=ternary, x=x: t(x).sum().backward())
            train /= best_seconds(lambda d=dense, x=x: d(x).sum().backward())
            print(f"{tokens:>6} {inputs:>5} {outputs:>5} {infer:>7.2f} {train:>7.2f}")


if __name__ == "__main__":
    main()
