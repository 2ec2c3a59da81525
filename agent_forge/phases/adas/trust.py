"""The trust-region search: strengths move by at most `scale` per iteration, and only when fresh
rows confirm the gain.

Each iteration proposes candidates around the incumbent and races them on shared rows of the pool
(many candidates on few rows, few on more). The winner is then compared with the incumbent on rows
that no race and no other iteration sees. It is accepted when the probability of such a gain by
chance is at most this iteration's equal part of the search's error: with ten iterations at 95% that
is 1 in 200, so that a search in which nothing helps accepts anything in at most 1 of 20 cases.
Drift is a second limit. Ten accepted steps move a strength from 0 to 1. The baselines at equal
budget are here too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.seeds import numpy_generator
from agent_forge.phases import PhaseRun
from agent_forge.phases.adas import Config, SearchConfig
from agent_forge.phases.adas.candidate import Candidate, MergeBench
from agent_forge.phases.adas.objective import Drift, Losses, Objective, Picks
from agent_forge.phases.adas.pool import COMPOSITIONS, EDITS, Composition, Edit

Propose = Callable[["State", np.random.Generator], list[Candidate]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A candidate, the incumbent that it was proposed from, and its gain over it in nats per token
    on the rows of a race's first round. number: its iteration, from 0; -1 in the screening.
    """

    incumbent: Candidate
    candidate: Candidate
    gain: float
    number: int = -1


@dataclass(slots=True, kw_only=True)
class State:
    """Where a search stands. direction: the last accepted move of the strengths."""

    incumbent: Candidate
    direction: tuple[float, ...] = ()
    ranking: list[str] = field(default_factory=list)  # compositions, best of the screening first
    edits: list[str] = field(default_factory=list)  # edits, in the same order
    trials: list[Trial] = field(default_factory=list)  # what was tried so far, oldest first


class TrustSearch:
    """One search with its log. `label` names it in seeds and in the workspace."""

    def __init__(
        self,
        label: str,
        phase: PhaseRun[Config],
        bench: MergeBench,
        objective: Objective,
        drift: Drift,
    ) -> None:
        self.label, self.bench, self.objective, self.drift = label, bench, objective, drift
        self.settings, self.out, self.events = phase.config.search, phase.out, phase.events
        self.log: list[dict[str, Any]] = []
        self.rows_scored = 0

    def run(self, state: State, propose: Propose) -> State:
        """Run every iteration; each is kept in the workspace when it ends."""
        for number in range(self.settings.iterations):
            step = self.out.remember(
                f"{self.label}-{number:03}", partial(self._iterate, number, state, propose)
            )
            self.log.append(step)
            self.rows_scored += step["rows_scored"]
            state.trials += [
                Trial(
                    incumbent=state.incumbent,
                    candidate=Candidate.from_plain(arm),
                    gain=gain,
                    number=number,
                )
                for arm, gain in step.get("first_round", [])
            ]
            if step["accepted"]:
                winner = Candidate.from_plain(step["candidate"])
                pairs = zip(winner.alpha, state.incumbent.alpha, strict=True)
                state.direction = tuple((new - old) / self.settings.scale for new, old in pairs)
                state.incumbent = winner
            shown = {key: step[key] for key in ("gain", "low", "accepted") if key in step}
            self.events.progress(self.label, number + 1, self.settings.iterations, shown)
        return state

    def _iterate(self, number: int, state: State, propose: Propose) -> dict[str, Any]:
        generator = numpy_generator(self.objective.seed, "adas", self.label, number)
        before_rows = self.objective.scored
        arms = list(dict.fromkeys(c for c in propose(state, generator) if c != state.incumbent))
        step: dict[str, Any] = {
            "iteration": number + 1,
            "accepted": False,
            "gain": 0.0,
            "low": 0.0,
            "high": 0.0,
        }
        if arms:
            winner, raced, first = self.race(state.incumbent, arms, number)
            step |= {
                "candidate": winner.to_plain(),
                "raced_gain": raced,
                "first_round": [
                    [arm.to_plain(), gain] for arm, gain in zip(arms, first, strict=True)
                ],
                **self.judged(state.incumbent, winner, number),
            }
            if step["chance"] <= self.level and step["gain"] > 0:
                with self.bench.applied(winner) as model:
                    step["drift_nats"] = self.drift(model)
                step["accepted"] = step["drift_nats"] <= self.settings.drift_limit_nats
        return step | {"rows_scored": self.objective.scored - before_rows}

    @property
    def level(self) -> float:
        """Return the chance of a false accept that one iteration may spend: an equal part of what
        the whole search may spend.
        """
        return (1 - self.settings.confidence) / self.settings.iterations

    def race(
        self, incumbent: Candidate, arms: Sequence[Candidate], number: int
    ) -> tuple[Candidate, float, list[float]]:
        """Return the candidate that the last round puts first, its gain there, and the gain of
        every candidate in the first round. No two rounds share a row.
        """
        survivors, gains, order, first = list(arms), [0.0], [0], list[float]()
        for place, picks in enumerate(
            self.objective.draw(self.settings.race_items, self.label, number)
        ):
            before = self._losses(incumbent, picks)
            gains = [self.objective.gain(before, self._losses(arm, picks)) for arm in survivors]
            first = first or gains
            # Ties go to the earlier proposal, so that the order never depends on how sorting is
            # done.
            order = sorted(range(len(survivors)), key=lambda i: (-gains[i], i))
            if place < len(self.settings.race_keep):
                survivors = [survivors[i] for i in order[: self.settings.race_keep[place]]]
        return survivors[order[0]], gains[order[0]], first

    def judged(self, incumbent: Candidate, winner: Candidate, number: int) -> dict[str, float]:
        """Return gain, bounds and chance of the race's winner on rows that only this iteration
        uses.
        """
        picks = self.objective.fresh(number, self.settings.accept_items)
        before, after = self._losses(incumbent, picks), self._losses(winner, picks)
        low, high = self.objective.bounds(before, after, picks, self.label, number)
        chance = self.objective.chance(before, after, picks, self.label, number)
        return {
            "gain": self.objective.gain(before, after),
            "low": low,
            "high": high,
            "chance": chance,
        }

    def _losses(self, candidate: Candidate, picks: Picks) -> Losses:
        with self.bench.applied(candidate) as model:
            return self.objective.losses(model, picks)

    def screen(self, domains: int) -> list[dict[str, Any]]:
        """Try compositions (all strengths at one step) and edits on a few rows; return name,
        family, gain. `screened` of them are drawn with the seed, 0: all are tried.
        """
        chosen = drawn_from_pool(self.settings, self.objective.seed)

        def compute() -> list[dict[str, Any]]:
            picks = self.objective.draw(self.settings.race_items[:1], self.label, "screen")[0]
            start = Candidate(technique="svf_all", alpha=(0.0,) * domains)
            before, alpha = self._losses(start, picks), (self.settings.scale,) * domains
            rows: list[tuple[Composition | Edit, float]] = []
            for technique in (COMPOSITIONS[name] for name in chosen if name in COMPOSITIONS):
                candidate = Candidate(technique=technique.name, alpha=alpha)
                rows.append(
                    (technique, self.objective.gain(before, self._losses(candidate, picks)))
                )
            for edit in (EDITS[name] for name in chosen if name in EDITS):
                candidate = Candidate(technique="svf_all", alpha=start.alpha, edits=(edit.name,))
                rows.append((edit, self.objective.gain(before, self._losses(candidate, picks))))
            return [
                {"technique": t.name, "family": t.family, "gain_nats": gain, "does": t.summary}
                for t, gain in rows
            ]

        table = self.out.remember(f"{self.label}-screen", compute)
        # The input is scored beside them.
        scored = len(table) + 1
        self.rows_scored += scored * self.settings.race_items[0] * len(self.objective.rows)
        return sorted(table, key=lambda row: -row["gain_nats"])


def begin_at(state: State, screened: Sequence[Mapping[str, Any]], scale: float) -> None:
    """Give a search that has not begun what the screening found: the order of techniques and
    edits, and the gain of each as a trial.
    """
    still, alpha = state.incumbent, (scale,) * len(state.incumbent.alpha)
    for row in screened:
        name = row["technique"]
        if name in COMPOSITIONS:
            state.ranking.append(name)
            candidate = Candidate(technique=name, alpha=alpha)
        else:
            state.edits.append(name)
            candidate = Candidate(technique=still.technique, alpha=still.alpha, edits=(name,))
        state.trials.append(Trial(incumbent=still, candidate=candidate, gain=row["gain_nats"]))


def drawn_from_pool(settings: SearchConfig, seed: int) -> list[str]:
    """Return the names of the compositions and edits that the screening tries, in the pool's
    order: all, or as many as `screened` says. One composition is always among them.
    """
    pool = [*COMPOSITIONS, *(EDITS if settings.edits else ())]
    if not 0 < settings.screened < len(pool):
        return pool
    generator = numpy_generator(seed, "adas", "screened")
    first = str(generator.choice(list(COMPOSITIONS)))
    rest = [name for name in pool if name != first]
    others = generator.choice(len(rest), size=settings.screened - 1, replace=False)
    chosen = {first, *(rest[i] for i in others)}
    return [name for name in pool if name in chosen]


def around_incumbent(settings: SearchConfig) -> Propose:
    """Return proposals near the incumbent: its last move again, one expert, several, another
    technique, an edit.
    """

    def propose(state: State, generator: np.random.Generator) -> list[Candidate]:
        now, size = state.incumbent, len(state.incumbent.alpha)
        technique = now.technique if any(now.alpha) else state.ranking[0]
        proposals = [moved(now, state.direction or (1.0,) * size, technique, settings)]
        better = state.ranking[: max(1, len(state.ranking) // 2)]
        while len(proposals) < settings.candidates:
            kind = generator.integers(4)
            other = better[int(generator.integers(len(better)))]
            if kind == 0:
                step = np.zeros(size)
                step[int(generator.integers(size))] = 1.0 if generator.random() < 0.75 else -1.0
                proposals.append(moved(now, step, technique, settings))
            elif kind == 1:
                proposals.append(moved(now, generator.uniform(-1, 1, size), technique, settings))
            elif kind == 2:
                proposals.append(moved(now, generator.uniform(0, 1, size), other, settings))
            elif state.edits and len(now.edits) < settings.edits:
                edit = state.edits[int(generator.integers(max(1, len(state.edits) // 3)))]
                proposals.append(
                    Candidate(technique=now.technique, alpha=now.alpha, edits=(*now.edits, edit))
                )
            else:
                proposals.append(moved(now, generator.uniform(-1, 1, size), other, settings))
        return proposals

    return propose


def moved(
    now: Candidate,
    direction: Sequence[float] | NDArray[np.float64],
    technique: str,
    settings: SearchConfig,
) -> Candidate:
    """Return alpha + scale * direction, directions cut to [-1, 1], strengths to the whole
    region.
    """
    # The clip is per strength: the trust region is a box, not a ball.
    step = settings.scale * np.clip(np.asarray(direction, float), -1.0, 1.0)
    # As far as all iterations together can move from 0.
    reach = settings.scale * settings.iterations
    alpha = np.clip(np.asarray(now.alpha) + step, -reach, reach)
    return Candidate(
        technique=technique, alpha=tuple(float(round(a, 6)) for a in alpha), edits=now.edits
    )


def anywhere(settings: SearchConfig) -> Propose:
    """Return proposals of the random-search baseline: any technique, any strengths, any edits.

    It screens nothing, so it spends what the screening cost on more candidates in every iteration.
    """
    names, edits = sorted(COMPOSITIONS), sorted(EDITS)
    screened = len(drawn_from_pool(settings, 0))  # the number does not depend on the seed
    count = settings.candidates + math.ceil((screened + 1) / max(settings.iterations, 1))

    def propose(state: State, generator: np.random.Generator) -> list[Candidate]:
        size, reach = len(state.incumbent.alpha), settings.scale * settings.iterations
        proposals = []
        for _ in range(count):
            alpha = tuple(float(round(a, 6)) for a in generator.uniform(-reach, reach, size))
            chosen = generator.permutation(len(edits))[
                : int(generator.integers(0, settings.edits + 1))
            ]
            technique = names[int(generator.integers(len(names)))]
            proposals.append(
                Candidate(technique=technique, alpha=alpha, edits=tuple(edits[i] for i in chosen))
            )
        return proposals

    return propose
