"""Measure candidates on shared items, and race them: all start on few items, the better half goes
on.

Every candidate meets the same items in the same order, so comparisons are paired: what is hard
about an item cancels.
Source: successive halving, arXiv:1502.07943. On top of it, a child whose paired difference from the
weakest member is surely negative stops at once: it could not survive.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic

import numpy as np

from agent_forge.search.evaluator import Evaluator, SearchJob
from agent_forge.search.journal import Journal
from agent_forge.search.population import G, Individual, Space
from agent_forge.search.settings import check_race

Values = list[float]
Order = Callable[[Sequence[Individual[G]]], list[Individual[G]]]  # best first


@dataclass(frozen=True, slots=True)
class ScoringRule(Generic[G]):
    """How the numbers of the first items become scores; higher is always better.

    fitness: one number. objectives: one number per task. difference: (mean, standard error) of the
    fitness of the first list over the second, item by item.
    """

    fitness: Callable[[Sequence[float]], float]
    objectives: Callable[[Sequence[float]], tuple[float, ...]]
    difference: Callable[[Sequence[float], Sequence[float]], tuple[float, float]]


def mean_rule() -> "ScoringRule[G]":
    """Return the rule of the plain mean."""

    def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
        # Item by item: what is hard for both cancels, which a difference of two means would keep as
        # noise.
        gaps = np.asarray(ours) - np.asarray(theirs)
        return float(gaps.mean()), float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(
            gaps
        ) > 1 else np.inf

    return ScoringRule(lambda v: float(np.mean(v)), lambda v: (float(np.mean(v)),), difference)


class Scorer(Generic[G]):
    """Measures genomes up to a border of the items, each slice once, and remembers the results in
    the journal.

    borders: rising item counts. A candidate is always measured from border to border, so that a
    number does not depend on what else is measured. The last border is the number of all items.
    """

    def __init__(
        self,
        space: Space[G],
        evaluator: Evaluator[G],
        rule: ScoringRule[G],
        borders: Sequence[int],
        journal: Journal,
    ) -> None:
        self.space, self.evaluator, self.rule, self.journal = space, evaluator, rule, journal
        self.borders = list(borders)
        self._touched: set[tuple[str, int, int]] = set()

    @property
    def measured_items(self) -> int:
        """Return how many items were needed so far, journalled ones included."""
        return sum(stop - start for _, start, stop in self._touched)

    def measure(self, genomes: Sequence[G], rung: int | None = None) -> list[Values]:
        """Return each candidate's numbers on all items up to the border of `rung` (default: all
        items).
        """
        return self.measure_spans(genomes, self._spans(rung))

    def measure_spans(
        self, genomes: Sequence[G], spans: tuple[tuple[int, int], ...]
    ) -> list[Values]:
        """Return each candidate's numbers on ranges [start, stop) of the items.

        Numbers that the journal holds are not measured again.
        """
        jobs: dict[str, SearchJob[G]] = {}
        keys = [self.space.key(genome) for genome in genomes]
        for genome, key in zip(genomes, keys, strict=True):
            # Counted even where the journal knows the number: a resumed search must count as an
            # uninterrupted one does.
            self._touched.update((key, *span) for span in spans)
            missing = tuple(span for span in spans if self.journal.get(key, *span) is None)
            if missing:
                jobs[key] = SearchJob(genome, key, missing)
        if jobs:
            for job, lists in self.evaluator.measure(list(jobs.values())):
                for span, values in zip(job.spans, lists, strict=True):
                    self.journal.put(job.key, *span, [float(value) for value in values])
        return [self._known(key, spans) for key in keys]

    def individuals(
        self, proposals: Sequence[tuple[str, G]], rung: int | None = None
    ) -> list[Individual[G]]:
        """Return measured individuals of (origin, genome), on items up to the border of `rung`."""
        rung = len(self.borders) - 1 if rung is None else rung
        numbers = self.measure([genome for _, genome in proposals], rung)
        return [
            Individual(
                genome, self.space.key(genome), self.rule.fitness(values), origin,
                self.rule.objectives(values), len(values), rung == len(self.borders) - 1,
            )
            for (origin, genome), values in zip(proposals, numbers, strict=True)
        ]  # fmt: skip

    def values(self, key: str, items: int) -> Values:
        """Return a measured candidate's numbers on the first `items` items, a border."""
        return self._known(key, self._spans(self.borders.index(items)))

    def _spans(self, rung: int | None) -> tuple[tuple[int, int], ...]:
        rung = len(self.borders) - 1 if rung is None else rung
        return tuple(pairwise([0, *self.borders[: rung + 1]]))

    def _known(self, key: str, spans: Sequence[tuple[int, int]]) -> Values:
        numbers: Values = []
        for span in spans:
            part = self.journal.get(key, *span)
            assert part is not None, "what was asked for has been measured"
            numbers += part
        return numbers


def rung_borders(shares: Sequence[float], items: int) -> list[int]:
    """Return the item counts of a race's rungs. Raises ConfigError unless the shares rise to 1."""
    check_race(shares)
    # A set, because on few items two shares can round to the same border.
    return sorted({max(1, round(share * items)) for share in shares})


@dataclass(frozen=True, slots=True)
class Heat(Generic[G]):
    """Candidates (origin, genome) that race each other.

    order: sorts candidates, the leading ones first. weakest: key of the member that a child must
    beat, "" where there is none.
    """

    proposals: Sequence[tuple[str, G]]
    order: Order[G]
    weakest: str = ""


def race(
    heats: Sequence[Heat[G]], scorer: Scorer[G], confidence: float = 0.0
) -> list[list[Individual[G]]]:
    """Return each heat's candidates, best first.

    Candidates that reached the end come before those that stopped, and later stops before earlier
    ones. Heats do not race each other, but their candidates are measured together. confidence: a
    candidate stops when it falls so many standard errors short of the weakest member; 0 stops none
    for that.
    """
    running = [list(heat.proposals) for heat in heats]
    stopped: list[list[Individual[G]]] = [[] for _ in heats]
    for rung in range(len(scorer.borders)):
        last = rung == len(scorer.borders) - 1
        # All heats at once, so that a pool of workers is kept busy.
        scorer.measure([genome for group in running for _, genome in group], rung)
        for number, heat in enumerate(heats):
            ordered = heat.order(scorer.individuals(running[number], rung))
            better_half = ordered if last else ordered[: -(-len(ordered) // 2)]
            going = [
                one for one in better_half if last or not _hopeless(one, heat, scorer, confidence)
            ]
            names = {one.key for one in going}
            stopped[number] = [*[one for one in ordered if one.key not in names], *stopped[number]]
            running[number] = [] if last else [(one.origin, one.genome) for one in going]
            if last:
                stopped[number] = [*going, *stopped[number]]
    return stopped


def _hopeless(one: Individual[G], heat: Heat[G], scorer: Scorer[G], confidence: float) -> bool:
    if not confidence or not heat.weakest:
        return False
    # On the items that the candidate has; the weakest member has met them all.
    mean, error = scorer.rule.difference(
        scorer.values(one.key, one.items), scorer.values(heat.weakest, one.items)
    )
    return mean + confidence * error < 0
