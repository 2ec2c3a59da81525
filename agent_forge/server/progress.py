"""How far a job is, in percent, from the stages that its events name.

A stage counts as much as it took of the phase's time in the default run; a stage that is not known
takes half of what is left. Within an attempt a figure never falls, and a phase reaches 100 only
when it has ended. A phase that speaks shows that those before it are over.
"""

from collections.abc import Mapping, Sequence

from agent_forge.core.events import Event
from agent_forge.server.stages import PHASE_SECONDS, STAGE_SECONDS

ALMOST = 99.0  # percent; the rest is writing and the last checks


class PhaseProgress:
    """Percent of one attempt at one phase. floor: where an earlier reader of its events was."""

    def __init__(self, phase: str, floor: float = 0.0) -> None:
        self.percent = floor
        self._places: dict[str, tuple[float, float]] = {}
        stages = STAGE_SECONDS.get(phase, {})
        whole = sum(stages.values())
        before = 0.0
        for stage, seconds in stages.items():
            self._places[stage] = (before / whole, seconds / whole)
            before += seconds

    def take(self, event: Event) -> float:
        """Return the percent after an event."""
        if event.kind == "complete":
            self.percent = 100.0
        elif event.kind == "progress" and event.total > 0:
            start, share = self._place(event.stage)
            reached = 100 * (start + share * min(event.step / event.total, 1.0))
            self.percent = max(self.percent, min(reached, ALMOST))
        return self.percent

    def _place(self, stage: str) -> tuple[float, float]:
        """Return (start, share) of a stage."""
        if stage not in self._places:
            start = self.percent / 100
            self._places[stage] = (start, max(ALMOST / 100 - start, 0.0) / 2)
        return self._places[stage]


class JobProgress:
    """Percent of one attempt at a job of one or several phases, which run in order.

    percents: phase -> where an earlier reader of the same attempt was.
    """

    def __init__(self, phases: Sequence[str], percents: Mapping[str, float]) -> None:
        self._phases = {
            phase: PhaseProgress(phase, percents.get(phase, 0.0))
            for phase in dict.fromkeys([*phases, *percents])
        }

    def take(self, event: Event) -> float:
        """Return the percent of the event's phase after it."""
        if event.phase not in self._phases:
            self._phases[event.phase] = PhaseProgress(event.phase)
        for phase, progress in self._phases.items():
            if phase == event.phase:
                break
            progress.percent = 100.0
        return self._phases[event.phase].take(event)

    def overall(self) -> float:
        """Return the percent of the job."""
        weights = {phase: PHASE_SECONDS.get(phase, 1.0) for phase in self._phases}
        done = sum(self._phases[phase].percent * weight for phase, weight in weights.items())
        return done / (sum(weights.values()) or 1.0)
