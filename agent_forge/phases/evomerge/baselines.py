"""What an evolution must beat: the greedy soup, and random search on as many measured items."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from agent_forge.phases.evomerge.genome import Genome, GenomeSpace
from agent_forge.search.evolve import evolve
from agent_forge.search.population import Individual
from agent_forge.search.race import Scorer
from agent_forge.search.settings import EvolveSettings


def greedy_soup(space: GenomeSpace, scorer: Scorer[Genome]) -> Genome:
    """Return the mean of the sources that a greedy pass keeps.

    The pass goes from the fittest source to the least fit, and keeps each one that does not lower
    the fitness of the mean on the search split. Source: Wortsman et al. 2022, arXiv:2203.05482.
    """
    sources = range(len(space.labels))
    alone = scorer.individuals([(str(i), space.parent(i)) for i in sources])
    order = sorted(sources, key=lambda i: (-alone[i].fitness, i))
    members, best = [order[0]], alone[order[0]].fitness
    for source in order[1:]:
        trial = scorer.individuals([("soup", space.soup([*members, source]))])[0]
        if trial.fitness >= best:
            members, best = [*members, source], trial.fitness
    return space.soup(members)


def random_search(
    space: GenomeSpace,
    scorer: Scorer[Genome],
    initial: Sequence[tuple[str, Genome]],
    settings: EvolveSettings,
    seed: int,
    least_items: int,
    tell: Callable[[int], None],
) -> list[Individual[Genome]]:
    """Return the fittest random genomes, best first.

    They are raced as an evolution races its candidates, from the same first members. scorer: a new
    one, so that its count starts at 0; the search ends when it has measured `least_items` items.
    """
    evolution = evolve(
        space, scorer, initial, replace(settings, method="random_search", islands=1), seed,
        lambda generation, _members: tell(generation.measured_items), least_items,
    )  # fmt: skip
    return evolution.members
