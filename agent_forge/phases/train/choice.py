"""Choose between two weights of a model by held-out text.

Both are scored on the same pieces of the search split. The weights that cost a mechanism, those of
the average or of the steered stages, go on where the lower bound of their paired gain is above zero;
otherwise the plain ones do, and the report says which it was.
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
STEERED, PLAIN = "the mechanisms", "plain training"
# What was kept -> how a summary says so.
VERDICTS = {
    AVERAGE: "the average was kept",
    LAST_STEP: "the last step was kept, because the average was not better",
    STEERED: "the mechanisms were kept",
    PLAIN: "plain training was kept, because the mechanisms that are on were not better on text "
    "(only_if_better=false keeps them)",
}


def put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Overwrite the named weights of a model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])


def better_of(
    phase: PhaseRun[Config],
    bench: TrainBench,
    model: nn.Module,
    other: Mapping[str, Tensor],
    names: tuple[str, str] = (AVERAGE, LAST_STEP),
) -> dict[str, Any]:
    """Leave the better of two weights in the model: its own, or `other`, which are plainer.

    names: of both. Return a row for the report: both scores, the gain of the model's own, its lower
    bound, and what was kept.
    """
    out, seed = phase.out, phase.config.seed
    remembered = [f"searched-{name.replace(' ', '-')}" for name in names]
    own = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    ours = out.remember(remembered[0], lambda: bench.searched(model))
    put(model, other)
    theirs = out.remember(remembered[1], lambda: bench.searched(model))
    one, two = scores_of(ours, "text"), scores_of(theirs, "text")
    gain, low = evaluate.paired_gain(two, one, samples=SAMPLES, seed=seed)
    keeps = low > 0 or not phase.config.only_if_better
    if keeps:
        put(model, own)
    return {
        names[0].removeprefix("the "): one.mean, names[1].removeprefix("the "): two.mean,
        "metric": one.metric, "gain": gain, "low": low, "n": one.n,
        "kept": names[0] if keeps else names[1],
    }  # fmt: skip
