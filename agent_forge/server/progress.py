"""How far a job is, in percent, from the stages that its events name.

A stage counts as much as it took of the phase's time when that was measured; a stage that nobody
has measured takes half of what is left. Within an attempt the figure never falls, and 100 is only
reached by a phase that has ended.
"""

from collections.abc import Mapping, Sequence

from agent_forge.core.events import Event

ALMOST = 99.0  # percent; the rest is writing and the last checks
# Phase -> (stage, share of the time) in order, from the default run.
STAGES: Mapping[str, Sequence[tuple[str, float]]] = {}
# Phase -> share of the time of run-all.
PHASES: Mapping[str, float] = {}


class PhaseProgress:
    """Percent of one attempt at one phase. floor: where an earlier reader of its events was."""

    def __init__(self, phase: str, floor: float = 0.0) -> None:
        self.percent = floor
        self._starts: dict[str, tuple[float, float]] = {}
        stages = STAGES.get(phase, ())
        whole = sum(weight for _, weight in stages) or 1.0
        before = 0.0
        for stage, weight in stages:
            self._starts[stage] = (before / whole, weight / whole)
            before += weight

    def take(self, event: Event) -> float:
        """Return the percent after an event."""
        if event.kind == "complete":
            self.percent = 100.0
        elif event.kind == "progress" and event.total > 0:
            if event.stage not in self._starts:
                done = self.percent / 100
                self._starts[event.stage] = (done, max(ALMOST / 100 - done, 0.0) / 2)
            start, share = self._starts[event.stage]
            reached = 100 * (start + share * min(event.step / event.total, 1.0))
            self.percent = max(self.percent, min(reached, ALMOST))
        return self.percent


def overall(percents: Mapping[str, float], phases: Sequence[str]) -> float:
    """Return the percent of a run of several phases, from those that have begun.

    percents: phase -> percent. phases: all of the run, in order.
    """
    weights = {phase: PHASES.get(phase, 1.0) for phase in phases}
    whole = sum(weights.values()) or 1.0
    return sum(percents.get(phase, 0.0) * weight for phase, weight in weights.items()) / whole
