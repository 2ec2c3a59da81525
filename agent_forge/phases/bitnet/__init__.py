"""Make the weights of a model ternary (1.58 bit) and train until it behaves like the model it was.

Every nn.Linear becomes a ternary layer with one scale per group of 128 weights and int8
activations. The codes start from error-compensated rounding on calibration text (GPTQ,
arXiv:2210.17323), each layer aimed at what the parent's puts out (GPTAQ, arXiv:2504.02692), and
train on through the rounding, with the float parent as teacher (KL on its logits) beside the real
next tokens. Options: scales train as parameters of their own; lambda grows from dense to ternary
over the first steps; attention relations are matched (BitDistill, arXiv:2510.13998; MiniLM
relations, arXiv:2012.15828); hidden states are matched; the parent writes the training text itself
(mix: {own: 1}); embedding and head are rounded too, to 8 or 4 bits or ternary. Source of the
layer: BitNet b1.58, arXiv:2402.17764. Reads sources[0], any float causal LM with nn.Linear layers.
Writes the same architecture with `quantization_config` forge_ternary: trainable latents in the
file, the packed file's size as its deployable bytes. What was tried and lost (a bias of the dead
zone, one zero in every four weights, rotated inputs) is in docs/log.md.
"""

from dataclasses import dataclass
from typing import Annotated

from agent_forge.config import OptimConfig, Phase, PhaseConfig
from agent_forge.config.limits import (
    Count,
    CountOrNone,
    OneOf,
    Range,
    Share,
    SomeWeight,
    Temperature,
    Weight,
    Window,
    data_kinds,
)
from agent_forge.config.ternary import TernarySettings
from agent_forge.core.errors import ConfigError

INITS = ("gptq", "absmean")


@dataclass(slots=True, kw_only=True)
class InitConfig:
    """Where the codes start."""

    method: Annotated[str, OneOf(INITS)]
    rows: Count
    damping: Annotated[float, Range(0, 1e6, above=True)]
    waves: Count
    sweeps: CountOrNone


@dataclass(slots=True, kw_only=True)
class TrainConfig:
    """The training that follows the start of the codes."""

    steps: CountOrNone
    rows: Count
    length_tokens: Window
    mix: Annotated[dict[Annotated[str, data_kinds("own")], Weight], SomeWeight()]
    texts: str
    embeddings: bool
    scale_lr: Weight
    blend_share: Share
    optim: OptimConfig


@dataclass(slots=True, kw_only=True)
class OwnConfig:
    """Windows that the parent writes itself, for the kind `own` of train.mix."""

    windows: Count
    temperature: Temperature


@dataclass(slots=True, kw_only=True)
class DistillConfig:
    """What the parent teaches. A weight of 0 switches its term off."""

    kl_weight: Weight
    ce_weight: Weight
    relation_weight: Weight
    relation_heads: Count
    hidden_weight: Weight
    temperature: Annotated[float, Range(0, 100, above=True)]

    def validate(self) -> None:
        """Check settings that depend on each other. Raises ConfigError."""
        weights = (self.kl_weight, self.ce_weight, self.relation_weight, self.hidden_weight)
        if not any(weights):
            raise ConfigError(
                "distill teaches nothing: set one of its weights above 0, as in distill.kl_weight=1"
            )


@dataclass(slots=True, kw_only=True)
class Config(PhaseConfig):
    """Settings of the bitnet phase."""

    linear: TernarySettings
    init: InitConfig
    train: TrainConfig
    own: OwnConfig
    distill: DistillConfig
    measure_items: Count
    unseen_items: Count
    domain_items: CountOrNone

    def work_tokens(self) -> float:
        """Return the student's trained tokens and the parent's forward passes."""
        calibration = (
            self.init.rows * self.train.length_tokens / 3 if self.init.method == "gptq" else 0
        )
        own = (
            self.own.windows * self.train.length_tokens / 3
            if self.train.mix.get("own", 0) > 0
            else 0
        )
        return (
            self.train.steps * self.train.rows * self.train.length_tokens * 4 / 3
            + calibration
            + own
        )

    def step_tokens(self) -> float:
        """Return the tokens of a batch, for the student and the passing teacher."""
        return 4 / 3 * self.train.rows * self.train.length_tokens


PHASE = Phase(
    "bitnet",
    4,
    "make the weights ternary and train them back",
    Config,
    promises_smaller=True,
    several_processes=True,
    effort=1.6,
    copies=6.0,
    example="linear.embedding_bits=4 linear.embedding_group=64",
)
