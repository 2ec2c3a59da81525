"""Train a model further in ten stages on one loop, with its dynamics measured at every stage.

Stages 1-3 adapt it to the data (curriculum by measured success), 4-6 inject noise and learning rate (steered by a
measured exponent), 7-8 mix in the model's own generations as replay ("dreams"), 9 models its own activations, and 10
cools down and averages. Every mechanism has a switch of its own; what has not won an honest ablation here is off in
conf/train.yaml, and its stages are then plain training with the same telemetry. Instability goes back to kept weights.
Sources: arXiv:2504.03380 (success-rate curriculum), arXiv:2407.10188 (self-modelling), arXiv:2404.06395 (warm-up,
stable, decay), Benettin et al. 1980 (renormalised tangent vectors).
Reads sources[0], any Hugging Face causal LM (thinking or ternary ones too). Writes the trained model.
"""

from dataclasses import asdict, dataclass

from agent_forge.config import OptimConfig, Phase, PhaseConfig
from agent_forge.core.errors import ConfigError, did_you_mean

AVERAGES = ("none", "uniform", "exponential")


@dataclass(slots=True, kw_only=True)
class StageSteps:
    """Optimiser steps of each stage; 0 leaves the stage out."""

    adapt_1: int
    adapt_2: int
    adapt_3: int
    chaos_1: int
    chaos_2: int
    chaos_3: int
    dream_1: int
    dream_2: int
    self_model: int
    settle: int


@dataclass(slots=True, kw_only=True)
class CurriculumConfig:
    """AdaRFT-style: T <- T + rate * tanh(sharpness * (success - target)), in shares of the range of difficulty."""

    enabled: bool
    kinds: list[str]  # generated tasks whose difficulty is steered; each is a kind of `mix` with a task of its name
    target_success: float  # the success rate that is aimed at
    rate: float  # largest change of T (0..1) at a measurement
    sharpness: float
    start: float  # T at the beginning: 0 is the easiest level, 1 the hardest
    uniform_share: float  # share of windows drawn from all levels alike, against forgetting
    every_steps: int  # steps between measurements
    items: int  # rows a measurement and kind, from the search split


@dataclass(slots=True, kw_only=True)
class ChaosConfig:
    """A PI controller with deadband on gradient noise and learning rate, fed by the measured depth exponent."""

    enabled: bool
    target_exponent: float  # nats a block
    deadband: float  # errors below this are ignored, in nats a block
    proportional: float  # control per nat of error
    integral: float  # control per nat of error and measurement
    lr_range: float  # the learning rate stays within 1 ± this of its schedule
    max_noise: float  # gradient noise at full control, relative to the gradient's RMS
    every_steps: int  # steps between measurements


@dataclass(slots=True, kw_only=True)
class RollbackConfig:
    """Go back to kept weights when the loss diverges, with a smaller learning rate."""

    enabled: bool
    every_steps: int  # steps between keeps
    limit_nats: float  # loss above its running mean by this much is divergence
    lr_factor: float  # learning rate after a rollback, relative to before
    most: int  # rollbacks a stage; one more ends the phase


@dataclass(slots=True, kw_only=True)
class DreamConfig:
    """The model's own generations as replay, guarded by diversity and by the loss on real text."""

    enabled: bool
    share: float  # of the text windows that dreams replace
    windows: int  # dreams a cycle
    prompt_tokens: int  # real tokens that a dream begins with
    temperature: float
    top_p: float
    distinct_share: float  # distinct bigrams of the dreams relative to real text, below which they are not used
    limit_nats: float  # rise of the loss on real held-out text that ends the replay
    every_steps: int  # steps between looks at that loss


@dataclass(slots=True, kw_only=True)
class SelfModelConfig:
    """A linear head predicts RMS-normalised, detached activations of earlier blocks from the last one."""

    weight: float  # of its squared error; 0 switches it off
    targets: int  # blocks whose activations are predicted


@dataclass(slots=True, kw_only=True)
class MeasureConfig:
    """What is measured after every stage; nothing here changes a weight."""

    text_items: int  # pieces of validation text for bits per byte
    tasks: list[str]  # evaluation tasks for success rates
    task_items: int  # validation items a task
    probe_rows: int  # windows for exponents
    probe_tokens: int  # tokens of such a window
    relative_step: float  # size of a perturbation relative to what it perturbs
    twin_steps: int  # steps that weight twins train for; 0 leaves this exponent out


@dataclass(slots=True, kw_only=True)
class Config(PhaseConfig):
    """Settings of the train phase."""

    steps: StageSteps
    mix: dict[str, float]  # kind of data -> share of the windows
    mix_rows: int  # generated rows a kind
    batch_rows: int  # windows a step
    length_tokens: int  # tokens a window
    optim: OptimConfig  # warm-up belongs to the first stage, cool-down and averaging to the last
    curriculum: CurriculumConfig
    chaos: ChaosConfig
    rollback: RollbackConfig
    dream: DreamConfig
    self_model: SelfModelConfig
    average: str  # none, uniform or exponential, over the last optim.average_share of the last stage
    average_decay: float  # of the exponential average
    measure: MeasureConfig

    def __post_init__(self) -> None:
        if self.average not in AVERAGES:
            hint = did_you_mean(self.average, AVERAGES)
            raise ConfigError(f"average must be one of {', '.join(AVERAGES)}, got '{self.average}'{hint}")
        for name, value in (
            ("optim.average_share", self.optim.average_share), ("dream.share", self.dream.share),
            ("curriculum.start", self.curriculum.start), ("curriculum.uniform_share", self.curriculum.uniform_share),
            ("curriculum.target_success", self.curriculum.target_success), ("average_decay", self.average_decay),
        ):  # fmt: skip
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {value}; try {name}=0.5")
        if not 0 <= self.chaos.lr_range < 1:
            raise ConfigError(f"chaos.lr_range must lie in [0, 1), got {self.chaos.lr_range}; try chaos.lr_range=0.5")
        if not 0 < self.dream.prompt_tokens < self.length_tokens:
            raise ConfigError(
                f"dream.prompt_tokens must lie between 1 and length_tokens - 1 = {self.length_tokens - 1}, "
                f"got {self.dream.prompt_tokens}; try dream.prompt_tokens={max(1, self.length_tokens // 8)}"
            )
        for name in ("curriculum", "chaos", "rollback", "dream"):
            if getattr(self, name).every_steps < 1:
                raise ConfigError(f"{name}.every_steps must be at least 1; switch it off with {name}.enabled=false")
        missing = [kind for kind in self.curriculum.kinds if kind not in self.mix]
        if self.curriculum.enabled and missing:
            raise ConfigError(f"curriculum.kinds names {missing}, but mix has {sorted(self.mix)}; add them to mix")

    def work_tokens(self) -> float:
        """Return the trained tokens of all stages."""
        return sum(asdict(self.steps).values()) * self.batch_rows * self.length_tokens


PHASE = Phase("train", 5, "train further in ten measured stages", Config, several_processes=True)
