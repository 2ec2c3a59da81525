"""Choose the arithmetic of a step's products: as set, or what is faster for this model on this
machine.

`auto` starts from float32 and takes bfloat16 (autocast: weights, sums of losses, optimiser stay
float32) on an accelerator that has it, and on a CPU that multiplies it clearly faster. An
accelerator is not measured: products of a small model take there the time of their launch, and say
nothing. CPUs with bfloat16 arithmetic are about twice as fast or not faster at all, so the choice
does not hang on a crowded moment; it is kept with the state, and a resumed stage does not measure
again.
"""

import time
from collections import Counter

import torch
from torch import nn
from torch.nn import functional

from agent_forge.core.device import describe, has_bfloat16
from agent_forge.learn.records import StageChoices

LEAST_GAIN = 1.2  # bfloat16 costs casts around its products
MEASURED_SHAPES = 3  # the kinds of linear layer with the most work
MEASURED_FLOP = 2e9  # a product is measured with the rows of a step, or with as many as this allows
FORMS = (torch.float32, torch.bfloat16)
# The trials of a shape outlast other work that holds a core for a moment.
LEAST_TRIALS, MOST_TRIALS, TRIAL_SECONDS = 5, 40, 0.1


def chosen(
    model: nn.Module, tokens: int, device: torch.device, choices: StageChoices
) -> torch.dtype:
    """Return bfloat16 or float32: what an accelerator has, or what is measured on a CPU.

    One message says which and why. tokens: how many one forward pass of this process has.
    """
    if device.type != "cpu":
        has = bool(choices.decide(float(has_bfloat16(device))))
        chosen_name, why = ("bfloat16", "has it") if has else ("float32", "has no bfloat16")
        choices.message(f"{chosen_name} products ({describe(device)} {why})")
        return torch.bfloat16 if has else torch.float32
    gain = choices.decide(measured_gain(model, tokens, device))
    dtype = torch.bfloat16 if gain >= LEAST_GAIN else torch.float32
    name = str(dtype).removeprefix("torch.")
    choices.message(f"{name} products (bfloat16 measured {gain:.1f} times as fast as float32)")
    return dtype


def warn_of_slow(dtype: torch.dtype, device: torch.device, choices: StageChoices) -> None:
    """Warn where bfloat16 is set and the processor has no instructions for it."""
    if (
        dtype == torch.bfloat16
        and device.type == "cpu"
        and not torch.cpu._is_avx512_bf16_supported()
    ):
        choices.warning(
            "this processor has no bfloat16 arithmetic; float32 is faster here "
            "(runtime.dtype=auto measures)"
        )


def measured_gain(model: nn.Module, tokens: int, device: torch.device) -> float:
    """Return float32 seconds over bfloat16 seconds, casts included, for the products of the model's
    linear layers.

    1.0 for a model without linear layers.
    """
    counts = Counter(
        tuple(module.weight.shape) for module in model.modules() if isinstance(module, nn.Linear)
    )
    most = sorted(
        counts, key=lambda shape: (counts[shape] * shape[0] * shape[1], shape), reverse=True
    )
    wide = narrow = 0.0
    for shape in most[:MEASURED_SHAPES]:
        count = max(min(tokens, int(MEASURED_FLOP / (2 * shape[0] * shape[1]))), 1)
        rows = torch.full((count, shape[1]), 0.5, device=device)
        weight = torch.full(shape, 0.5, device=device)
        seconds = _least_seconds(rows, weight)
        wide += counts[shape] * seconds[torch.float32]
        narrow += counts[shape] * seconds[torch.bfloat16]
    return wide / narrow if narrow else 1.0


def _least_seconds(rows: torch.Tensor, weight: torch.Tensor) -> dict[torch.dtype, float]:
    """Return the least seconds of a product in each form, tried in turn so that both meet the same
    moments.

    The weight is cast once, as autocast does in a step.
    """
    casts = {dtype: weight.to(dtype) for dtype in FORMS}
    best = dict.fromkeys(FORMS, float("inf"))
    end, trial = time.perf_counter() + TRIAL_SECONDS, 0
    with torch.no_grad():
        while trial < LEAST_TRIALS or (trial < MOST_TRIALS and time.perf_counter() < end):
            for dtype, cast in casts.items():
                _wait(rows.device)
                started = time.perf_counter()
                functional.linear(rows.to(dtype), cast)
                _wait(rows.device)
                best[dtype] = min(best[dtype], time.perf_counter() - started)
            trial += 1
    return best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
