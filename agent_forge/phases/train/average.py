"""Keep the average of the last steps only where held-out text says so.

The averaged weights and those of the last step are scored on the same pieces of the search split.
The average stays where the lower bound of its paired gain is above zero; otherwise the weights of
the last step go on, and the report says which it was.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agent_forge import evaluate
from agent_forge.phases import PhaseRun
from agent_forge.phases.train import Config
from agent_forge.phases.train.measure import TrainBench, scores_of

SAMPLES = 1000  # bootstrap resamples of the gain
AVERAGE, LAST_STEP = "the average", "the last step"


def put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Overwrite the named weights of a model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])


def choose(
    phase: PhaseRun[Config], bench: TrainBench, model: nn.Module, last: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Leave the better of two weights in the model: its own, which are averaged, or `last`.

    Return a row for the report: both scores, the gain of the average, its bounds and the choice.
    """
    out, seed = phase.out, phase.config.seed
    averaged = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    ours = out.remember("searched-average", lambda: bench.searched(model))
    put(model, last)
    theirs = out.remember("searched-last", lambda: bench.searched(model))
    one, other = scores_of(ours, "text"), scores_of(theirs, "text")
    gain, low = evaluate.paired_gain(other, one, samples=SAMPLES, seed=seed)
    keeps = low > 0 or not phase.config.average_if_better
    if keeps:
        put(model, averaged)
    return {
        "averaged": one.mean, "last step": other.mean, "metric": one.metric, "gain": gain,
        "low": low, "n": one.n, "kept": AVERAGE if keeps else LAST_STEP,
    }  # fmt: skip
