"""Merge a tensor piece by piece, after a survey of the whole tensor where the method needs one.

Pieces always have the same borders, sums over them run in the same order, and random draws are
addressed by the entry's place, so the result does not depend on the number of threads. A piece is
small enough to stay in the processor's cache; only a few exist at a time, whatever the size of the
tensor.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from agent_forge.merge.arrays import Array, DType, decode
from agent_forge.merge.method import Inputs

PIECE_ENTRIES = 1 << 17
# Waking a thread costs as much as merging a piece, so a thread gets several at once: all of a small
# tensor.
TASK_ENTRIES = 1 << 20
TASK_PIECES = 4
WAITING_TASKS = 8
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor where it lies.

    read(start, stop) returns that run of its flattened entries, as they are stored.
    """

    shape: tuple[int, ...]
    dtype: DType
    read: Callable[[int, int], Array]

    @classmethod
    def of(cls, flat: Array, shape: Sequence[int], dtype: DType) -> "Stored":
        """Return a tensor that lies in memory."""
        return cls(tuple(shape), dtype, lambda start, stop: flat[start:stop])


@dataclass(slots=True, kw_only=True)
class Whole:
    """One tensor of every model, read in pieces. Inputs explains the other fields.

    wide: compute in float64 (unless the method is narrow).
    pool: where pieces are worked on side by side; None: here, one after another.
    cache: pieces by (start, stop, dtype), for a tensor so small that pieces read by the survey stay
    in memory for the merge; None caches nothing.
    """

    method: ModuleType
    tensors: list[Stored]
    base: Stored | None = None
    importance: list[Stored] = field(default_factory=list)
    each: list[dict[str, Any]] = field(default_factory=list)
    shared: dict[str, Any] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    name: str = ""
    seed: int = 0
    wide: bool = False
    pool: Executor | None = None
    cache: dict[tuple[int, int, Any], Inputs] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the tensor."""
        return self.tensors[0].shape

    @property
    def entries(self) -> int:
        """Return how many numbers the tensor holds."""
        return math.prod(self.shape)

    def borders(self) -> list[tuple[int, int]]:
        """Return [start, stop) of each piece in the flattened tensor."""
        step = PIECE_ENTRIES
        if self.method.METHOD.rows:
            row = math.prod(self.shape[1:])
            step = (
                max(1, PIECE_ENTRIES // max(row, 1)) * row if len(self.shape) > 1 else self.entries
            )
        return [
            (start, min(start + step, self.entries))
            for start in range(0, self.entries, max(step, 1))
        ]

    def piece(self, start: int, stop: int, *, single: bool = False, facts: Any = None) -> Inputs:
        """Return the inputs of one piece; `single` makes them float32."""
        target = (
            np.float64 if self.wide and not single and not self.method.METHOD.narrow else np.float32
        )
        if self.cache is not None:
            if (start, stop, target) not in self.cache:
                self.cache[start, stop, target] = self._read(start, stop, target)
            return replace(self.cache[start, stop, target], facts=facts)
        return replace(self._read(start, stop, target), facts=facts)

    def _read(self, start: int, stop: int, target: Any) -> Inputs:
        shape = (-1, *self.shape[1:]) if self.method.METHOD.rows and len(self.shape) > 1 else (-1,)

        def load(stored: Stored) -> Array:
            return decode(stored.read(start, stop), stored.dtype, target).reshape(shape)

        return Inputs(
            tensors=[load(stored) for stored in self.tensors],
            base=load(self.base) if self.base else None,
            importance=[load(stored) for stored in self.importance],
            each=self.each, shared=self.shared, keys=self.keys, name=self.name, seed=self.seed,
            start=start,
        )  # fmt: skip

    def map(self, function: Callable[[Inputs], T], *, single: bool = False) -> Iterator[T]:
        """Yield `function` of every piece, in order; `single` as in `piece`."""
        return self._spread(lambda border: function(self.piece(*border, single=single)))

    def total(self, function: Callable[[Inputs], Array], *, single: bool = False) -> Array:
        """Return the sum of `function` over the pieces, added in their order."""
        parts = self.map(function, single=single)
        total = np.array(next(parts))
        for part in parts:
            total += part
        return total

    def _spread(self, work: Callable[[tuple[int, int]], T]) -> Iterator[T]:
        """Yield `work` of every piece, in order; the pool holds only a few pieces at any time."""
        if self.pool is None:
            yield from map(work, self.borders())
            return
        waiting: deque[Future[list[T]]] = deque()

        def work_all(task: Sequence[tuple[int, int]]) -> list[T]:
            return [work(border) for border in task]

        for task in self.tasks():
            waiting.append(self.pool.submit(work_all, task))
            if len(waiting) >= WAITING_TASKS:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()

    def tasks(self) -> list[list[tuple[int, int]]]:
        """Return the borders in runs, each the work of one thread at a time."""
        borders = self.borders()
        return [
            borders[start : start + TASK_PIECES] for start in range(0, len(borders), TASK_PIECES)
        ]

    def survey(self) -> Any:
        """Return what the method must know of the whole tensor, None for most methods."""
        survey = getattr(self.method, "survey", None)
        return survey(self) if survey else None

    def merged(self, start: int, stop: int, facts: Any) -> Array:
        """Return one merged piece, flat, in the dtype of the arithmetic."""
        result: Array = self.method.merge(self.piece(start, stop, facts=facts))
        return result.reshape(-1)

    def merge_into(self, out: Array) -> None:
        """Write the merged tensor into a flat array, cast to its dtype."""
        facts = self.survey()

        def place(border: tuple[int, int]) -> None:
            out[border[0] : border[1]] = self.merged(*border, facts)

        for _ in self._spread(place):
            pass
