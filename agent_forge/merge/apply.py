"""Carry out a plan: read each tensor's sources, merge, cast once into the place that the caller gives.

Arithmetic is float32; float64 when every source is stored in 16 bits, so that the result is
the truth, correctly rounded.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from agent_forge.core.errors import CheckpointError
from agent_forge.merge.method import Inputs
from agent_forge.merge.plan import Plan, TensorPlan
from agent_forge.merge.weights import Weights


def merge_tensor(
    plan: Plan, tensor: TensorPlan, models: Mapping[str, Weights], seed: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Return one merged tensor: float32, or the source itself where it holds no floating point numbers."""
    label, name = tensor.base or tensor.sources[0]
    if tensor.copy:
        original = models[label].get(name)
        for other, other_name in tensor.sources:
            if not torch.equal(original, models[other].get(other_name)):
                raise CheckpointError(
                    f"{name} holds whole numbers that differ between {label} and {other}: no merge of them exists"
                )
        return original

    # Sums of 16-bit weights are often exact ties between two 16-bit numbers: float32 weights would break them wrongly.
    halves = all(models[key].forms[at][1].itemsize < 4 for key, at in [*tensor.sources, (label, name)])
    dtype = torch.float64 if halves else torch.float32

    def read(label: str, name: str) -> Tensor:
        return models[label].get(name).to(device=device, dtype=dtype)

    inputs = Inputs(
        tensors=[read(*source) for source in tensor.sources],
        base=read(*tensor.base) if tensor.base else None,
        each=tensor.each,
        shared=tensor.shared,
        keys=[label for label, _ in tensor.sources],
        name=tensor.target,
        seed=seed,
    )
    result: Tensor = plan.method.merge(inputs)
    return result.float()


def merge_into(
    plan: Plan,
    models: Mapping[str, Weights],
    target: Mapping[str, Tensor],
    seed: int,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Copy every merged tensor into `target` (a model's state), cast to the dtype that it has there.

    `between` runs before each tensor. Raises CheckpointError when the plan and the target do not name the same tensors.
    """
    missing = sorted({tensor.target for tensor in plan.tensors} - set(target))
    if missing:
        raise CheckpointError(f"the model has no tensor {missing[0]}, which the merge makes ({len(missing)} in all)")
    with torch.no_grad():
        for tensor in plan.tensors:
            between()
            place = target[tensor.target]
            place.copy_(merge_tensor(plan, tensor, models, seed, place.device))
