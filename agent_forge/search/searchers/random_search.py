"""Random search: each candidate is drawn from the whole space.

The baseline that a search must beat.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Generic

from agent_forge.core.seeds import numpy_generator
from agent_forge.search.population import G, Individual, Space, fittest_first
from agent_forge.search.searcher import new
from agent_forge.search.settings import EvolveSettings


def make(space: Space[Any], settings: EvolveSettings, seed: int) -> "RandomSearch[Any]":
    """Return the method."""
    return RandomSearch(space, settings, seed)


class RandomSearch(Generic[G]):
    """Keeps the fittest of what it drew."""

    def __init__(self, space: Space[G], settings: EvolveSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self.members: list[Individual[G]] = []
        self._number = 0

    def start(self, members: Sequence[Individual[G]]) -> None:
        """Take the first members."""
        self.members = fittest_first(members)[: self.settings.population]

    def ask(self) -> list[tuple[str, G]]:
        """Return fresh draws."""
        self._number += 1
        taken = {member.key for member in self.members}
        draws: list[tuple[str, G]] = []
        for index in range(self.settings.children):
            generator = numpy_generator(self.seed, "random search", self._number, index)
            genome = new(self.space, taken, partial(self.space.random, generator))
            taken.add(self.space.key(genome))
            draws.append(("random", genome))
        return draws

    def order(self, raced: Sequence[Individual[G]]) -> list[Individual[G]]:
        """Return the fittest first."""
        return fittest_first(raced)

    def tell(self, raced: Sequence[Individual[G]]) -> None:
        """Keep the fittest."""
        self.start([*self.members, *(one for one in raced if one.finished)])

    def receive(self, migrants: Sequence[Individual[G]]) -> None:
        """Keep the fittest."""
        self.start([*self.members, *migrants])

    def weakest(self) -> str:
        """Return the least fit member, once there are enough."""
        return self.members[-1].key if len(self.members) >= self.settings.population else ""
