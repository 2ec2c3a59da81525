"""CMA-ES on the numbers of a genome; technique and layer path stay as in the member it starts from.

Starts from the fittest member that has numbers. When the best has stayed the same for long, or the
steps have become tiny, it starts again from the fittest member of a kind that it has not tried yet,
then from the best. It learns ranks only, so candidates that a race stopped count below all that
went on.
Source: Hansen 2016, arXiv:1604.00772 (package `cma`).
"""

import warnings
from collections.abc import Sequence
from typing import Any, Generic

import numpy as np

from agent_forge.core.errors import ConfigError
from agent_forge.core.seeds import numpy_generator
from agent_forge.search.population import G, Individual, Space, fittest_first
from agent_forge.search.settings import EvolveSettings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Could not import matplotlib")  # it only plots
    from cma.evolution_strategy import CMAEvolutionStrategy

STALE_GENERATIONS = 12  # generations without a better best, after which it starts again
SMALLEST_STEP = 1e-4  # a share of a gene's range


def make(space: Space[Any], settings: EvolveSettings, seed: int) -> "CMAES[Any]":
    """Return the method.

    Raises ConfigError for fewer than four children: ranks of fewer steer nothing.
    """
    if settings.children < 4:
        raise ConfigError(
            f"search.method=cmaes needs search.children of at least 4, got {settings.children}"
        )
    return CMAES(space, settings, seed)


class CMAES(Generic[G]):
    """One distribution over the numbers of one kind of genome."""

    def __init__(self, space: Space[G], settings: EvolveSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self.members: list[Individual[G]] = []
        self._first: list[Individual[G]] = []
        self._tried: set[str] = set()
        self._starts, self._stale = 0, 0
        self._strategy: Any = None
        self._centre: G | None = None
        self._asked: list[np.ndarray] = []

    def start(self, members: Sequence[Individual[G]]) -> None:
        """Take the first members and begin at the fittest.

        Raises ConfigError when none has numbers.
        """
        self._first = [one for one in fittest_first(members) if len(self.space.vector(one.genome))]
        if not self._first:
            raise ConfigError(
                "search.method=cmaes moves numbers, and no genome has any; use search.method=ga"
            )
        self.members = fittest_first(members)[: self.settings.population]
        self._begin()

    def ask(self) -> list[tuple[str, G]]:
        """Return a sample of the distribution, as genomes."""
        self._asked = self._strategy.ask()
        return [("cma-es", self._genome(vector)) for vector in self._asked]

    def order(self, raced: Sequence[Individual[G]]) -> list[Individual[G]]:
        """Return the fittest first."""
        return fittest_first(raced)

    def tell(self, raced: Sequence[Individual[G]]) -> None:
        """Move the distribution by the candidates' ranks, and keep the finished ones."""
        place = {one.key: i for i, one in enumerate(raced)}
        keys = [self.space.key(self._genome(vector)) for vector in self._asked]
        # The package minimises, and only ranks matter to it: place 0 is the fittest.
        self._strategy.tell(self._asked, [float(place[key]) for key in keys])
        best = self.members[0].fitness
        self.receive([one for one in raced if one.finished])
        # Only the best counts: the mean moves all the time, whether the search gets anywhere or
        # not.
        self._stale = 0 if self.members[0].fitness > best else self._stale + 1
        if self._stale >= STALE_GENERATIONS or self._strategy.sigma < SMALLEST_STEP:
            self._begin()

    def receive(self, migrants: Sequence[Individual[G]]) -> None:
        """Keep the fittest of the members and migrants."""
        self.members = fittest_first([*self.members, *migrants])[: self.settings.population]

    def weakest(self) -> str:
        """Return "": the distribution needs the order of all its samples."""
        return ""

    def _begin(self) -> None:
        fresh = [one for one in self._first if self.space.kind(one.genome) not in self._tried]
        known = [one for one in self.members if len(self.space.vector(one.genome))]
        chosen = (fresh or known or self._first)[0]
        self._centre = chosen.genome
        self._tried.add(self.space.kind(chosen.genome))
        generator = numpy_generator(self.seed, "cma-es", self._starts)
        self._starts, self._stale = self._starts + 1, 0
        # The package refuses a start outside its bounds, by however little.
        start = np.clip(self.space.vector(chosen.genome), 0.0, 1.0)
        self._strategy = strategy(
            start, self.settings.cma_step, self.settings.children, (0.0, 1.0), generator
        )

    def _genome(self, vector: np.ndarray) -> G:
        assert self._centre is not None, "a search begins before it is asked"
        return self.space.with_vector(self._centre, vector[: len(self.space.vector(self._centre))])


def strategy(
    start: np.ndarray,
    step: float,
    children: int,
    bounds: tuple[float, float],
    generator: np.random.Generator,
) -> Any:
    """Return the package's CMA-ES at `start`, its first step in the same unit. It has at least two
    numbers: where `start` has one, the second is not used.
    """
    # A seed of NaN leaves NumPy's global generator alone; `randn` draws from one of our own.
    options = {
        "bounds": list(bounds), "popsize": children, "seed": np.nan, "verbose": -9,
        "CMA_mirrors": 0, "randn": lambda *shape: generator.standard_normal(shape),
    }  # fmt: skip
    return CMAEvolutionStrategy(_padded(start), step, options)


def _padded(vector: np.ndarray) -> np.ndarray:
    """Return a vector of at least two numbers, since the package refuses one; the second is not
    used.
    """
    return vector if len(vector) > 1 else np.append(vector, 0.5)
