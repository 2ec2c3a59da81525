"""The settings of an evolution, as configs hold them. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
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


def check_race(shares: Sequence[float]) -> None:
    """Raise ConfigError unless the shares of a race rise to 1."""
    rising = all(0 < a < b for a, b in pairwise(shares))
    if not shares or shares[-1] != 1.0 or not rising:
        raise ConfigError(
            f"search.race must rise to 1.0, got {list(shares)}; try [0.25, 0.5, 1.0], or [1.0] for "
            "no race"
        )


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
        check_race(self.race)
