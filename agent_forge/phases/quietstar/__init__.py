"""Teach a model to think before it speaks, where that helps, and to stay silent where it does not.

Objective `quiet_star`: a thought is sampled at many positions at once, the true tokens after it are predicted with and
without it, and the model learns from both: cross-entropy of the base, cross-entropy of the mixture,
and REINFORCE on the thought's tokens with the other thoughts of the same position as its baseline.
The gate of generate() is set from held-out tokens: it opens at the entropies where thinking lowers
the loss beyond chance, and stays shut when there are none. Then, and where plain training of equal
tokens does as well, the parent goes on unchanged. Source: Quiet-STaR, arXiv:2403.09629;
leave-one-out baseline as in Kool et al. 2019, "Buy 4 REINFORCE samples". Reads sources[0], any
Hugging Face causal LM with full attention. Writes the thinking model around it (model type
"thought").

Objective `rlp`: the same thoughts, reinforced by how much likelier they make the next token than a
slow average of the weights finds it without one (`rlp.py`, arXiv:2510.01265). Objective
`task_thoughts`: rationales in words before answers (`task_thoughts.py`); writes a model of the
parent's kind. On general text thoughts at every position have no public gain below 1.7 billion
parameters, whichever of the two objectives teaches them.
"""

from dataclasses import dataclass
from typing import Annotated

from agent_forge.config import OptimConfig, Phase, PhaseConfig
from agent_forge.config.limits import (
    MANY,
    Count,
    CountOrNone,
    DataMix,
    LearningRate,
    OneOf,
    PositiveShare,
    Range,
    Share,
    Temperature,
    Weight,
    Window,
)
from agent_forge.core.errors import ConfigError

OBJECTIVES = ("quiet_star", "rlp", "task_thoughts")


@dataclass(slots=True, kw_only=True)
class MeasureConfig:
    """How much held-out data thinking is measured on, for each kind of data in `mix`."""

    windows: Count
    positions: Count
    samples: Count
    shown: CountOrNone


@dataclass(slots=True, kw_only=True)
class RlpConfig:
    """How `rlp` reinforces thoughts."""

    ema_decay: Annotated[float, Range(0, 1, below=True)]
    clip: Annotated[float, Range(0, 1, above=True, below=True)]
    updates: Count
    thinking_weight: Weight
    base_weight: Weight


@dataclass(slots=True, kw_only=True)
class TaskConfig:
    """How `task_thoughts` learns rationales and reinforces them."""

    rows: Count
    steps: CountOrNone
    lr: LearningRate
    text_share: Annotated[float, Range(0, 1, below=True)]
    control: bool
    reinforce_steps: CountOrNone
    reinforce_lr: LearningRate
    items: Count
    samples: Annotated[int, Range(2, MANY)]
    max_new_tokens: Count
    temperature: Annotated[float, Range(0, 100, above=True)]
    low: Share
    high: Share
    kl_weight: Weight
    measure_items: Count

    def validate(self) -> None:
        """Raise ConfigError where no group of replies could teach."""
        if self.low > self.high:
            raise ConfigError(
                f"task.low={self.low} is above task.high={self.high}, so no group of replies would "
                "teach; swap them"
            )


@dataclass(slots=True, kw_only=True)
class Config(PhaseConfig):
    """Settings of the quietstar phase."""

    objective: Annotated[str, OneOf(OBJECTIVES)]
    thought_length: Count
    thoughts: Annotated[int, Range(2, MANY)]
    lookahead: Count
    temperature: Temperature
    generate_thoughts: Count
    start_text: str
    end_text: str
    steps: CountOrNone
    batch_rows: Count
    length_tokens: Window
    positions: Count
    mix: DataMix
    base_weight: Weight
    mixed_weight: Weight
    policy_weight: Weight
    normalise_advantage: bool
    base_lr: LearningRate
    group_clip_norm: Weight
    gate_shares: list[PositiveShare]
    only_if_better: bool
    baseline: bool
    optim: OptimConfig
    rlp: RlpConfig
    task: TaskConfig
    measure: MeasureConfig

    def validate(self) -> None:
        """Check settings that depend on each other. Raises ConfigError."""
        if self.positions + self.lookahead >= self.length_tokens:
            raise ConfigError(
                f"positions ({self.positions}) and lookahead ({self.lookahead}) must fit into a window of "
                f"length_tokens={self.length_tokens}; try length_tokens={2 * (self.positions + self.lookahead)}"
            )

    def work_tokens(self) -> float:
        """Return the trained tokens: windows, and the thoughts with the true tokens after them,
        which are sampled and then read again.

        Measuring adds forward passes: with thoughts over the windows of two splits, and without
        thoughts over the windows of one.
        """
        if self.objective == "task_thoughts":
            task = self.task
            tuned = (1 + task.control) * task.steps * self.batch_rows * self.length_tokens
            replies = task.reinforce_steps * task.items * task.samples * task.max_new_tokens
            scored = 4 * task.measure_items * task.max_new_tokens
            return tuned + 3 * replies + scored / 3
        columns = self._thought_tokens()
        kinds = sum(weight > 0 for weight in self.mix.values())
        measured = self.measure.positions * self.thoughts * (self.thought_length + 3)
        passes = kinds * self.measure.windows * (3 * self.length_tokens + 2 * measured)
        again = 0.0  # forward passes without a gradient: of the EMA, and of what samples
        if self.objective == "rlp":
            again = self.length_tokens + (self.rlp.updates > 1) * (self.length_tokens + columns)
        plainly = 0.0
        if self.baseline and self.base_lr and self.steps:
            plainly = self.steps * self.batch_rows * self.length_tokens
            passes += 2 * kinds * self.measure.windows * self.length_tokens
        return (
            self.steps * self.batch_rows * (self.length_tokens + (columns * 4 + again) / 3)
            + plainly
            + passes / 3
        )

    def _thought_tokens(self) -> int:
        """Return the columns of a window's thoughts and of the true tokens after them."""
        lookahead = 1 if self.objective == "rlp" else self.lookahead
        return self.positions * self.thoughts * (self.thought_length + lookahead + 2)

    def step_tokens(self) -> float:
        """Return the tokens of a batch: its windows, and its thoughts with the true tokens after
        them.
        """
        return self.batch_rows * (self.length_tokens + self._thought_tokens())


PHASE = Phase(
    "quietstar",
    3,
    "teach the model to think where it is unsure",
    Config,
    several_processes=True,
    effort=2.0,
    example="thoughts=2",
)
