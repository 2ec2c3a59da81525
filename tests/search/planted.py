"""Planted landscapes: genomes are a kind and a vector in [0, 1]^n, and what an item scores is known
in closed form.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from agent_forge.search.evaluator import Evaluator, Measure, Spans, open_evaluator
from agent_forge.search.journal import Journal
from agent_forge.search.race import Scorer, ScoringRule, mean_rule, rung_borders
from agent_forge.search.settings import EvolveSettings

ITEMS = 16
SETTINGS = EvolveSettings(
    method="ga", population=8, generations=10, children=8, tournament=2, elites=2, crossover=0.5,
    immigrants=0.1, mutation=0.6, mutation_end=0.05, min_distance=0.02, novelty=0.0, cma_step=0.2,
    race=[0.25, 0.5, 1.0], race_confidence=0.0, islands=1, migrate_every=5, migrants=1,
    backend="in_process", workers=2, threads=1, batch_candidates=4, ray_address="",
)  # fmt: skip
Genome = tuple[str, tuple[float, ...]]


@dataclass(frozen=True)
class Vectors:
    """A space of vectors of `size` numbers, of several kinds."""

    size: int = 6
    kinds: tuple[str, ...] = ("a",)

    def random(self, generator: np.random.Generator) -> Genome:
        kind = self.kinds[int(generator.integers(len(self.kinds)))]
        return kind, tuple(float(x) for x in generator.random(self.size))

    def mutate(self, genome: Genome, generator: np.random.Generator, strength: float) -> Genome:
        steps = generator.normal(0, strength / 3, self.size) * (generator.random(self.size) < 0.5)
        return self.with_vector(genome, self.vector(genome) + steps)

    def cross(self, a: Genome, b: Genome, generator: np.random.Generator) -> Genome:
        share = generator.random(self.size)
        return self.with_vector(a, share * self.vector(a) + (1 - share) * self.vector(b))

    def key(self, genome: Genome) -> str:
        return f"{genome[0]} {' '.join(f'{x:.9f}' for x in genome[1])}"

    def distance(self, a: Genome, b: Genome) -> float:
        return 1.0 if a[0] != b[0] else float(np.abs(self.vector(a) - self.vector(b)).mean())

    def kind(self, genome: Genome) -> str:
        return genome[0]

    def vector(self, genome: Genome) -> np.ndarray:
        return np.asarray(genome[1])

    def with_vector(self, genome: Genome, vector: np.ndarray) -> Genome:
        return genome[0], tuple(float(x) for x in np.clip(vector, 0, 1))


@dataclass(frozen=True)
class Planted:
    """An evaluation task: item i of a genome scores height(kind, vector) plus the item's own
    difficulty.

    noise: spread of what an item adds to one genome and not to another. log: a file that gets a
    line for each job, with the process that did it. seconds: what a job costs.
    """

    height: Callable[[str, np.ndarray], float]
    noise: float = 0.0
    log: str = ""
    seconds: float = 0.0

    def open(self, worker: int, candidates: int) -> Measure:  # noqa: ARG002 - the protocol's
        def measure(genome: Genome, key: str, spans: Spans) -> list[list[float]]:
            time.sleep(self.seconds)
            if self.log:
                import os

                with Path(self.log).open("a") as file:
                    file.write(f"{os.getpid()} {key}\n")
            base = self.height(genome[0], np.asarray(genome[1]))
            return [[base + self.item(key, i) for i in range(*span)] for span in spans]

        return measure

    def item(self, key: str, i: int) -> float:
        """Return what item `i` adds: its difficulty, and its noise for this genome."""
        own = np.random.default_rng([i, *key.encode()]).normal() if self.noise else 0.0
        return float(np.random.default_rng(i).normal() + self.noise * own)


def settings(**changes: object) -> EvolveSettings:
    return replace(SETTINGS, **changes)  # type: ignore[arg-type]


@dataclass
class Bench:
    """A scorer over a planted task, and the evaluator to close."""

    task: Planted
    chosen: EvolveSettings = field(default_factory=lambda: SETTINGS)
    space: Vectors = field(default_factory=Vectors)
    rule: ScoringRule = field(default_factory=mean_rule)
    journal: Path | None = None
    items: int = ITEMS

    def __enter__(self) -> Scorer:
        self.evaluator: Evaluator = open_evaluator(self.task, self.chosen, lambda: None)
        borders = rung_borders(self.chosen.race, self.items)
        return Scorer(self.space, self.evaluator, self.rule, borders, Journal(self.journal))

    def __exit__(self, *error: object) -> None:
        self.evaluator.close()


def quadratic(kind: str, vector: np.ndarray) -> float:
    """Return a quadratic of condition 10 with its top, 0, at .3, .4, ...; kind "b" is lower
    everywhere.
    """
    scale = np.logspace(0, 1, len(vector))
    target = 0.3 + 0.1 * np.arange(len(vector)) % 0.5
    return -float((scale * (vector - target) ** 2).sum()) - (1.0 if kind == "b" else 0.0)


def peaks(kind: str, vector: np.ndarray) -> float:  # noqa: ARG001
    """Return a landscape of equal peaks of height 1 at the corners of a grid of .25 and .75."""
    return float(np.prod(np.sin(2 * np.pi * vector) ** 2))


def flat(kind: str, vector: np.ndarray) -> float:  # noqa: ARG001
    """Return how near the first number is to 1."""
    return float(vector[0])
