"""Compose expert vectors into the model and search a pool of techniques for what really helps.

An expert vector is what a short training on one kind of data changes: in the singular values of each matrix (SVF) or in
the whole matrix (task vector). The search moves the strengths of the experts inside a trust region, races candidates on
shared items, and accepts a step only when the paired-bootstrap lower bound of its gain is above zero; otherwise the
input comes back bit for bit. Techniques that change no weight (scaffolds, decoders) are settings of the agent, kept in
the manifest. Sources: Transformer^2, arXiv:2501.06252; task arithmetic, arXiv:2212.04089; ADAS, arXiv:2408.08435.
Reads sources[0], any Hugging Face causal LM of linear layers. Writes the composed model of the same shape.
"""

from dataclasses import dataclass

from agent_forge.config import OptimConfig, Phase, PhaseConfig
from agent_forge.core.errors import ConfigError


@dataclass(slots=True, kw_only=True)
class ExpertsConfig:
    """How expert vectors are trained, one for each domain and kind."""

    max_parameters: int  # of the matrices that experts may change, spread evenly over depth
    batch_rows: int  # windows a step
    length_tokens: int  # tokens a window
    rows: int  # generated rows of a domain
    kl_weight: float  # of KL(base || expert) at the trained positions
    svf_steps: int  # training steps of an SVF vector
    svf_lr: float  # its peak learning rate (singular gains; 0.01 moves a singular value by about 1% a step)
    task_steps: int  # training steps of a task vector
    task_lr: float  # its peak learning rate
    density: float  # share of entries that trimmed techniques keep
    rank_share: float  # share of singular directions that rank cuts keep
    optim: OptimConfig  # its lr is replaced by svf_lr and task_lr


@dataclass(slots=True, kw_only=True)
class SearchConfig:
    """The trust-region search over expert strengths, techniques and edits."""

    iterations: int
    scale: float  # most that any strength moves in one iteration
    candidates: int  # an iteration
    race_items: list[int]  # items a fitness task in each round of the race; the last decides
    race_keep: list[int]  # candidates left after each round but the last
    pool_items: int  # search-split items a fitness task that rounds draw from
    confidence: float  # one-sided, of the acceptance bound
    samples: int  # bootstrap resamples
    drift_limit_nats: float  # most KL(input || candidate) a token on neutral text
    drift_items: int  # pieces of neutral text
    edits: int  # most edits of architecture or activation
    baselines: bool  # also run random search and random vectors of equal norm, at equal budget


@dataclass(slots=True, kw_only=True)
class AgentSearchConfig:
    """The race of scaffolds and decoders, scored by running the agent."""

    techniques: list[str]  # names of the pool's runtime techniques; [] skips the race
    tasks: list[str]  # reasoning, memory, tools
    items: int  # rows a task in the first round
    final_items: int  # fresh rows a task for the best one


@dataclass(slots=True, kw_only=True)
class Config(PhaseConfig):
    """Settings of the adas phase."""

    domains: list[str]  # kinds of data with an expert of their own: text, or a generated task
    fitness: dict[str, float]  # kind of data -> weight of its loss in nats a token
    experts: ExpertsConfig
    search: SearchConfig
    runtime_search: AgentSearchConfig
    test_items: int  # test-split items a fitness task, opened once at the end

    def __post_init__(self) -> None:
        if not self.domains or len(set(self.domains)) != len(self.domains):
            raise ConfigError(f"domains must name at least one kind of data, each once, got {list(self.domains)}")
        if not self.fitness or min(self.fitness.values()) < 0 or sum(self.fitness.values()) <= 0:
            raise ConfigError(f"fitness needs weights >= 0 with a positive sum, got {dict(self.fitness)}")
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
        for name, value in (("scale", search.scale), ("confidence", search.confidence)):
            if not 0 < value <= 1:
                raise ConfigError(f"search.{name} must be in (0, 1], got {value}")
        for name, value in (("density", self.experts.density), ("rank_share", self.experts.rank_share)):
            if not 0 < value <= 1:
                raise ConfigError(f"experts.{name} must be in (0, 1], got {value}")

    def work_tokens(self) -> float:
        """Return the experts' trained tokens and the search's forward passes, at about 100 tokens an item."""
        experts, search = self.experts, self.search
        trained = len(self.domains) * (experts.svf_steps + experts.task_steps) * experts.batch_rows
        entrants = [search.candidates, *search.race_keep]
        raced = sum(n * items for n, items in zip(entrants, search.race_items, strict=True))
        runs = 3 if search.baselines else 1
        return trained * experts.length_tokens + runs * search.iterations * raced * len(self.fitness) * 100 / 3


PHASE = Phase("adas", 7, "compose expert vectors and techniques that really help", Config)
