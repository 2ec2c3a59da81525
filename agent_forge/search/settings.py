"""The settings of an evolution, as configs hold them. Imports nothing heavy."""

from dataclasses import dataclass

from agent_forge.core.errors import ConfigError


@dataclass(slots=True, kw_only=True)
class EvolveSettings:
    """How the search goes."""

    population: int  # members kept
    generations: int  # rounds of children
    children: int  # candidates a generation, before racing
    tournament: int  # members that compete to be a parent
    elites: int  # best members that always survive
    crossover: float  # share of children with two parents
    immigrants: float  # share of children drawn anew from the whole space
    mutation: float  # step of the first generation's mutations, in (0, 1]
    mutation_end: float  # step of the last generation's
    min_distance: float  # members below this distance from a fitter one survive only to fill the population
    race: list[float]  # shares of the items at which the better half of the children goes on; [1.0] is no race

    def __post_init__(self) -> None:
        for name, least in (("population", 2), ("generations", 0), ("children", 1), ("tournament", 1), ("elites", 1)):
            if isinstance(getattr(self, name), int) and getattr(self, name) < least:
                raise ConfigError(
                    f"search.{name} must be at least {least}, got {getattr(self, name)}; try search.{name}={least}"
                )
        if self.elites > self.population:
            raise ConfigError(f"search.elites={self.elites} exceeds search.population={self.population}; lower elites")
        for name in ("crossover", "immigrants", "mutation", "mutation_end", "min_distance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"search.{name} must lie in [0, 1], got {getattr(self, name)}")
