"""What an evolution must beat: the greedy soup, and random search on as many measured items."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from agent_forge.phases.evomerge.genome import Genome, GenomeSpace
from agent_forge.search.evolve import evolve
from agent_forge.search.population import Individual
from agent_forge.search.race import Scorer
from agent_forge.search.settings import EvolveSettings


def greedy_soup(space: GenomeSpace, scorer: Scorer[Genome]) -> Genome:
    """Return the mean of the sources that a greedy pass keeps: fittest first, each kept where it
    does no harm.

    Chosen on the search split, like everything. Source: Wortsman et al. 2022, arXiv:2203.05482.
    """
    sources = range(len(space.labels))
    alone = scorer.individuals([(str(i), space.parent(i)) for i in sources])
    order = sorted(sources, key=lambda i: (-alone[i].fitness, i))
    kept, best = [order[0]], alone[order[0]].fitness
    for source in order[1:]:
        found = scorer.individuals([("soup", space.soup([*kept, source]))])[0]
        if found.fitness >= best:
            kept, best = [*kept, source], found.fitness
    return space.soup(kept)


def random_search(
    space: GenomeSpace,
    scorer: Scorer[Genome],
    initial: Sequence[tuple[str, Genome]],
    settings: EvolveSettings,
    seed: int,
    least_items: int,
    tell: Callable[[int], None],
) -> list[Individual[Genome]]:
    """Return the fittest random genomes, best first, raced like an evolution's from the same first
    members.

    scorer: a new one, so that its count starts at 0; the search ends when it needed `least_items`
    items.
    """
    found = evolve(
        space, scorer, initial, replace(settings, method="random_search", islands=1), seed,
        lambda generation, _members: tell(generation.measured_items), least_items,
    )  # fmt: skip
    return found.members
