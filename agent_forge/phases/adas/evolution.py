"""Propose strengths by CMA-ES, inside the trust region.

The technique is the incumbent's, or the best of the screening while all strengths are 0; edits stay
as they are. The distribution is over the strengths themselves, in units of `scale`. One iteration
is one generation: it learns from the order of the gains in the first round of the race, at no
further cost. A sample outside the region around the incumbent is cut to its border and told so. It
is built anew in every iteration from the finished ones, so an interrupted search goes on to the
same end. Source: Hansen 2016, arXiv:1604.00772 (package `cma`).
"""

import itertools
import math
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import ConfigError
from agent_forge.phases.adas import SearchConfig
from agent_forge.phases.adas.candidate import Candidate
from agent_forge.phases.adas.trust import Propose, State, Trial, moved
from agent_forge.search.searchers.cmaes import strategy

LEAST_CANDIDATES = 4  # ranks of fewer steer nothing
# In units of `scale`: two standard deviations reach the border of the region.
FIRST_STEP = 0.5
MOST_ASKED = 10  # samples per candidate, until all candidates of an iteration differ


def check_candidates(settings: SearchConfig) -> None:
    """Raise ConfigError for fewer candidates than CMA-ES can learn from."""
    if settings.candidates < LEAST_CANDIDATES:
        raise ConfigError(
            f"search.proposals=cma needs search.candidates of at least {LEAST_CANDIDATES}, got "
            f"{settings.candidates}"
        )


def by_cma(settings: SearchConfig) -> Propose:
    """Return proposals by CMA-ES. Raises ConfigError for too few candidates."""
    check_candidates(settings)

    def propose(state: State, generator: np.random.Generator) -> list[Candidate]:
        now = state.incumbent
        technique = now.technique if any(now.alpha) else state.ranking[0]
        known = strategy(
            np.zeros(len(now.alpha)), FIRST_STEP, settings.candidates, (-np.inf, np.inf), generator
        )
        raced = [trial for trial in state.trials if trial.number >= 0]
        for _, generation in itertools.groupby(raced, attrgetter("number")):
            _learn(known, list(generation), settings)
        # The mean may lie outside the region of a new incumbent, by at most a step.
        at = np.asarray(now.alpha) / settings.scale
        centre = np.clip(known.mean[: len(at)] - at, -1.0, 1.0)
        candidates: dict[Candidate, None] = {}  # each once, so that every iteration is as dear
        for _ in range(MOST_ASKED):
            for sample in known.ask():
                steps = (sample - known.mean)[: len(now.alpha)] + centre
                if len(candidates) < settings.candidates:
                    candidates[moved(now, steps, technique, settings)] = None
                    candidates.pop(now, None)
        return list(candidates)

    return propose


def _learn(known: Any, generation: list[Trial], settings: SearchConfig) -> None:
    """Tell the distribution the gains of one generation; one that is not finite counts last."""
    points = [_point(trial.candidate, settings.scale, known.mean) for trial in generation]
    losses = [-trial.gain if math.isfinite(trial.gain) else math.inf for trial in generation]
    order = np.argsort(losses, kind="stable")
    places = np.empty(len(losses))
    places[order] = np.arange(len(losses))
    known.ask()  # The package wants one before each `tell`.
    known.tell(points, places.tolist())


def _point(candidate: Candidate, scale: float, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the strengths in units of `scale`; numbers that are not used stay at the mean."""
    point = np.array(mean, dtype=float)
    point[: len(candidate.alpha)] = np.asarray(candidate.alpha) / scale
    return point
