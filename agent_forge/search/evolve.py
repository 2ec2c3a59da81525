"""One evolution: first members measured in full, then generations that are raced, on one island or
several.

The winner is the fittest of all that were ever measured on every item, so it is never worse than a
first member; nothing depends on the clock, on the backend, or on what a killed run had done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic

import numpy as np

from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.search.population import G, Individual, Space, diversity, fittest_first
from agent_forge.search.race import Heat, Scorer, race
from agent_forge.search.searcher import Searcher, make_searcher, new
from agent_forge.search.settings import EvolveSettings

# generations without a new candidate after which a search by items ends: the space is exhausted
BARREN = 20


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation's result: the best fitness so far, mean and diversity of the members."""

    number: int
    best: float
    mean: float
    diversity: float
    measured_items: int
    best_origin: str


@dataclass(slots=True, kw_only=True)
class Evolution(Generic[G]):
    """A finished search: members of all islands, best first, and one record per generation."""

    members: list[Individual[G]]
    history: list[Generation] = field(default_factory=list)

    @property
    def best(self) -> Individual[G]:
        """Return the fittest of all that were ever measured on every item."""
        return self.members[0]


Listener = Callable[[Generation, Sequence[Individual[G]]], None]


def evolve(
    space: Space[G],
    scorer: Scorer[G],
    initial: Sequence[tuple[str, G]],
    settings: EvolveSettings,
    seed: int,
    on_generation: Listener[G] = lambda _generation, _members: None,
    least_items: int = 0,
) -> Evolution[G]:
    """Search from `initial` members (name, genome), all measured in full, and random ones up to the
    population.

    least_items: when given, the search goes on until it has measured so many items, instead of for
    `settings.generations`.
    """
    islands = [
        make_searcher(space, settings, island_seed(seed, i, settings.islands))
        for i in range(settings.islands)
    ]
    named = [
        _first(space, initial, settings, island_seed(seed, i, settings.islands))
        for i in range(len(islands))
    ]
    # The first members are measured in full, since every later child is compared with one of them.
    scorer.measure([genome for group in named for _, genome in group])
    for island, group in zip(islands, named, strict=True):
        island.start(scorer.individuals(group))
    result = Evolution(members=_together(islands, []))
    _record(result, 0, scorer, space, on_generation)
    number, barren = 0, 0
    while _goes_on(number, scorer.measured_items, settings, least_items) and barren < BARREN:
        number += 1
        before = scorer.measured_items
        heats = [Heat(island.ask(), island.order, island.weakest()) for island in islands]
        # One race for all islands: they do not compete here, but share the workers.
        everyone = race(heats, scorer, settings.race_confidence)
        for island, raced in zip(islands, everyone, strict=True):
            island.tell(raced)
        if settings.migrate_every and len(islands) > 1 and number % settings.migrate_every == 0:
            migrate(islands, settings.migrants)
        finished = [one for raced in everyone for one in raced if one.finished]
        result.members = _together(islands, fittest_first([*result.members[:1], *finished])[:1])
        # A small space is exhausted at some time; then no generation measures anything new.
        barren = barren + 1 if least_items and scorer.measured_items == before else 0
        _record(result, number, scorer, space, on_generation)
    return result


def _goes_on(number: int, measured_items: int, settings: EvolveSettings, least_items: int) -> bool:
    return measured_items < least_items if least_items else number < settings.generations


def island_seed(seed: int, island: int, islands: int) -> int:
    """Return the seed of an island; a single island has the run's own seed."""
    return seed if islands == 1 else seed_for(seed, "island", island)


def migrate(islands: Sequence[Searcher[G]], migrants: int) -> None:
    """Let each island receive the fittest of the island before it: all at once, in a ring."""
    # Taken before anyone receives, so that no migrant travels two islands in one step.
    leaving = [fittest_first(island.members)[:migrants] for island in islands]
    for number, island in enumerate(islands):
        island.receive(leaving[number - 1])


def _first(
    space: Space[G], initial: Sequence[tuple[str, G]], settings: EvolveSettings, seed: int
) -> list[tuple[str, G]]:
    generator = numpy_generator(seed, "evolve", "initial")
    named = list(initial)
    while len(named) < settings.population:
        taken = {space.key(genome) for _, genome in named}
        named.append(("random", new(space, taken, lambda: space.random(generator))))
    return named


def _together(
    islands: Sequence[Searcher[G]], champion: Sequence[Individual[G]]
) -> list[Individual[G]]:
    """Return the members of all islands and the fittest so far, best first.

    The fittest is passed as `champion`, because a search method may have dropped it.
    """
    return fittest_first([*champion, *(member for island in islands for member in island.members)])


def _record(
    result: Evolution[G],
    number: int,
    scorer: Scorer[G],
    space: Space[G],
    on_generation: Listener[G],
) -> None:
    generation = Generation(
        number=number,
        best=result.best.fitness,
        mean=float(np.mean([member.fitness for member in result.members])),
        diversity=diversity(result.members, space.distance),
        measured_items=scorer.measured_items,
        best_origin=result.best.origin,
    )
    result.history.append(generation)
    on_generation(generation, result.members)
