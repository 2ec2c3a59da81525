"""The settings of an evolution, as configs hold them. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated

from agent_forge.config.limits import (
    MANY,
    Count,
    CountOrNone,
    Plugin,
    PositiveShare,
    Range,
    Share,
    Weight,
)
from agent_forge.core.errors import ConfigError


@dataclass(slots=True, kw_only=True)
class EvolveSettings:
    """How the search goes."""

    method: Annotated[str, Plugin("agent_forge.search.searchers", "search method")]
    population: Annotated[int, Range(2, MANY)]
    generations: CountOrNone
    children: Count
    tournament: Count
    elites: Count
    crossover: Share
    immigrants: Share
    mutation: Share
    mutation_end: Share
    min_distance: Share
    novelty: Share
    cma_step: PositiveShare
    race: list[PositiveShare]
    race_confidence: Weight
    islands: Annotated[int, Range(1, 10_000)]
    migrate_every: CountOrNone
    migrants: Count
    backend: Annotated[str, Plugin("agent_forge.search.evaluators", "search backend")]
    workers: Annotated[int, Range(0, 1024)]
    threads: Annotated[int, Range(0, 4096)]
    batch_candidates: Count
    ray_address: str

    def validate(self) -> None:
        """Check settings that depend on each other. Raises ConfigError."""
        if self.elites > self.population:
            raise ConfigError(
                f"search.elites={self.elites} exceeds search.population={self.population}; "
                "lower elites"
            )
