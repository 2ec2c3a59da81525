"""Carry out a plan on tensors in memory: each is merged, and cast once into the caller's tensor.

Torch tensors cross into NumPy without a copy (16-bit floats as their bits); the arithmetic is the
one of `pieces`, so a merge in memory gives the numbers that a merge from files gives.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent_forge.core.errors import CheckpointError
from agent_forge.merge.arrays import BY_NAME, Array
from agent_forge.merge.pieces import PIECE_ENTRIES, Stored, Whole
from agent_forge.merge.plan import MergePlan, TensorPlan, is_wide
from agent_forge.merge.weights import Weights


def merge_tensor(
    plan: MergePlan,
    tensor: TensorPlan,
    models: Mapping[str, Weights],
    seed: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return one merged tensor: float32, or the source itself where it does not hold floats."""
    label, name = tensor.base or tensor.sources[0]
    original = models[label].get(name)
    if tensor.copy:
        for other, other_name in tensor.sources:
            if not torch.equal(original, models[other].get(other_name)):
                raise CheckpointError(
                    f"{name} holds whole numbers that differ between {label} and {other}: no merge "
                    "of them exists"
                )
        return original
    out = np.empty(original.numel(), np.float32)
    _whole(plan, tensor, models, seed).merge_into(out)
    return torch.from_numpy(out).view(original.shape).to(device)


def merge_into(
    plan: MergePlan,
    models: Mapping[str, Weights],
    target: Mapping[str, Tensor],
    seed: int,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Copy every merged tensor into `target` (a model's state), cast to the dtype that it has
    there.

    `between` runs before each tensor. Raises CheckpointError when the plan and the target do not
    name the same tensors.
    """
    missing = sorted({tensor.target for tensor in plan.tensors} - set(target))
    if missing:
        raise CheckpointError(
            f"the model has no tensor {missing[0]}, which the merge makes ({len(missing)} in all)"
        )
    with torch.no_grad():
        for tensor in plan.tensors:
            between()
            place = target[tensor.target]
            straight = (
                place.device.type == "cpu"
                and place.dtype == torch.float32
                and place.is_contiguous()
            )
            if straight and not tensor.copy:
                _whole(plan, tensor, models, seed).merge_into(place.detach().view(-1).numpy())
            else:
                place.copy_(merge_tensor(plan, tensor, models, seed, place.device))


def merge_tensors(
    method: ModuleType,
    tensors: Sequence[Tensor],
    base: Tensor | None = None,
    *,
    each: Sequence[Mapping[str, Any]],
    shared: Mapping[str, Any],
    keys: Sequence[str] = (),
    name: str = "",
    seed: int = 0,
) -> Tensor:
    """Return the merge of one tensor of every model: float32, on the first one's device."""
    whole = Whole(
        method=method, tensors=[_stored(tensor) for tensor in tensors],
        base=None if base is None else _stored(base), each=[dict(entry) for entry in each],
        shared=dict(shared), keys=list(keys), name=name, seed=seed, pool=_pool(tensors[0].numel()),
    )  # fmt: skip
    out = np.empty(tensors[0].numel(), np.float32)
    whole.merge_into(out)
    return torch.from_numpy(out).view(tensors[0].shape).to(tensors[0].device)


def _whole(plan: MergePlan, tensor: TensorPlan, models: Mapping[str, Weights], seed: int) -> Whole:
    sources = [_stored(models[label].get(name)) for label, name in tensor.sources]
    base = _stored(models[tensor.base[0]].get(tensor.base[1])) if tensor.base else None
    return Whole(
        method=plan.method, tensors=sources, base=base, each=tensor.each, shared=tensor.shared,
        keys=tensor.keys, name=tensor.target, seed=seed,
        wide=is_wide(tensor, models), pool=_pool(math.prod(sources[0].shape)),
    )  # fmt: skip


def _stored(tensor: Tensor) -> Stored:
    """Return a view of a tensor; a copy where it is not contiguous or not in the CPU's memory."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    dtype = BY_NAME[str(flat.dtype).removeprefix("torch.")]
    values: Array = (
        flat.view(torch.int16).numpy().view(np.uint16)
        if flat.dtype == torch.bfloat16
        else flat.numpy()
    )
    return Stored.of(values, tuple(tensor.shape), dtype)


def _pool(entries: int) -> Executor | None:
    """Return a pool of as many threads as torch has; None for a tensor of few pieces."""
    threads = torch.get_num_threads()
    return _executor(threads) if threads > 1 and entries > 2 * PIECE_ENTRIES else None


@functools.cache
def _executor(threads: int) -> Executor:
    return ThreadPoolExecutor(threads, thread_name_prefix="merge")
