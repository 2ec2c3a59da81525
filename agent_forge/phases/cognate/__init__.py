"""Create the foundation models: one trunk, and three specialists branched from it so that they can be merged.

Pretrains a Cognate trunk on real text and generated tasks (or takes an imported model as trunk), then trains three
copies of equal shape: reasoning (chain-of-thought data, deeper loops), memory_integration (recall across segments
through written memory) and adaptive_computation (mixed difficulty with a price on passes). Recall is in the trunk's
mix too: learned from nothing it takes more steps than a specialist has, and a trunk that never reads memory closes the
gates of its reads. Branching from one trunk
is what makes them mergeable: branch-train-merge, arXiv:2208.03306. Reads text, and sources[0] when model=imported;
writes out/trunk, out/reasoning, out/memory_integration, out/adaptive_computation.
"""

from dataclasses import dataclass

from agent_forge.config import OptimConfig, Phase, PhaseConfig
from agent_forge.core.errors import ConfigError

KINDS = ("cognate", "imported")


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """Shape of the Cognate to make; with kind=imported only `kind` is read."""

    kind: str  # cognate or imported
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_loops: int  # passes of the stack
    halting_size: int  # hidden width of the halting head
    memory_slots: int  # trainable slots
    memory_top_k: int  # slots that a token reads in a layer
    written_slots: int  # slots that a sequence can write
    max_position_embeddings: int
    initializer_range: float

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, "???"):
            raise ConfigError(f"model.kind must be one of {', '.join(KINDS)}, got '{self.kind}'")


@dataclass(slots=True, kw_only=True)
class TrunkConfig:
    """Pretraining of the trunk; skipped with model=imported."""

    steps: int
    rows: int
    length_tokens: int
    one_pass_share: float  # first share of the steps that trains a single pass of the stack
    mix: dict[str, float]  # text, a generated task, or recall (whole steps of it) -> share
    optim: OptimConfig


@dataclass(slots=True, kw_only=True)
class SpecialistConfig:
    """One specialist: its data and its settings as a Cognate (an imported model has data only)."""

    mix: dict[str, float]
    steps_scale: float  # times branch.steps
    halting_lr_scale: float  # the halting head's learning rate, as a multiple of the others'
    halting_threshold: float  # a token exits when its cumulated halting probability reaches this
    surprise_weight: float  # priority of a write: surprise ...
    novelty_weight: float  # ... and novelty
    halting_loss_weight: float
    entropy_cost: float  # inside the halting loss
    ponder_cost: float  # inside the halting loss, for passes beyond the first
    ponder_from: float  # share of the steps before passes have that price; until then all passes are learned evenly
    read_loss_weight: float
    write_loss_weight: float

    def __post_init__(self) -> None:
        if isinstance(self.halting_threshold, float) and not 0 < self.halting_threshold <= 1:
            raise ConfigError(f"halting_threshold must be in (0, 1], got {self.halting_threshold}")
        if isinstance(self.ponder_from, float) and not 0 <= self.ponder_from < 1:
            raise ConfigError(f"ponder_from must be in [0, 1), got {self.ponder_from}; set ponder_cost=0 for no price")


@dataclass(slots=True, kw_only=True)
class RecallConfig:
    """Rows of recall: a segment of facts, segments of text, a segment of questions; only memory joins them."""

    segment_tokens: int
    filler_segments: int  # segments of text between facts and questions
    filler_from: float  # share of a stage's steps before the text comes between
    context_weight: float  # of the loss on facts and text, beside that on the answers

    def __post_init__(self) -> None:
        if isinstance(self.filler_segments, int) and self.filler_segments < 0:
            raise ConfigError(f"recall.filler_segments must be at least 0, got {self.filler_segments}")


@dataclass(slots=True, kw_only=True)
class BranchConfig:
    """Training that the three specialists share: all weights, or low-rank adapters."""

    steps: int
    rows: int
    length_tokens: int
    lora_rank: int  # of the adapters that are trained and then merged; 0 trains all weights
    lora_alpha: float  # the adapters' products count alpha / rank times
    optim: OptimConfig

    def __post_init__(self) -> None:
        if isinstance(self.lora_rank, int) and self.lora_rank < 0:
            raise ConfigError(f"branch.lora_rank must be at least 0 (0 trains all weights), got {self.lora_rank}")


@dataclass(slots=True, kw_only=True)
class Config(PhaseConfig):
    """Settings of `forge cognate`."""

    model: ModelConfig
    trunk: TrunkConfig
    branch: BranchConfig
    recall: RecallConfig
    reasoning: SpecialistConfig
    memory_integration: SpecialistConfig
    adaptive_computation: SpecialistConfig
    generated_rows: int  # training rows of each generated task
    tokenizer_rows: int  # rows of each generated task that the tokenizer is trained on, beside the text
    probe_items: int  # validation items of each probe

    def starts_from_nothing(self) -> bool:
        """Say whether the phase needs no source."""
        return self.model.kind != "imported"

    def work_tokens(self) -> float:
        """Return trained tokens, times the passes of the stack that each takes."""
        imported = self.model.kind == "imported"
        passes = 1 if imported else self.model.max_loops
        scales = sum(one.steps_scale for one in (self.reasoning, self.memory_integration, self.adaptive_computation))
        branch = scales * self.branch.steps * self.branch.rows * self.branch.length_tokens * passes
        share = self.trunk.one_pass_share
        trunk = self.trunk.steps * self.trunk.rows * self.trunk.length_tokens * (share + (1 - share) * passes)
        return branch + (0 if imported else trunk)


PHASE = Phase("cognate", 1, "Pretrain a trunk and branch three specialists from it", Config, several_processes=True)
