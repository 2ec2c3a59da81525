"""Measure candidates on shared items, and race them: all start on few items, the better half goes on.

Every candidate meets the same items in the same order, so comparisons are paired: what is hard about an item cancels.
Source: successive halving, arXiv:1502.07943.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Generic

from agent_forge.core.errors import ConfigError
from agent_forge.search.journal import Journal
from agent_forge.search.population import G, Space


class Evaluator(Generic[G]):
    """Measures genomes slice by slice and remembers the results.

    measure(genome, start, stop): one number for each item in [start, stop).
    fitness(values): the fitness (higher is better) on the first len(values) items.
    borders: rising item counts; a candidate is always measured from border to border, so that a number does not
    depend on what else was asked for. The last border is all items.
    """

    def __init__(
        self,
        space: Space[G],
        measure: Callable[[G, int, int], Sequence[float]],
        fitness: Callable[[Sequence[float]], float],
        borders: Sequence[int],
        journal: Journal,
    ) -> None:
        self.space, self.measure, self.fitness, self.journal = space, measure, fitness, journal
        self.borders = list(borders)
        self._touched: set[tuple[str, int, int]] = set()

    @property
    def measured_items(self) -> int:
        """Return how many items were needed so far, journalled ones included."""
        return sum(stop - start for _, start, stop in self._touched)

    def values(self, genome: G, rung: int | None = None) -> list[float]:
        """Return a candidate's numbers on all items up to the border of `rung` (default: all items)."""
        key = self.space.key(genome)
        rung = len(self.borders) - 1 if rung is None else rung
        found: list[float] = []
        for start, stop in zip([0, *self.borders[:rung]], self.borders[: rung + 1], strict=True):
            self._touched.add((key, start, stop))
            part = self.journal.get(key, start, stop)
            if part is None:
                part = [float(value) for value in self.measure(genome, start, stop)]
                self.journal.put(key, start, stop, part)
            found += part
        return found

    def score(self, genome: G, rung: int | None = None) -> float:
        """Return a candidate's fitness up to the border of `rung` (default: on all items)."""
        return self.fitness(self.values(genome, rung))


def rung_borders(shares: Sequence[float], items: int) -> list[int]:
    """Return the item counts of a race's rungs. Raises ConfigError unless the shares rise to 1."""
    if not shares or shares[-1] != 1.0 or any(not 0 < a < b for a, b in pairwise(shares)):
        raise ConfigError(
            f"racing shares must rise to 1.0, got {list(shares)}; try [0.25, 0.5, 1.0], or [1.0] for no race"
        )
    return sorted({max(1, round(share * items)) for share in shares})


def race(candidates: Sequence[G], evaluator: Evaluator[G]) -> list[tuple[G, float]]:
    """Return the candidates that reached the end, with their fitness on all items; the better half passes each rung."""
    running = list(candidates)
    for rung in range(len(evaluator.borders) - 1):
        scored = [(-evaluator.score(genome, rung), evaluator.space.key(genome), i) for i, genome in enumerate(running)]
        passed = sorted(scored)[: max(1, -(-len(scored) // 2))]
        running = [running[i] for i in sorted(i for _, _, i in passed)]
    return [(genome, evaluator.score(genome)) for genome in running]
