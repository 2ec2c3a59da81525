"""NSGA-II: many tasks at once. The first fronts survive, and the least crowded of the last one.

Source: Deb et al. 2002. The objectives are a candidate's scores on each task; the plain fitness
picks the winner among all that were finished.
"""

from collections.abc import Sequence
from typing import Any, Generic

import numpy as np

from agent_forge.search.pareto import crowding, fronts
from agent_forge.search.population import G, Individual, Space, fittest_first, rank
from agent_forge.search.searcher import Breeder
from agent_forge.search.settings import EvolveSettings


def make(space: Space[Any], settings: EvolveSettings, seed: int) -> "NSGA2[Any]":
    """Return the method."""
    return NSGA2(space, settings, seed)


class NSGA2(Generic[G]):
    """One population, best front first."""

    def __init__(self, space: Space[G], settings: EvolveSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self.members: list[Individual[G]] = []
        self._number = 0

    def start(self, members: Sequence[Individual[G]]) -> None:
        """Take the first members."""
        self.members = self.order(members)[: self.settings.population]

    def ask(self) -> list[tuple[str, G]]:
        """Return children of parents that won a tournament by front, then by crowding."""
        self._number += 1
        place = {member.key: i for i, member in enumerate(self.members)}

        def select(
            members: Sequence[Individual[G]], generator: np.random.Generator
        ) -> Individual[G]:
            drawn = generator.choice(
                len(members), min(self.settings.tournament, len(members)), replace=False
            )
            return min((members[i] for i in drawn), key=lambda member: place[member.key])

        breeder = Breeder(self.space, self.settings, self.seed, select)
        return breeder.children(self.members, self._number)

    def order(self, raced: Sequence[Individual[G]]) -> list[Individual[G]]:
        """Return distinct individuals by front, in each the least crowded first."""
        unique = fittest_first(raced)
        ordered: list[Individual[G]] = []
        for front in fronts([one.objectives for one in unique]) if unique else []:
            gaps = crowding([unique[i].objectives for i in front])
            placed = sorted(
                zip(gaps, front, strict=True), key=lambda pair: (-pair[0], rank(unique[pair[1]]))
            )
            ordered += [unique[i] for _, i in placed]
        return ordered

    def tell(self, raced: Sequence[Individual[G]]) -> None:
        """Let the finished children compete with the members."""
        self.start([*self.members, *(one for one in raced if one.finished)])

    def receive(self, migrants: Sequence[Individual[G]]) -> None:
        """Let migrants compete with the members."""
        self.start([*self.members, *migrants])

    def weakest(self) -> str:
        """Return "": a child that is worse on the whole may be the best at one task."""
        return ""
