"""A search method: it starts with measured members, proposes candidates, and learns how they raced.

A method is one file in `searchers/` with `make(space, settings, seed)`. Its state follows from the
results that it has received, so replaying the journal restores it; nothing else is saved.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol

import numpy as np

from agent_forge.core import registry
from agent_forge.core.seeds import numpy_generator
from agent_forge.search.population import G, Individual, Space
from agent_forge.search.settings import EvolveSettings

PACKAGE = "agent_forge.search.searchers"
TRIES = 20  # draws of a child before a repeated candidate is accepted
Select = Callable[[Sequence[Individual[G]], np.random.Generator], Individual[G]]


class Searcher(Protocol[G]):
    """One population, and how it goes on. members: all measured on every item."""

    members: list[Individual[G]]

    def start(self, members: Sequence[Individual[G]]) -> None:
        """Take the first members."""
        ...

    def ask(self) -> list[tuple[str, G]]:
        """Return the next generation's candidates as (origin, genome)."""
        ...

    def order(self, raced: Sequence[Individual[G]]) -> list[Individual[G]]:
        """Return candidates measured on equally many items, best first: the order of a race."""
        ...

    def tell(self, raced: Sequence[Individual[G]]) -> None:
        """Take the results of the candidates, best first, unfinished ones last."""
        ...

    def receive(self, migrants: Sequence[Individual[G]]) -> None:
        """Take members from another island."""
        ...

    def weakest(self) -> str:
        """Return the key of the member that a candidate must beat to survive, "" when there is no
        such member.
        """
        ...


def make_searcher(space: Space[G], settings: EvolveSettings, seed: int) -> Searcher[G]:
    """Return the method that `settings.method` names.

    Raises ConfigError naming the nearest known one.
    """
    searcher: Searcher[Any] = registry.load(PACKAGE, settings.method, "search method").make(
        space, settings, seed
    )
    return searcher


@dataclass(frozen=True, slots=True)
class Breeder(Generic[G]):
    """Makes the children of a population. select: picks a parent."""

    space: Space[G]
    settings: EvolveSettings
    seed: int
    select: Select[G]

    def children(self, members: Sequence[Individual[G]], number: int) -> list[tuple[str, G]]:
        """Return the children of generation `number`, all different from each other and from the
        members.

        Each child has a random stream of its own. The step of mutations falls from `mutation` to
        `mutation_end` over the generations.
        """
        space, settings = self.space, self.settings
        # From 0 in the first generation to 1 in the last.
        progress = (number - 1) / max(settings.generations - 1, 1)
        step = settings.mutation + min(progress, 1.0) * (settings.mutation_end - settings.mutation)
        taken = {member.key for member in members}
        children: list[tuple[str, G]] = []
        for index in range(settings.children):
            generator = numpy_generator(self.seed, "evolve", number, index)
            draw = generator.random()
            if draw < settings.immigrants:
                origin, child = "immigrant", new(space, taken, partial(space.random, generator))
            else:
                share = (1 - settings.immigrants) * settings.crossover
                crossed = draw < settings.immigrants + share
                origin = "crossover" if crossed else "mutation"
                draw_child = partial(self._child, members, generator, crossed, step)
                child = new(space, taken, draw_child)
            taken.add(space.key(child))
            children.append((origin, child))
        return children

    def _child(
        self,
        members: Sequence[Individual[G]],
        generator: np.random.Generator,
        crossed: bool,
        step: float,
    ) -> G:
        """Return a mutant of one parent, or of the child of two."""
        first = self.select(members, generator)
        genome = first.genome
        if crossed and len(members) > 1:
            # A genome crossed with itself would be a mutation under another name.
            others = [member for member in members if member.key != first.key]
            genome = self.space.cross(genome, self.select(others, generator).genome, generator)
        return self.space.mutate(genome, generator, step)


def new(space: Space[G], taken: set[str], draw: Callable[[], G]) -> G:
    """Return the first of several draws that is not `taken`."""
    for _ in range(TRIES):
        candidate = draw()
        if space.key(candidate) not in taken:
            return candidate
    return candidate
