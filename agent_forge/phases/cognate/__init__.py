"""Create the foundation models: one trunk, and three specialists branched from it so that they can
be merged.

Pretrains a Cognate trunk on real text and generated tasks (or takes an imported model as trunk),
then trains three copies of equal shape: reasoning (chain-of-thought data, deeper loops),
memory_integration (recall across segments through written memory) and adaptive_computation (mixed
difficulty with a price on passes). Recall is in the trunk's mix too, because learning it from
nothing takes more steps than a specialist has, and because a trunk that never reads memory closes
the gates of its reads. Branching from one trunk makes the specialists mergeable:
branch-train-merge, arXiv:2208.03306. Reads text, and sources[0] when model=imported; writes
out/trunk, out/reasoning, out/memory_integration, out/adaptive_computation.
"""

from dataclasses import dataclass
from typing import Annotated

from agent_forge.config import OptimConfig, Phase, PhaseConfig
from agent_forge.config.limits import (
    BYTE_VOCABULARY,
    Count,
    CountOrNone,
    OneOf,
    PositiveShare,
    Range,
    Share,
    SomeWeight,
    Weight,
    Window,
    data_kinds,
)
from agent_forge.core.errors import ConfigError

KINDS = ("cognate", "imported")
SPECIALISTS = ("reasoning", "memory_integration", "adaptive_computation")


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """Shape of the Cognate that is created; with kind=imported only `kind` is read."""

    kind: Annotated[str, OneOf(KINDS)]
    vocab_size: Annotated[int, Range(BYTE_VOCABULARY, 10_000_000)]
    hidden_size: Annotated[int, Range(2, 1_000_000)]
    intermediate_size: Annotated[int, Range(1, 10_000_000)]
    num_hidden_layers: Annotated[int, Range(1, 10_000)]
    num_attention_heads: Annotated[int, Range(1, 10_000)]
    max_loops: Annotated[int, Range(1, 1000)]
    halting_size: Annotated[int, Range(1, 1_000_000)]
    memory_slots: Count
    memory_top_k: Count
    written_slots: Count
    max_position_embeddings: Count
    initializer_range: Annotated[float, Range(0, 10, above=True)]

    def validate(self) -> None:
        """Check settings that depend on each other. Raises ConfigError."""
        width, heads = self.hidden_size, self.num_attention_heads
        if width % (2 * heads):
            near = max(1, round(width / (2 * heads))) * 2 * heads
            raise ConfigError(
                f"model.hidden_size must be an even multiple of model.num_attention_heads={heads}, got {width}; "
                f"try model.hidden_size={near}"
            )
        if self.memory_top_k > self.memory_slots:
            raise ConfigError(
                f"model.memory_top_k={self.memory_top_k} exceeds model.memory_slots={self.memory_slots}; lower it"
            )


@dataclass(slots=True, kw_only=True)
class TrunkConfig:
    """Pretraining of the trunk; skipped with model=imported."""

    steps: CountOrNone
    rows: Count
    length_tokens: Window
    one_pass_share: Share
    mix: Annotated[dict[Annotated[str, data_kinds("recall")], Weight], SomeWeight()]
    optim: OptimConfig


@dataclass(slots=True, kw_only=True)
class SpecialistConfig:
    """One specialist: its data and its settings as a Cognate (an imported model has data only)."""

    mix: Annotated[dict[Annotated[str, data_kinds("recall")], Weight], SomeWeight()]
    steps_scale: Annotated[float, Range(0, 1e6)]
    halting_lr_scale: Annotated[float, Range(0, 1e6)]
    halting_threshold: PositiveShare
    surprise_weight: Weight
    novelty_weight: Weight
    halting_loss_weight: Weight
    entropy_cost: Weight
    ponder_cost: Weight
    ponder_from: Annotated[float, Range(0, 1, below=True)]
    read_loss_weight: Weight
    write_loss_weight: Weight


@dataclass(slots=True, kw_only=True)
class RecallConfig:
    """Rows of recall: a segment of facts, segments of text, a segment of questions; only memory
    joins them.
    """

    segment_tokens: Window
    filler_segments: CountOrNone
    filler_from: Share
    context_weight: Weight


@dataclass(slots=True, kw_only=True)
class BranchConfig:
    """Training that the three specialists share: all weights, or low-rank adapters."""

    steps: CountOrNone
    rows: Count
    length_tokens: Window
    lora_rank: CountOrNone
    lora_alpha: Annotated[float, Range(0, 1e6, above=True)]
    optim: OptimConfig


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
    generated_rows: Count
    tokenizer_rows: CountOrNone
    probe_items: Count
    baseline: bool
    union: bool

    def starts_from_nothing(self) -> bool:
        """Return whether the phase works without a source."""
        return self.model.kind != "imported"

    def work_tokens(self) -> float:
        """Return trained tokens, times the passes of the stack that each takes."""
        imported = self.model.kind == "imported"
        passes = 1 if imported else self.model.max_loops
        scales = sum(
            one.steps_scale
            for one in (self.reasoning, self.memory_integration, self.adaptive_computation)
        )
        branch = scales * self.branch.steps * self.branch.rows * self.branch.length_tokens * passes
        share = self.trunk.one_pass_share
        trunk = (
            self.trunk.steps
            * self.trunk.rows
            * self.trunk.length_tokens
            * (share + (1 - share) * passes)
        )
        longer = branch / 3 if self.baseline else 0
        union = branch if self.union else 0
        return branch + union + (0 if imported else trunk + longer)

    def longer_steps(self) -> int:
        """Return the optimiser steps of the trunk that is trained as long as a specialist: their
        mean, at least 1.
        """
        return max(
            round(sum(self.branch_steps(name) for name in SPECIALISTS) / len(SPECIALISTS)), 1
        )

    def branch_steps(self, name: str) -> int:
        """Return the optimiser steps of specialist `name`."""
        settings: SpecialistConfig = getattr(self, name)
        return max(round(settings.steps_scale * self.branch.steps), 1)

    def step_tokens(self) -> float:
        """Return the tokens of the larger of the two trainings' batches."""
        parts = (self.trunk, self.branch) if self.starts_from_nothing() else (self.branch,)
        return max(part.rows * part.length_tokens for part in parts)


PHASE = Phase(
    "cognate",
    1,
    "Pretrain a trunk and branch three specialists from it",
    Config,
    several_processes=True,
    effort=0.8,
    writes=5,
    example="model=25m",
)
