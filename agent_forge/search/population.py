"""Individuals, tournament selection, and survival of the fittest that keeps a population diverse."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

G = TypeVar("G")


class Space(Protocol[G]):
    """What a search needs to know of its genomes. All randomness comes from the generator that is passed."""

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


@dataclass(frozen=True, slots=True)
class Individual(Generic[G]):
    """A genome with its fitness on all items (higher is better) and where it came from."""

    genome: G
    key: str
    fitness: float
    origin: str


def tournament(members: Sequence[Individual[G]], size: int, generator: np.random.Generator) -> Individual[G]:
    """Return the fittest of `size` members drawn without replacement."""
    drawn = generator.choice(len(members), min(size, len(members)), replace=False)
    return min((members[i] for i in drawn), key=_rank)


def survivors(
    members: Sequence[Individual[G]],
    count: int,
    elites: int,
    min_distance: float,
    distance: Callable[[G, G], float],
) -> list[Individual[G]]:
    """Return the next population, best first: the elites, then the fittest that are `min_distance` from all chosen.

    Equal candidates survive once. Places that diversity leaves empty go to the fittest of the rest.
    """
    unique = list({member.key: member for member in sorted(members, key=_rank, reverse=True)}.values())
    unique.sort(key=_rank)
    chosen = unique[:elites]
    for member in unique[elites:]:
        if len(chosen) < count and all(distance(member.genome, kept.genome) >= min_distance for kept in chosen):
            chosen.append(member)
    keys = {member.key for member in chosen}
    rest = [member for member in unique if member.key not in keys]
    return sorted([*chosen, *rest[: max(0, count - len(chosen))]], key=_rank)


def diversity(members: Sequence[Individual[G]], distance: Callable[[G, G], float]) -> float:
    """Return the mean distance over all pairs, 0 for fewer than two members."""
    pairs = [distance(a.genome, b.genome) for i, a in enumerate(members) for b in members[:i]]
    return float(np.mean(pairs)) if pairs else 0.0


def _rank(member: Individual[G]) -> tuple[float, str]:
    """Order by falling fitness, equal ones by key, so that no result hangs on the order of evaluation."""
    return (-member.fitness, member.key)
