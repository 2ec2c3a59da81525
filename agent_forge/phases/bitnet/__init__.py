"""Make the weights of a model ternary (1.58 bit) and train until it behaves like the model it was.

Every nn.Linear becomes a ternary layer with one scale a group of 128 weights and int8 activations. The codes start
from error-compensated rounding on calibration text (GPTQ, arXiv:2210.17323), each layer aimed at what the parent's puts
out (GPTAQ, arXiv:2504.02692), and train on through the rounding, with the float parent as teacher (KL on its logits)
beside the real next tokens. Optional: scales train as parameters of their own, lambda grows from dense to
ternary over the first steps, and attention relations are matched (BitDistill, arXiv:2510.13998; MiniLM relations,
arXiv:2012.15828), hidden states are matched, or the parent writes the training text itself (mix: {own: 1}). Source of
the layer: BitNet b1.58, arXiv:2402.17764. Reads sources[0], any float causal LM with nn.Linear layers. Writes the same
architecture with `quantization_config` forge_ternary: trainable latents in the file, the packed file's size as its
deployable bytes.
"""

from dataclasses import dataclass

from agent_forge.config import OptimConfig, Phase, PhaseConfig
from agent_forge.core.errors import ConfigError, did_you_mean

INITS = ("gptq", "absmean")


@dataclass(slots=True, kw_only=True)
class LinearConfig:
    """The ternary layer; checked by models.ternary.TernarySettings."""

    group_size: int  # inputs that share one scale; 0: a whole row, -1: the whole tensor
    activation_bits: int  # per token by absmax; 0 leaves activations float
    packing: str  # five_trits or two_bit
    skip: list[str]  # patterns of module names that stay float; the output embedding always does
    embedding_bits: int  # of embeddings and head, rounded in the forward pass too: 8, 4, or 0 for float
    embedding_group: int  # columns of an embedding row that share one step; 0: the whole row
    embedding_vector: int  # columns of an embedding row that one of 256 codewords stands for: 2, 4, 8, or 0 for none
    sub_norm: list[str]  # patterns of layers that normalise their input first (SubLN)


@dataclass(slots=True, kw_only=True)
class InitConfig:
    """Where the codes start."""

    method: str  # gptq (error-compensated) or absmean (plain rounding)
    rows: int  # calibration windows of train.length_tokens
    damping: float  # added to the Hessian's diagonal, as a share of its geometric mean
    waves: int  # parts of the network compensated one after another, each seeing those before it ternary
    sweeps: int  # over all columns of a layer after that, each code chosen anew for what all others leave

    def __post_init__(self) -> None:
        if self.method not in (*INITS, "???"):
            hint = did_you_mean(self.method, INITS)
            raise ConfigError(f"init.method must be one of {', '.join(INITS)}, got '{self.method}'{hint}")
        if self.rows < 1 or self.waves < 1 or self.damping <= 0 or self.sweeps < 0:
            raise ConfigError(
                "init.rows and init.waves must be at least 1, init.damping above 0 and init.sweeps not negative, got "
                f"{self.rows}, {self.waves}, {self.damping} and {self.sweeps}; try init.rows=64 init.waves=4 "
                "init.damping=0.1 init.sweeps=4"
            )


@dataclass(slots=True, kw_only=True)
class TrainConfig:
    """The training after it."""

    steps: int  # 0 keeps the start
    rows: int  # windows a step
    length_tokens: int  # tokens a window
    mix: dict[str, float]  # kind of data -> share of the windows; own: what the parent itself writes
    embeddings: bool  # train embeddings and head too; false keeps the parent's
    scale_lr: (
        float  # of scales that are parameters, times the learning rate; 0: scales stay the mean size of the latents
    )
    blend_share: float  # share of the steps over which lambda goes from 0 (dense) to 1 (ternary)
    optim: OptimConfig

    def __post_init__(self) -> None:
        if self.scale_lr < 0:
            raise ConfigError(
                f"train.scale_lr must be at least 0 (0: no scales of their own), got {self.scale_lr}; try 1"
            )
        if not 0 <= self.blend_share <= 1:
            raise ConfigError(
                f"train.blend_share must be in [0, 1], got {self.blend_share}; try 0 with init.method=gptq"
            )


@dataclass(slots=True, kw_only=True)
class OwnConfig:
    """Windows that the parent writes itself, for the kind `own` of train.mix."""

    windows: int  # of train.length_tokens
    temperature: float  # of the sampling

    def __post_init__(self) -> None:
        if self.windows < 1 or self.temperature < 0:
            raise ConfigError(
                f"own.windows must be at least 1 and own.temperature not negative, got {self.windows} and "
                f"{self.temperature}; try own.windows=256 own.temperature=1"
            )


@dataclass(slots=True, kw_only=True)
class DistillConfig:
    """What the parent teaches. A weight of 0 switches its term off."""

    kl_weight: float  # of T² KL(parent || child) on the logits
    ce_weight: float  # of the next-token cross-entropy
    relation_weight: float  # of the KL between attention relations of the last layer
    relation_heads: int  # heads that queries, keys and values are split into for the relations
    hidden_weight: float  # of the relative squared error of the hidden states after each layer
    temperature: float  # of the KL on logits

    def __post_init__(self) -> None:
        weights = (self.kl_weight, self.ce_weight, self.relation_weight, self.hidden_weight)
        if min(weights) < 0 or max(weights) <= 0 or self.temperature <= 0 or self.relation_heads < 1:
            raise ConfigError(
                "distill weights must be at least 0 and one of them above, temperature above 0, relation_heads at "
                f"least 1; got weights {weights}, temperature {self.temperature}, relation_heads {self.relation_heads}"
            )


@dataclass(slots=True, kw_only=True)
class Config(PhaseConfig):
    """Settings of the bitnet phase."""

    linear: LinearConfig
    init: InitConfig
    train: TrainConfig
    own: OwnConfig
    distill: DistillConfig
    measure_items: int  # held-out pieces of text that bits per byte are measured on

    def work_tokens(self) -> float:
        """Return the student's trained tokens and the parent's forward passes."""
        calibration = self.init.rows * self.train.length_tokens / 3 if self.init.method == "gptq" else 0
        own = self.own.windows * self.train.length_tokens / 3 if self.train.mix.get("own", 0) > 0 else 0
        return self.train.steps * self.train.rows * self.train.length_tokens * 4 / 3 + calibration + own


PHASE = Phase(
    "bitnet", 4, "make the weights ternary and train them back", Config, promises_smaller=True, several_processes=True
)
