"""Several processes train one model: who they are, what they agree on, and how the model is spread
over them.

Under torchrun every process gets its share of each batch's rows, and a loss is weighted by its
share of the trained tokens, so the gradient equals what one process gets from the whole batch. DDP
keeps a copy in each; FSDP2 (fully_shard) shards a working copy and hands the result back. Only rank
0 writes. Sources: PyTorch DDP, arXiv:2006.15704; FSDP, arXiv:2304.11277.
"""

import copy
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from agent_forge.anatomy.stack import blocks
from agent_forge.core import ranks
from agent_forge.core.errors import PhaseError
from agent_forge.learn.records import LossFn

TIMEOUT_SECONDS = 60  # after which a process that waits for a lost one gives up


class World:
    """The processes of a run. Without torchrun: one, and nothing is communicated."""

    def __init__(self, device: torch.device) -> None:
        self.size, self.rank = ranks.size(), ranks.rank()
        self.device = device
        if self.size > 1 and not dist.is_initialized():
            seconds = float(os.environ.get("FORGE_RANK_TIMEOUT_SECONDS", TIMEOUT_SECONDS))
            on_cuda = device.type == "cuda"
            if on_cuda and device.index is not None:
                torch.accelerator.set_device_index(
                    device.index
                )  # NCCL's own buffers lie on the current device
            dist.init_process_group(
                "nccl" if on_cuda else "gloo", timeout=timedelta(seconds=seconds)
            )

    def sums(self, values: list[float]) -> list[float]:
        """Return the sums over all processes."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def largest(self, values: list[float]) -> list[float]:
        """Return the largest values of all processes."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def same(self, value: float) -> float:
        """Return rank 0's value everywhere."""
        return self.sums([value if self.rank == 0 else 0.0])[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        self.sums([0.0])

    def _reduced(self, values: list[float], how: Any) -> list[float]:
        if self.size == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        try:
            dist.all_reduce(shared, op=how)
        except RuntimeError as error:
            raise lost(self.rank, error) from error
        return [float(value) for value in shared.tolist()]


def barrier_for_long_work(world: World) -> Callable[[], None]:
    """Return a barrier at which others may wait for hours while one works; a process that dies
    still ends the wait.
    """
    if world.size == 1:
        return lambda: None
    group = dist.new_group(backend="gloo", timeout=timedelta(days=7))

    def meet() -> None:
        try:
            dist.barrier(group=group)
        except RuntimeError as error:
            raise lost(world.rank, error) from error

    return meet


def leave() -> None:
    """Take leave of the other processes, where there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def lost(rank: int, error: Exception) -> PhaseError:
    """Return the error of a process that can no longer reach another one."""
    reason = str(error).splitlines()[0][:200]
    return PhaseError(
        f"rank {rank}: another process of this run is gone ({reason}); run the same command to resume"
    )


class StageObjective(nn.Module):
    """The loss as a module, so that DDP and FSDP see one forward pass whatever the loss function
    calls.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, extra: list[nn.Parameter]) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn
        self.extra = nn.ParameterList(extra)

    def forward(self, batch: dict[str, Tensor], step: int) -> Any:
        """Return (loss, metrics)."""
        return self.loss_fn(self.model, batch, step)


def spread(objective: StageObjective, world: World, shard: bool) -> nn.Module:
    """Return the module to call: the objective itself, wrapped by DDP, or sharded in place."""
    if world.size == 1:
        return objective
    if not shard:
        # Parameters may stay out of a step's graph (the halting head in one-pass steps).
        return DistributedDataParallel(
            objective, find_unused_parameters=True, broadcast_buffers=False
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in blocks(objective.model):
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    return objective


def working_copy(model: nn.Module, world: World, shard: bool) -> nn.Module:
    """Return the model that is trained: the given one, or a copy that will be sharded."""
    return copy.deepcopy(model) if shard and world.size > 1 else model


def unsynchronised(called: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which gradients stay local: for all parts of a step but the last."""
    return called.no_sync() if isinstance(called, DistributedDataParallel) else nullcontext()


def whole(value: Tensor) -> Tensor:
    """Return a tensor gathered from all shards; a plain one as it is. All processes must call
    it.
    """
    gather: Any = getattr(value, "full_tensor", None)
    return value if gather is None else gather()


def laid_out_like(value: Tensor, target: Tensor) -> Tensor:
    """Return a whole tensor spread over the processes as `target` is."""
    if not hasattr(target, "full_tensor") or value.ndim == 0:
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = target
    return distribute_tensor(
        value.to(target.device), sharded.device_mesh, sharded.placements, src_data_rank=None
    )
