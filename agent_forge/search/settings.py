"""The settings of an evolution, as configs hold them. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated

from agent_forge.config.limits import MANY, Count, CountOrNone, Plugin, PositiveShare, Range, Share, Weight
from agent_forge.core.errors import ConfigError


@dataclass(slots=True, kw_only=True)
class EvolveSettings:
    """How the search goes."""

    # a file of search/searchers: ga, cmaes, nsga2, random_search
    method: Annotated[str, Plugin("agent_forge.search.searchers", "search method")]
    population: Annotated[int, Range(2, MANY)]  # members kept (on each island)
    generations: CountOrNone  # rounds of children
    children: Count  # candidates a generation (and island), before racing
    tournament: Count  # members that compete to be a parent
    elites: Count  # best members that always survive
    crossover: Share  # share of children with two parents
    immigrants: Share  # share of children drawn anew from the whole space
    mutation: Share  # step of the first generation's mutations, in (0, 1]
    mutation_end: Share  # step of the last generation's
    min_distance: Share  # members below this distance from a fitter one survive only to fill the population
    novelty: Share  # share that distance from the members already chosen has in survival, against fitness; ga only
    cma_step: PositiveShare  # first step of CMA-ES, as a share of each gene's range
    race: list[PositiveShare]  # shares of the items at which the better half of the children goes on; [1.0] is no race
    race_confidence: Weight  # a child this many standard errors (paired) below the weakest member stops; 0 never
    islands: Annotated[int, Range(1, 10_000)]  # populations that evolve apart
    migrate_every: CountOrNone  # generations between migrations; 0 never
    migrants: Count  # best members of an island that the next one receives
    # a file of search/evaluators: in_process, pool, ray
    backend: Annotated[str, Plugin("agent_forge.search.evaluators", "search backend")]
    workers: Annotated[int, Range(0, 1024)]  # processes or actors; 0 is one a core or accelerator
    # CPU threads of a worker; equal threads give equal bits on every backend; 0 is runtime.threads
    threads: Annotated[int, Range(0, 4096)]
    batch_candidates: Count  # most merged candidates in memory at once, over all workers
    ray_address: str  # "" starts Ray on this machine, "auto" or HOST:PORT joins a cluster

    def validate(self) -> None:
        """Check settings that depend on each other. Raises ConfigError."""
        if self.elites > self.population:
            raise ConfigError(f"search.elites={self.elites} exceeds search.population={self.population}; lower elites")
