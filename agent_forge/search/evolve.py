"""One evolution: seeded members, then generations of children that are raced, and survivors that stay diverse.

The best member never gets worse (elitism), and nothing depends on the clock or on what a killed run had done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic

import numpy as np

from agent_forge.core.seeds import numpy_generator
from agent_forge.search.population import G, Individual, Space, diversity, survivors, tournament
from agent_forge.search.race import Evaluator, race
from agent_forge.search.settings import EvolveSettings

TRIES = 20  # draws of a child before a repeated candidate is accepted


@dataclass(frozen=True, slots=True)
class Generation:
    """What a generation came to."""

    number: int
    best: float
    mean: float
    diversity: float
    measured_items: int
    best_origin: str


@dataclass(slots=True, kw_only=True)
class Evolution(Generic[G]):
    """A finished search: members best first, and one record a generation."""

    members: list[Individual[G]]
    history: list[Generation] = field(default_factory=list)

    @property
    def best(self) -> Individual[G]:
        """Return the fittest member of all that were ever measured on every item."""
        return self.members[0]


def evolve(
    space: Space[G],
    evaluator: Evaluator[G],
    initial: Sequence[tuple[str, G]],
    settings: EvolveSettings,
    seed: int,
    on_generation: Callable[[Generation], None] = lambda _generation: None,
) -> Evolution[G]:
    """Search from `initial` members (name, genome), all measured in full, and random ones up to the population.

    Returns a result that is at least as fit as every initial member.
    """
    generator = numpy_generator(seed, "evolve", "initial")
    named = list(initial)
    while len(named) < settings.population:
        named.append(
            ("random", _new(space, {space.key(genome) for _, genome in named}, lambda: space.random(generator)))
        )
    everyone = [_individual(space, evaluator, genome, origin) for origin, genome in named]
    result = Evolution(
        members=survivors(everyone, settings.population, settings.elites, settings.min_distance, space.distance)
    )
    _record(result, 0, evaluator, space, on_generation)
    for number in range(1, settings.generations + 1):
        children = _children(space, result.members, settings, seed, number)
        origins = {space.key(genome): origin for origin, genome in children}
        finished = race([genome for _, genome in children], evaluator)
        grown = [
            Individual(genome, space.key(genome), fitness, origins[space.key(genome)]) for genome, fitness in finished
        ]
        result.members = survivors(
            [*result.members, *grown], settings.population, settings.elites, settings.min_distance, space.distance
        )
        _record(result, number, evaluator, space, on_generation)
    return result


def _children(
    space: Space[G], members: Sequence[Individual[G]], settings: EvolveSettings, seed: int, number: int
) -> list[tuple[str, G]]:
    """Return a generation's candidates, each from a random stream of its own, none equal to another or to a member."""
    progress = (number - 1) / max(settings.generations - 1, 1)
    step = settings.mutation + progress * (settings.mutation_end - settings.mutation)
    taken = {member.key for member in members}
    children: list[tuple[str, G]] = []
    for index in range(settings.children):
        generator = numpy_generator(seed, "evolve", number, index)
        draw = generator.random()
        if draw < settings.immigrants:
            origin, child = "immigrant", _new(space, taken, lambda g=generator: space.random(g))  # type: ignore[misc]
        else:
            crossed = draw < settings.immigrants + (1 - settings.immigrants) * settings.crossover
            origin = "crossover" if crossed else "mutation"
            child = _new(space, taken, lambda g=generator, c=crossed: _bred(space, members, settings, g, c, step))  # type: ignore[misc]
        taken.add(space.key(child))
        children.append((origin, child))
    return children


def _bred(
    space: Space[G],
    members: Sequence[Individual[G]],
    settings: EvolveSettings,
    generator: np.random.Generator,
    crossed: bool,
    step: float,
) -> G:
    """Return a mutant of one parent, or of the child of two."""
    first = tournament(members, settings.tournament, generator)
    genome = first.genome
    if crossed and len(members) > 1:
        others = [member for member in members if member.key != first.key]
        genome = space.cross(genome, tournament(others, settings.tournament, generator).genome, generator)
    return space.mutate(genome, generator, step)


def _new(space: Space[G], taken: set[str], draw: Callable[[], G]) -> G:
    """Return the first of several draws that is not `taken`."""
    for _ in range(TRIES):
        candidate = draw()
        if space.key(candidate) not in taken:
            return candidate
    return candidate


def _individual(space: Space[G], evaluator: Evaluator[G], genome: G, origin: str) -> Individual[G]:
    return Individual(genome, space.key(genome), evaluator.score(genome), origin)


def _record(
    result: Evolution[G],
    number: int,
    evaluator: Evaluator[G],
    space: Space[G],
    on_generation: Callable[[Generation], None],
) -> None:
    fitness = [member.fitness for member in result.members]
    generation = Generation(
        number=number,
        best=max(fitness),
        mean=float(np.mean(fitness)),
        diversity=diversity(result.members, space.distance),
        measured_items=evaluator.measured_items,
        best_origin=result.best.origin,
    )
    result.history.append(generation)
    on_generation(generation)
