"""Propose candidates by optuna's TPE, over a genome in which some choices exist only with others.

A proposal is a move from the incumbent. It changes strengths, adds an edit, or both. Only a change
of strengths chooses a technique and one step for each domain; only an added edit chooses which one.
TPE models the moves of good gains and those of the others, and proposes where the ratio of the two
is high. It learns from the screening and from the first round of each race, at no further cost: the
gain of each move over the incumbent that it started from. Each iteration builds its study anew from
the finished moves and seeds it by its number, so an interrupted search goes on to the same end.
Sources: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization; Akiba et al. 2019,
arXiv:1907.10902 (package `optuna`).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from agent_forge.core.errors import ConfigError
from agent_forge.phases.adas import SearchConfig
from agent_forge.phases.adas.candidate import Candidate
from agent_forge.phases.adas.trust import Propose, State, Trial, moved

STRENGTHS, EDIT, BOTH = "strengths", "edit", "both"
MOST_ASKED = 10  # proposals per candidate, until all candidates of an iteration differ


def load_optuna() -> Any:
    """Return the package. Raises ConfigError where it is missing."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "search.proposals=optuna needs the package optuna; pip install 'agent-forge[search]', "
            "or use search.proposals=own"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it reports each new study otherwise
    return optuna


def by_tpe(settings: SearchConfig, domains: Sequence[str]) -> Propose:
    """Return proposals by TPE. Raises ConfigError where optuna is missing."""
    optuna = load_optuna()

    def propose(state: State, generator: np.random.Generator) -> list[Candidate]:
        genome = _Genome(optuna.distributions, state, domains)
        sampler = optuna.samplers.TPESampler(seed=int(generator.integers(2**32)))
        study = optuna.create_study(sampler=sampler, direction="maximize")
        study.add_trials([_finished(optuna, genome, trial, settings) for trial in state.trials])
        candidates: dict[Candidate, None] = {}  # each once, so that every iteration is as dear
        for _ in range(MOST_ASKED * settings.candidates):
            if len(candidates) < settings.candidates:
                candidates[genome.chosen_by(study.ask(), settings)] = None
                candidates.pop(state.incumbent, None)
        return list(candidates)

    return propose


class _Genome:
    """The choices that make a move, and which of them depend on which."""

    def __init__(self, kinds: Any, state: State, domains: Sequence[str]) -> None:
        self.state, self.steps = state, [f"step {domain}" for domain in domains]
        self.distributions = {
            "changes": kinds.CategoricalDistribution((STRENGTHS, EDIT, BOTH)),
            "technique": kinds.CategoricalDistribution(tuple(state.ranking)),
            **{name: kinds.FloatDistribution(-1.0, 1.0) for name in self.steps},
        }
        if state.edits:
            self.distributions["edit"] = kinds.CategoricalDistribution(tuple(state.edits))

    def chosen_by(self, trial: Any, settings: SearchConfig) -> Candidate:
        """Return the candidate that a trial of the study suggests, asking for a choice only where
        the choices before it need it.
        """
        now, suggest = self.state.incumbent, trial.suggest_categorical
        room = bool(self.state.edits) and len(now.edits) < settings.edits
        changes = self._suggest(suggest, "changes") if room else STRENGTHS
        candidate = now
        if changes != EDIT:
            technique = self._suggest(suggest, "technique")
            steps = [trial.suggest_float(name, -1.0, 1.0) for name in self.steps]
            candidate = moved(now, steps, technique, settings)
        if changes != STRENGTHS:
            edits = (*now.edits, self._suggest(suggest, "edit"))
            candidate = Candidate(technique=candidate.technique, alpha=candidate.alpha, edits=edits)
        return candidate

    def choices_of(self, trial: Trial, settings: SearchConfig) -> dict[str, Any]:
        """Return the choices that lead from a trial's incumbent to its candidate: the inverse of
        `chosen_by`, but for what the region's border cut off.
        """
        before, after = trial.incumbent, trial.candidate
        added, shifted = after.edits[len(before.edits) :], after.alpha != before.alpha
        choices: dict[str, Any] = {
            "changes": BOTH if added and shifted else EDIT if added else STRENGTHS
        }
        if choices["changes"] != EDIT:
            choices["technique"] = after.technique
            pairs = zip(self.steps, before.alpha, after.alpha, strict=True)
            for name, old, new in pairs:
                choices[name] = float(np.clip((new - old) / settings.scale, -1.0, 1.0))
        if added:
            choices["edit"] = added[-1]
        return choices

    def _suggest(self, suggest: Any, name: str) -> str:
        return str(suggest(name, self.distributions[name].choices))


def _finished(optuna: Any, genome: _Genome, trial: Trial, settings: SearchConfig) -> Any:
    """Return a trial as optuna keeps it. One whose gain is not finite counts below all others."""
    choices = genome.choices_of(trial, settings)
    states = optuna.trial.TrialState
    is_finite = math.isfinite(trial.gain)
    return optuna.trial.create_trial(
        state=states.COMPLETE if is_finite else states.PRUNED,
        value=trial.gain if is_finite else None,
        params=choices,
        distributions={name: genome.distributions[name] for name in choices},
    )
