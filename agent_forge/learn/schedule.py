"""Plan how long a stage trains, and its learning rate: by steps, with an earlier end by tokens or
minutes.

With a budget of tokens the stage is planned over fewer steps, and is as reproducible as any. With a
budget of minutes the schedule follows the larger of two shares, steps done and time used, so that
cool-down and averaging are whole when the time is up; the result then depends on the machine.
"""

from agent_forge.config import OptimConfig
from agent_forge.learn.optimisers import wsd


class StageSchedule:
    """The length and schedule of a stage. `seconds` is the training time used, earlier processes
    included.
    """

    def __init__(
        self, steps: int, optim: OptimConfig, *, tokens: int = 0, minutes: float = 0.0
    ) -> None:
        self.steps, self.optim, self.minutes = steps, optim, minutes
        self.tokens = tokens
        self.seconds = 0.0

    def limit_tokens(self, tokens_per_step: int) -> None:
        """End after as many whole steps as the token budget needs."""
        if self.tokens:
            self.steps = min(self.steps, max(-(-self.tokens // tokens_per_step), 1))

    def over(self, step: int) -> bool:
        """Return whether the stage ends before `step`."""
        return step >= self.steps or (self.minutes > 0 and self.seconds >= 60 * self.minutes)

    def lr_share(self, step: int) -> float:
        """Return the share of the peak learning rate at `step`."""
        planned = wsd(step, self.steps, self.optim.warmup_steps, self.optim.cooldown_share)
        cooling = self.optim.cooldown_share
        used = self._time_share()
        return min(planned, (1 - used) / cooling) if used > 1 - cooling else planned

    def averages(self, step: int) -> bool:
        """Return whether the weights after `step` belong to the average."""
        first = self.steps - round(self.optim.average_share * self.steps)
        return step >= first or (
            self.optim.average_share > 0 and self._time_share() >= 1 - self.optim.average_share
        )

    def _time_share(self) -> float:
        return min(self.seconds / (60 * self.minutes), 1.0) if self.minutes > 0 else 0.0
