"""Train a model further in ten stages on one loop, with its dynamics measured at every stage.

Stages 1-3 adapt it to the data (curriculum by measured success), 4-6 inject noise and learning rate
(steered by a measured exponent), 7-8 mix in the model's own generations as replay ("dreams"), 9
models its own activations, and 10, half of the steps, cools down and averages. Rows of what the
model learned before can be replayed in every stage; dreams are the same with the model's own text
in the place of real rows. Every mechanism has a switch of its own; what no run of ours has shown to
gain is off in conf/train.yaml, and its stages are then plain training with the same telemetry. What
is on goes on only where it beats plain training of equal tokens. A run that diverges goes back to
kept weights. Sources: arXiv:2603.04964 (replay), arXiv:2504.03380
(success-rate curriculum), arXiv:2407.10188 (self-modelling), arXiv:2404.06395 (warm-up, stable,
decay), Benettin et al. 1980 (renormalised tangent vectors). Reads sources[0], any
Hugging Face causal LM (thinking or ternary ones too). Writes the trained model.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from agent_forge.config import OptimConfig, Phase, PhaseConfig
from agent_forge.config.limits import (
    Count,
    CountOrNone,
    DataMix,
    GeneratedTask,
    OneOf,
    PositiveShare,
    Range,
    Share,
    TaskName,
    Temperature,
    Weight,
    Window,
)
from agent_forge.core.errors import ConfigError

# Stage -> its mechanism, in order.
STAGES = {
    "adapt_1": "curriculum", "adapt_2": "curriculum", "adapt_3": "curriculum",
    "chaos_1": "chaos", "chaos_2": "chaos", "chaos_3": "chaos",
    "dream_1": "dream", "dream_2": "dream",
    "self_model": "self_model", "settle": "average",
}  # fmt: skip
AVERAGES = ("none", "uniform", "exponential")


@dataclass(slots=True, kw_only=True)
class StageSteps:
    """Optimiser steps of each stage; 0 leaves the stage out."""

    adapt_1: CountOrNone
    adapt_2: CountOrNone
    adapt_3: CountOrNone
    chaos_1: CountOrNone
    chaos_2: CountOrNone
    chaos_3: CountOrNone
    dream_1: CountOrNone
    dream_2: CountOrNone
    self_model: CountOrNone
    settle: CountOrNone


@dataclass(slots=True, kw_only=True)
class CurriculumConfig:
    """The curriculum: T <- T + rate * tanh(sharpness * (success - target)), as in AdaRFT.

    The difficulty T is a share of the range of difficulties.
    """

    enabled: bool
    kinds: list[GeneratedTask]
    target_success: Share
    rate: Weight
    sharpness: Weight
    start: Share
    uniform_share: Share
    every_steps: Count
    items: Count


@dataclass(slots=True, kw_only=True)
class ChaosConfig:
    """A PI controller with a deadband: the measured depth exponent sets gradient noise and learning
    rate.
    """

    enabled: bool
    target_exponent: Annotated[float, Range(-1e3, 1e3)]
    deadband: Weight
    proportional: Weight
    integral: Weight
    lr_range: Annotated[float, Range(0, 1, below=True)]
    max_noise: Weight
    every_steps: Count


@dataclass(slots=True, kw_only=True)
class RollbackConfig:
    """Go back to kept weights when the loss diverges, with a smaller learning rate."""

    enabled: bool
    every_steps: Count
    limit_nats: Weight
    lr_factor: PositiveShare
    most: CountOrNone


@dataclass(slots=True, kw_only=True)
class ReplayConfig:
    """Real rows of what the model learned before, in every stage, beside those of `mix`."""

    share: Annotated[float, Range(0, 1, below=True)]
    mix: DataMix
    texts: str


@dataclass(slots=True, kw_only=True)
class DreamConfig:
    """The model's own generations as replay, guarded by diversity and by the loss on real text."""

    enabled: bool
    share: Share
    windows: Count
    prompt_tokens: Count
    temperature: Temperature
    top_p: PositiveShare
    distinct_share: Share
    limit_nats: Weight
    every_steps: Count


@dataclass(slots=True, kw_only=True)
class SelfModelConfig:
    """A linear head on the last block predicts the activations of earlier blocks.

    The activations are detached, and scaled to a root mean square of 1.
    """

    weight: Weight
    targets: Count


@dataclass(slots=True, kw_only=True)
class MeasureConfig:
    """What is measured after every stage; nothing here changes a weight."""

    text_items: Count
    tasks: list[TaskName]
    task_items: Count
    probe_rows: Count
    probe_tokens: Window
    relative_step: Annotated[float, Range(0, 1, above=True)]
    twin_steps: CountOrNone


@dataclass(slots=True, kw_only=True)
class Config(PhaseConfig):
    """Settings of the train phase."""

    steps: StageSteps
    mix: DataMix
    mix_rows: Count
    batch_rows: Count
    length_tokens: Window
    optim: OptimConfig
    curriculum: CurriculumConfig
    chaos: ChaosConfig
    rollback: RollbackConfig
    replay: ReplayConfig
    dream: DreamConfig
    self_model: SelfModelConfig
    average: Annotated[str, OneOf(AVERAGES)]
    average_decay: Share
    only_if_better: bool
    measure: MeasureConfig
    baseline: bool

    def validate(self) -> None:
        """Check settings that depend on each other. Raises ConfigError."""
        if not 0 < self.dream.prompt_tokens < self.length_tokens:
            raise ConfigError(
                f"dream.prompt_tokens must lie between 1 and length_tokens - 1 = {self.length_tokens - 1}, "
                f"got {self.dream.prompt_tokens}; try dream.prompt_tokens={max(1, self.length_tokens // 8)}"
            )
        missing = [kind for kind in self.curriculum.kinds if kind not in self.mix]
        if self.curriculum.enabled and missing:
            raise ConfigError(
                f"curriculum.kinds names {missing}, but mix has {sorted(self.mix)}; add them to mix"
            )

    def taken_stages(self) -> list[str]:
        """Return the stages that have steps, in order."""
        return [stage for stage in STAGES if getattr(self.steps, stage) > 0]

    def is_on(self, mechanism: str) -> bool:
        """Return whether a mechanism is switched on."""
        if mechanism == "self_model":
            return self.self_model.weight > 0
        if mechanism == "replay":
            return self.replay.share > 0
        if mechanism == "average":
            return self.average != "none" and self.optim.average_share > 0
        return bool(getattr(self, mechanism).enabled)

    def replayed_texts(self) -> str:
        """Return the data set that is replayed, "" for none."""
        return self.replay.texts if self.is_on("replay") else ""

    def steered_stages(self) -> list[str]:
        """Return the stages from the first in which a mechanism acts.

        The list is empty when all stages are plain training.
        """
        stages = self.taken_stages()
        if self.is_on("replay"):
            return stages
        for i, stage in enumerate(stages):
            averaged = stage == stages[-1] and self.is_on("average")
            if averaged or (STAGES[stage] != "average" and self.is_on(STAGES[stage])):
                return stages[i:]
        return []

    def only_averages(self) -> bool:
        """Return whether the average is the one mechanism that acts."""
        alone = replace(self, average="none")
        return bool(self.steered_stages()) and not alone.steered_stages()

    def work_tokens(self) -> float:
        """Return the trained tokens of all stages, and of the plain run beside them.

        Beside an average alone nothing is trained: the weights of the last step are the plain run.
        """
        beside = self.steered_stages() if self.baseline and not self.only_averages() else []
        steps = sum(getattr(self.steps, stage) for stage in [*self.taken_stages(), *beside])
        return float(steps * self.batch_rows * self.length_tokens)

    def step_tokens(self) -> float:
        """Return the tokens of a batch."""
        return self.batch_rows * self.length_tokens


PHASE = Phase(
    "train",
    5,
    "train further in ten measured stages",
    Config,
    several_processes=True,
    effort=2.2,
    copies=8.0,
    example="runtime.dtype=auto",
)
