"""The settings of an evolution, as configs hold them. Imports nothing heavy."""

from dataclasses import dataclass

from agent_forge.core.errors import ConfigError

LEAST = {
    "population": 2, "generations": 0, "children": 1, "tournament": 1, "elites": 1, "islands": 1, "migrate_every": 0,
    "migrants": 1, "workers": 0, "threads": 0, "batch_candidates": 1,
}  # fmt: skip
SHARES = ("crossover", "immigrants", "mutation", "mutation_end", "min_distance", "novelty")


@dataclass(slots=True, kw_only=True)
class EvolveSettings:
    """How the search goes."""

    method: str  # a file of search/searchers: ga, cmaes, nsga2, random_search
    population: int  # members kept (on each island)
    generations: int  # rounds of children
    children: int  # candidates a generation (and island), before racing
    tournament: int  # members that compete to be a parent
    elites: int  # best members that always survive
    crossover: float  # share of children with two parents
    immigrants: float  # share of children drawn anew from the whole space
    mutation: float  # step of the first generation's mutations, in (0, 1]
    mutation_end: float  # step of the last generation's
    min_distance: float  # members below this distance from a fitter one survive only to fill the population
    novelty: float  # share that distance from the members already chosen has in survival, against fitness; ga only
    cma_step: float  # first step of CMA-ES, as a share of each gene's range
    race: list[float]  # shares of the items at which the better half of the children goes on; [1.0] is no race
    race_confidence: float  # a child this many standard errors (paired) below the weakest member stops; 0 never
    islands: int  # populations that evolve apart
    migrate_every: int  # generations between migrations; 0 never
    migrants: int  # best members of an island that the next one receives
    backend: str  # a file of search/evaluators: in_process, pool, ray
    workers: int  # processes or actors; 0 is one a core or accelerator
    threads: int  # CPU threads of a worker; equal threads give equal bits on every backend; 0 is runtime.threads
    batch_candidates: int  # most merged candidates in memory at once, over all workers
    ray_address: str  # "" starts Ray on this machine, "auto" or HOST:PORT joins a cluster

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if isinstance(getattr(self, name), int) and getattr(self, name) < least:
                raise ConfigError(
                    f"search.{name} must be at least {least}, got {getattr(self, name)}; try search.{name}={least}"
                )
        if self.elites > self.population:
            raise ConfigError(f"search.elites={self.elites} exceeds search.population={self.population}; lower elites")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"search.{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 < self.cma_step <= 1:
            raise ConfigError(f"search.cma_step must lie in (0, 1], got {self.cma_step}; try search.cma_step=0.2")
        if self.race_confidence < 0:
            raise ConfigError(f"search.race_confidence must not be negative, got {self.race_confidence}; 0 is off")
