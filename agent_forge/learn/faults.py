"""What goes wrong in training, in one line each, with what to do about it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from agent_forge.core.errors import PhaseError
from agent_forge.learn import feed
from agent_forge.learn.distribution import World, lost
from agent_forge.learn.records import Batches, StepRecord

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
LOST = ("Connection closed", "Connection reset", "Timed out", "timeout", "NCCL", "peer")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` is a lack of memory, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(sign in str(error) for sign in OUT_OF_MEMORY)


@contextmanager
def named(place: str, batches: Batches, step: int, parts: int, world: World) -> Iterator[None]:
    """Turn torch's errors about memory and lost processes into a PhaseError with the remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise _out_of_memory(place, batches, step, parts) from error
        if world.size > 1 and any(sign in str(error) for sign in LOST):
            raise lost(world.rank, error) from error
        raise


def _out_of_memory(place: str, batches: Batches, step: int, parts: int) -> PhaseError:
    rows, length = batches.batch(step)["input_ids"].shape[:2]
    cut = (
        f"runtime.accumulate={2 * parts} (the same gradient from half the rows at a time), "
        if rows > 1
        else ""
    )
    return PhaseError(
        f"{place}: out of memory with {rows} rows of {length} tokens in {parts} part(s); try {cut}"
        f"runtime.checkpoint_activations=true, or fewer rows (batch size {max(rows // 2, 1)})"
    )


def non_finite(place: str, record: StepRecord, batch: Mapping[str, Tensor]) -> str:
    """Return the message for a loss or gradient norm that is not finite.

    It names the place, the value and the batch.
    """
    finite = torch.isfinite(torch.tensor(record.loss))
    what, value = ("gradient norm", record.grad_norm) if finite else ("loss", record.loss)
    return f"{place}: the {what} is {value} (batch {record.step}, ids {feed.describe(batch)})"


def diverged(what: str, rolled_back: int, lr: float) -> PhaseError:
    """Return the error that ends a stage whose loss is not a number."""
    again = f" after {rolled_back} rollback(s)" if rolled_back else ""
    return PhaseError(
        f"{what}{again}; try a lower learning rate (now {lr:.3g}), more warm-up, clip_norm=1.0, dtype=float32, or "
        "runtime.rollbacks=3"
    )


def refuse_non_finite(place: str, tensors: Mapping[str, Any]) -> None:
    """Raise PhaseError when a weight of a state is NaN or infinite."""
    for key, value in tensors.items():
        if key.startswith("weight/") and not bool(torch.isfinite(value).all()):
            raise PhaseError(
                f"{place}: {key.removeprefix('weight/')} holds NaN or infinite weights, so no state was saved; the last "
                "one is whole: lower the learning rate"
            )
