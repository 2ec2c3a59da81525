"""Genetic algorithm: tournaments, crossover, mutation, immigrants; elites and diverse ones survive.

The best member never gets worse (elitism). With `novelty`, survival also rewards distance from
those already chosen.
"""

from collections.abc import Sequence
from typing import Any, Generic

from agent_forge.search.population import G, Individual, Space, fittest_first, survivors, tournament
from agent_forge.search.searcher import Breeder
from agent_forge.search.settings import EvolveSettings


def make(space: Space[Any], settings: EvolveSettings, seed: int) -> "Genetic[Any]":
    """Return the method."""
    return Genetic(space, settings, seed)


class Genetic(Generic[G]):
    """One population."""

    def __init__(self, space: Space[G], settings: EvolveSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self.members: list[Individual[G]] = []
        self._number = 0
        self._breeder = Breeder(
            space, settings, seed,
            lambda members, generator: tournament(members, settings.tournament, generator),
        )  # fmt: skip

    def start(self, members: Sequence[Individual[G]]) -> None:
        """Take the first members."""
        self.members = self._survivors(members)

    def ask(self) -> list[tuple[str, G]]:
        """Return the next children."""
        self._number += 1
        return self._breeder.children(self.members, self._number)

    def order(self, raced: Sequence[Individual[G]]) -> list[Individual[G]]:
        """Return the fittest first."""
        return fittest_first(raced)

    def tell(self, raced: Sequence[Individual[G]]) -> None:
        """Let the finished children compete with the members."""
        self.members = self._survivors([*self.members, *(one for one in raced if one.finished)])

    def receive(self, migrants: Sequence[Individual[G]]) -> None:
        """Let migrants compete with the members."""
        self.members = self._survivors([*self.members, *migrants])

    def weakest(self) -> str:
        """Return the least fit member, once the population is full; a newcomer may be kept for its
        distance.
        """
        full = len(self.members) >= self.settings.population and not self.settings.novelty
        return self.members[-1].key if full else ""

    def _survivors(self, members: Sequence[Individual[G]]) -> list[Individual[G]]:
        settings = self.settings
        return survivors(
            members,
            settings.population,
            settings.elites,
            settings.min_distance,
            self.space.distance,
            settings.novelty,
        )
