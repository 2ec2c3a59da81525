"""How many rows of logits are held at once, and one fused kernel for the work on each logit.

On the CPU a chunk is small enough to stay near the cache. On an accelerator small chunks would cost
more to launch than to compute, so the chunk grows with free memory, and softmax, losses and their
gradients are fused: a logit is read and written a few times instead of a dozen. Reads and writes no
file.
"""

import importlib.util
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from agent_forge.core.device import free_bytes

CPU_ENTRIES = 1 << 23  # logits held at once: 32 MiB in float32
MOST_ENTRIES = 1 << 28  # larger products are not faster: 5,461 rows of 49,152 logits
# Unfused work on a chunk holds logits, probabilities and gradients of two models per entry.
BYTES_PER_ENTRY = 24
SHARE_OF_FREE = 0.25
# Below this many logits in all, compiling the fused kernel takes longer than it saves in a stage.
FUSED_ENTRIES = 1 << 26
_log = logging.getLogger("agent_forge")
_logged_chunks: set[tuple[str, int]] = set()  # (device, vocabulary) whose chunks have been logged


@lru_cache(maxsize=256)
def rows_at_once(count: int, vocabulary: int, device: torch.device, most_rows: int = 0) -> int:
    """Return how many of `count` rows of logits to hold at once on an accelerator.

    Chunks are as even as possible, and chosen once per count, vocabulary and device.

    most_rows: an upper limit; 0 means none.
    """
    free = free_bytes(device)
    entries = int(SHARE_OF_FREE * free / BYTES_PER_ENTRY)
    entries = max(min(entries, MOST_ENTRIES), CPU_ENTRIES)
    rows = max(entries // vocabulary, 1)
    rows = min(rows, most_rows) if most_rows else rows
    _log_chunk(device, vocabulary, rows, free)
    chunks = -(-count // rows)
    return max(-(-count // max(chunks, 1)), 1)


def _log_chunk(device: torch.device, vocabulary: int, rows: int, free: int) -> None:
    """Log, once per device and vocabulary, how many rows of logits are held at once."""
    place = (str(device), vocabulary)
    if place in _logged_chunks:
        return
    _logged_chunks.add(place)
    why = f"{free / 1e9:.1f} GB are free" if free else "its free memory cannot be asked"
    _log.info(
        "logits on %s: at most %s rows of %s at once (%s)",
        device,
        f"{rows:,}",
        f"{vocabulary:,}",
        why,
    )


class Fused:
    """A function of tensors that is compiled into one or two kernels where that is faster."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.compiled: Callable[..., Any] | None = None

    def suits(self, device: torch.device, entries: int) -> bool:
        """Return whether work on `entries` logits is worth compiling on this device."""
        return (
            device.type == "cuda"
            and entries >= FUSED_ENTRIES
            and importlib.util.find_spec("triton") is not None
        )

    def __call__(self, *args: Any) -> Any:
        """Return function(*args).

        Where it does not compile, one warning says so and it runs plainly.
        """
        if self.compiled is None:
            self.compiled = torch.compile(self.function)
        try:
            return self.compiled(*args)
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException

            if not isinstance(error, TorchDynamoException):
                raise
            _log.warning(
                "the losses' kernel does not compile here (%s); they run unfused",
                str(error).split("\n")[0],
            )
            self.compiled = self.function
            return self.function(*args)


def hits(targets: Tensor, vocabulary: int) -> Tensor:
    """Return one-hot rows (n, vocabulary) float32 of targets (n, 1)."""
    return (torch.arange(vocabulary, device=targets.device)[None] == targets).float()
