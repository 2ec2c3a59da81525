"""Individuals, tournaments, and survival of the fittest that keeps a population diverse."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

G = TypeVar("G")


class Space(Protocol[G]):
    """What a search needs to know of its genomes.

    All randomness comes from the generator that is passed.
    """

    def random(self, generator: np.random.Generator) -> G:
        """Return a genome drawn from the whole space."""
        ...

    def mutate(self, genome: G, generator: np.random.Generator, strength: float) -> G:
        """Return a changed copy; `strength` in (0, 1] scales the step."""
        ...

    def cross(self, a: G, b: G, generator: np.random.Generator) -> G:
        """Return a child of two parents."""
        ...

    def key(self, genome: G) -> str:
        """Return a name that equal candidates share."""
        ...

    def distance(self, a: G, b: G) -> float:
        """Return how different two genomes are, in [0, 1]."""
        ...

    def kind(self, genome: G) -> str:
        """Return what of a genome is not a number: genomes of one kind have the same numbers."""
        ...

    def vector(self, genome: G) -> NDArray[np.float64]:
        """Return the numbers of a genome, each scaled to [0, 1] by its range; empty when it has
        none.
        """
        ...

    def with_vector(self, genome: G, vector: NDArray[np.float64]) -> G:
        """Return the genome of the same kind with other numbers."""
        ...


@dataclass(frozen=True, slots=True)
class Individual(Generic[G]):
    """A measured genome and where it came from.

    fitness and objectives, of which higher is always better, are of its first `items` items.
    finished: whether these are all items.
    """

    genome: G
    key: str
    fitness: float
    origin: str
    objectives: tuple[float, ...] = ()
    items: int = 0
    finished: bool = True


def tournament(
    members: Sequence[Individual[G]], size: int, generator: np.random.Generator
) -> Individual[G]:
    """Return the fittest of `size` members drawn without replacement."""
    drawn = generator.choice(len(members), min(size, len(members)), replace=False)
    return min((members[i] for i in drawn), key=rank)


def fittest_first(members: Sequence[Individual[G]]) -> list[Individual[G]]:
    """Return distinct members by falling fitness, equal ones by key: no result hangs on the order
    of evaluation.
    """
    return sorted({member.key: member for member in members}.values(), key=rank)


def survivors(
    members: Sequence[Individual[G]],
    count: int,
    elites: int,
    min_distance: float,
    distance: Callable[[G, G], float],
    novelty: float = 0.0,
) -> list[Individual[G]]:
    """Return the next population, best first: the elites, then the best that are `min_distance`
    from all chosen.

    "Best" weighs two ranks among the candidates, each in [0, 1]: fitness by 1 - novelty, and the
    distance to the nearest one already chosen by novelty. Equal candidates survive once. Places
    that diversity leaves empty go to the fittest of the rest.
    """
    unique = fittest_first(members)
    chosen, rest = unique[:elites], unique[elites:]
    nearest = [
        min((distance(m.genome, survivor.genome) for survivor in chosen), default=1.0) for m in rest
    ]
    passed: list[Individual[G]] = []
    while rest and len(chosen) < count:
        # Distances are to all that were chosen so far, so the next choice must be made anew each
        # time.
        at = _best_of(nearest, novelty)
        member, gap = rest.pop(at), nearest.pop(at)
        if gap < min_distance:
            passed.append(member)
            continue
        chosen.append(member)
        nearest = [
            min(near, distance(m.genome, member.genome))
            for near, m in zip(nearest, rest, strict=True)
        ]
    return sorted([*chosen, *fittest_first(passed)[: max(0, count - len(chosen))]], key=rank)


def _best_of(nearest: Sequence[float], novelty: float) -> int:
    """Return the place that wins among candidates, listed fittest first; ties go to the fitter."""
    if not novelty or len(nearest) == 1:
        return 0
    last = len(nearest) - 1
    # The rank of each distance: twice sorted, an order becomes places in it.
    by_distance = np.argsort(np.argsort(np.asarray(nearest), kind="stable"), kind="stable")
    scores = [
        (1 - novelty) * (1 - i / last) + novelty * by_distance[i] / last
        for i in range(len(nearest))
    ]
    return int(np.argmax(scores))


def diversity(members: Sequence[Individual[G]], distance: Callable[[G, G], float]) -> float:
    """Return the mean distance over all pairs, 0 for fewer than two members."""
    pairs = [distance(a.genome, b.genome) for i, a in enumerate(members) for b in members[:i]]
    return float(np.mean(pairs)) if pairs else 0.0


def rank(member: Individual[G]) -> tuple[float, str]:
    """Order by falling fitness, equal ones by key."""
    return (-member.fitness, member.key)
