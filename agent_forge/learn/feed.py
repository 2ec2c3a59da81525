"""Prepare batches in line or in worker processes, move them to the device, and cut them into parts.

Workers change nothing but time, because a batch is a function of its step and steps keep their
order. They ignore SIGTERM and Ctrl-C, which reach a whole process group: the trainer decides,
saves, and then ends them.
"""

import signal
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from agent_forge.core.device import sent
from agent_forge.core.errors import ConfigError
from agent_forge.core.events import EventLog
from agent_forge.learn.records import Batches

IGNORE = -100


class Batch(dict[str, Tensor]):
    """The tensors of a step on an accelerator, and the same tensors on the host.

    Those on the host can be counted without waiting for the accelerator.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], host: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(tensors)
        # FSDP builds a new dict from the items alone. Without the tensors on the host, counting
        # only takes longer.
        self.host: Mapping[str, Tensor] = dict(self if host is None else host)


class Feed:
    """Give the batches of steps in order, each on `device`."""

    def __init__(
        self, batches: Batches, first: int, steps: int, workers: int, device: torch.device
    ) -> None:
        self.batches, self.device = batches, device
        self._ahead: tuple[int, dict[str, Tensor]] | None = None
        self._loader: Iterator[dict[str, Tensor]] | None = None
        if workers and first < steps:
            self._loader = iter(
                DataLoader(
                    _Steps(batches), batch_size=None, sampler=range(first, steps), num_workers=workers,
                    worker_init_fn=_ignore_signals, multiprocessing_context="fork", prefetch_factor=2,
                )
            )  # fmt: skip

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the batch of `step`; with workers, calls must follow the order of steps."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == step:
            return ahead[1]
        return self._moved(self.batches.batch(step) if self._loader is None else next(self._loader))

    def prepare(self, step: int) -> None:
        """Prepare the batch of `step`, the next one, while an accelerator is busy with this one.

        Does nothing where batches depend on more than the step.
        """
        if self.device.type != "cpu" and getattr(self.batches, "pure", False):
            self._ahead = (step, self.batch(step))

    def close(self) -> None:
        """End the workers."""
        self._loader = None

    def _moved(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.device.type == "cpu":
            return {key: value.to(self.device) for key, value in batch.items()}
        return Batch({key: sent(value, self.device) for key, value in batch.items()}, batch)


def on_host(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors of a batch where they were made."""
    return batch.host if isinstance(batch, Batch) else batch


def usable_workers(batches: Batches, workers: int, stage: str, events: EventLog) -> int:
    """Return the number of workers; 0, with a warning, where batches depend on more than steps."""
    if workers and not getattr(batches, "pure", False):
        events.warning(
            f"{stage}: runtime.workers={workers} is not used: these batches depend on the training itself"
        )
        return 0
    return workers


def parts_of(batch: Mapping[str, Tensor], parts: int, name: str) -> list[dict[str, Tensor]]:
    """Return the batch cut along its rows into `parts`.

    Raises ConfigError where a tensor has too few rows.
    """
    if parts == 1:
        return [dict(batch) if not isinstance(batch, Batch) else batch]
    for key, value in batch.items():
        if value.shape[0] < parts:
            raise ConfigError(
                f"{name}={parts} cuts a batch along its rows, but '{key}' has only {value.shape[0]}"
            )
    cut = {key: value.tensor_split(parts) for key, value in batch.items()}
    pieces_of = [{key: pieces[i] for key, pieces in cut.items()} for i in range(parts)]
    if not isinstance(batch, Batch):
        return pieces_of
    return [Batch(*both) for both in zip(pieces_of, parts_of(batch.host, parts, name), strict=True)]


def trained_tokens(batch: Mapping[str, Tensor]) -> int:
    """Return how many tokens the loss is a mean over; for a batch without labels, its rows.

    A token counts when its label is not ignored and a position before it predicts it. Counting
    happens on the host, because an accelerator would have to finish all its work first.
    """
    batch = on_host(batch)
    if "labels" not in batch:
        return int(batch["input_ids"].shape[0])
    return int((batch["labels"][:, 1:] != IGNORE).sum())


class _Steps(Dataset[dict[str, Tensor]]):
    """The batches as a map from step to batch, for a DataLoader."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        return self.batches.batch(step)


def _ignore_signals(worker: int) -> None:
    del worker  # DataLoader's signature
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def describe(batch: Mapping[str, Any]) -> str:
    """Return a short hash of a batch's ids, which identifies it in messages."""
    import hashlib

    content = batch["input_ids"].detach().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:12]
