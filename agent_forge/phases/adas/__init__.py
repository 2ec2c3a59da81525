"""Compose expert vectors into the model and search a pool of techniques for what really helps.

An expert vector is what a short training on one kind of data changes: in the singular values of
each matrix (SVF) or in the whole matrix (task vector). The search moves the strengths of the
experts inside a trust region, races candidates on shared items, and accepts a step only when its
gain on fresh items is beyond chance, at a level that all iterations share; otherwise the input
comes back bit for bit. Techniques that change no weight (scaffolds, decoders) are settings of the
agent, kept in the manifest. Sources: Transformer^2, arXiv:2501.06252; task arithmetic,
arXiv:2212.04089; ADAS, arXiv:2408.08435. Reads sources[0], any Hugging Face causal LM of linear
layers. Writes the composed model of the same shape.
"""

from dataclasses import dataclass
from typing import Annotated

from agent_forge.config import Flag, OptimConfig, Phase, PhaseConfig
from agent_forge.config.limits import (
    ITEM_KINDS,
    MANY,
    Count,
    CountOrNone,
    Fitness,
    LearningRate,
    OneOf,
    PositiveShare,
    Range,
    Share,
    TaskName,
    Text,
    Weight,
    Window,
)
from agent_forge.core.errors import ConfigError

SVF_BY = ("cross_entropy", "policy")
PROPOSALS = ("own", "optuna", "cma")


@dataclass(slots=True, kw_only=True)
class PolicyConfig:
    """How gains are trained by reward, and how often a model has to be right for that."""

    items: Count
    samples: Annotated[int, Range(2, MANY)]
    max_new_tokens: Count
    temperature: Annotated[float, Range(0, 100, above=True)]
    probe_rows: Count
    low: Share
    high: Share

    def validate(self) -> None:
        """Raise ConfigError where no model could be right often enough."""
        if self.low > self.high:
            raise ConfigError(
                f"experts.policy.low={self.low} is above experts.policy.high={self.high}, so no "
                "model would learn by reward; swap them"
            )


@dataclass(slots=True, kw_only=True)
class ExpertsConfig:
    """How expert vectors are trained, one for each domain and kind."""

    max_parameters: Annotated[int, Range(1, 10**12)]
    batch_rows: Count
    length_tokens: Window
    rows: Count
    kl_weight: Weight
    svf_steps: CountOrNone
    svf_lr: LearningRate
    svf_by: Annotated[str, OneOf(SVF_BY)]
    policy: PolicyConfig
    task_steps: CountOrNone
    task_lr: LearningRate
    density: PositiveShare
    rank_share: PositiveShare
    optim: OptimConfig


@dataclass(slots=True, kw_only=True)
class SearchConfig:
    """The trust-region search over expert strengths, techniques and edits."""

    iterations: CountOrNone
    scale: PositiveShare
    candidates: Count
    proposals: Annotated[str, OneOf(PROPOSALS)]
    race_items: list[Count]
    race_keep: list[Count]
    pool_items: Count
    accept_items: Count
    confidence: PositiveShare
    samples: Count
    drift_limit_nats: Weight
    drift_items: Count
    edits: CountOrNone
    screened: CountOrNone
    baselines: bool


@dataclass(slots=True, kw_only=True)
class AgentSearchConfig:
    """The race of scaffolds and decoders, scored by running the agent."""

    techniques: list[str]
    tasks: list[TaskName]
    items: Count
    final_items: CountOrNone


@dataclass(slots=True, kw_only=True)
class CallGateConfig:
    """The search for a bound below which no reply begins as a call."""

    items: CountOrNone
    final_items: Count


@dataclass(slots=True, kw_only=True)
class Config(PhaseConfig):
    """Settings of the adas phase."""

    tools: list[Text]
    domains: list[Annotated[str, ITEM_KINDS]]
    fitness: Fitness
    experts: ExpertsConfig
    search: SearchConfig
    runtime_search: AgentSearchConfig
    call_gate: CallGateConfig
    test_items: Count

    def validate(self) -> None:
        """Check settings that depend on each other. Raises ConfigError."""
        if not self.domains or len(set(self.domains)) != len(self.domains):
            raise ConfigError(
                f"domains must name at least one kind of data, each once, got {list(self.domains)}"
            )
        search = self.search
        if len(search.race_keep) != len(search.race_items) - 1 or not search.race_items:
            raise ConfigError(
                f"search.race_keep must have one entry fewer than search.race_items, got {list(search.race_keep)} "
                f"and {list(search.race_items)}; try race_items=[3,8,24] race_keep=[2,1]"
            )
        if sum(search.race_items) > search.pool_items:
            raise ConfigError(
                f"search.pool_items={search.pool_items} cannot hold distinct rounds of {list(search.race_items)}; "
                f"try search.pool_items={2 * sum(search.race_items)}"
            )
        level = (1 - search.confidence) / max(search.iterations, 1)
        if search.accept_items < 2 or level * (search.samples + 1) < 1:
            raise ConfigError(
                f"search.accept_items={search.accept_items} and search.samples={search.samples} can never show a "
                f"gain at the level {level:.4g} of each of {search.iterations} iterations; use at least 2 items, "
                f"confidence below 1 and {int(1 / max(level, 1e-9))} samples"
            )

    def work_tokens(self) -> float:
        """Return the experts' trained tokens and the search's forward passes, at about 100 tokens
        per item.
        """
        experts, search = self.experts, self.search
        trained = len(self.domains) * (experts.svf_steps + experts.task_steps) * experts.batch_rows
        entrants = [search.candidates, *search.race_keep]
        raced = (
            sum(n * items for n, items in zip(entrants, search.race_items, strict=True))
            + 2 * search.accept_items
        )
        runs = 3 if search.baselines else 1
        return (
            trained * experts.length_tokens
            + runs * search.iterations * raced * len(self.fitness) * 100 / 3
        )

    def step_tokens(self) -> float:
        """Return the tokens of a batch of an expert's training."""
        return self.experts.batch_rows * self.experts.length_tokens


PHASE = Phase(
    "adas",
    7,
    "compose expert vectors and techniques that really help",
    Config,
    effort=3.0,
    copies=2.0,
    flags=(
        Flag(
            "list",
            "List the pool of techniques with their sources, and run nothing.",
            shows="agent_forge.phases.adas.pool:listing",
        ),
    ),
    example="search.iterations=5",
)
