"""Bake tool use, memory use and a persona into the weights.

Traces come from really run tools: generated questions are answered by the calculator, a SQLite memory, the code sandbox
and a passage store, and kept where the call lowers the loss of the answer. The model learns the assistant's turns by
cross-entropy, stays near the parent on text by KL, and takes on traits by KL to the parent under a system prompt, each
to a measured strength. Reads one checkpoint, writes one, with the enabled tools in its manifest.
Sources: Toolformer (Schick et al. 2023, arXiv:2302.04761), prompt baking (Bhargava et al. 2024, arXiv:2409.13697).
"""

from dataclasses import dataclass

from agent_forge.config import OptimConfig, Phase, PhaseConfig
from agent_forge.core.errors import ConfigError

KINDS = ("calculator", "memory", "code", "retrieve")


@dataclass(slots=True, kw_only=True)
class KindConfig:
    """One kind of trace. A kind with count 0 is not made, not measured, and its tools are not enabled."""

    count: int  # questions answered by the real tool
    weight: float  # share of the learned rows, relative to the other kinds and to training.mix


@dataclass(slots=True, kw_only=True)
class TracesConfig:
    """How many questions of each kind are answered by real tools, and which of the traces are kept."""

    calculator: KindConfig
    memory: KindConfig
    code: KindConfig
    retrieve: KindConfig
    tau_nats: float  # keep a trace when the call lowers the weighted loss of its answer by at least this
    min_kept_share: float  # where fewer pass, the best are taken up to this share, with a warning

    def __post_init__(self) -> None:
        if isinstance(self.min_kept_share, float) and not 0 <= self.min_kept_share <= 1:
            raise ConfigError(f"traces.min_kept_share must be in [0, 1], got {self.min_kept_share}")


@dataclass(slots=True, kw_only=True)
class TrainingConfig:
    """What one step learns: rows of traces and of replay by cross-entropy, and the parent's distribution on text."""

    steps: int
    rows: int  # rows learned by cross-entropy
    length_tokens: int
    mix: dict[str, float]  # replay: data source -> weight, relative to the kinds of traces
    neutral_rows: int  # rows of text on which the parent's distribution is kept
    neutral_weight: float  # weight of that KL
    optim: OptimConfig

    def __post_init__(self) -> None:
        if isinstance(self.length_tokens, int) and self.length_tokens < 16:
            raise ConfigError(f"training.length_tokens must be at least 16, got {self.length_tokens}")


@dataclass(slots=True, kw_only=True)
class TraitConfig:
    """One trait: the system prompt that shows it, the strength to bake, and the questions where it shows."""

    system: str
    strength: float  # target of s = 1 - KL(prompted || student) / KL(prompted || parent)
    questions: list[str]  # "{}" stands for a topic


@dataclass(slots=True, kw_only=True)
class PersonaConfig:
    """Traits baked by KL on the answers of the prompted parent."""

    enabled: bool
    prompts: int  # questions a trait to learn from
    heldout: int  # questions a trait to measure on, of other topics
    reply_tokens: int  # longest answer of the teacher
    temperature: float  # at which the teacher answers
    top_k: int  # tokens of the teacher's distribution that are kept; the rest is one tail
    rows: int  # answers in one step
    weight: float  # weight of the trait's KL
    check_every_steps: int  # strengths are measured this often; a trait at its target pauses
    min_effect_nats: float  # KL(prompted || parent) a token under which a trait is not there to be baked
    traits: dict[str, TraitConfig]


@dataclass(slots=True, kw_only=True)
class MeasureConfig:
    """Held-out measurement, before and after."""

    items: int  # generated questions a kind
    text_items: int  # pieces of text for bits per byte
    max_new_tokens: int  # in one turn of the agent


@dataclass(slots=True, kw_only=True)
class Config(PhaseConfig):
    """Settings of `forge bake`."""

    traces: TracesConfig
    training: TrainingConfig
    persona: PersonaConfig
    measure: MeasureConfig

    def work_tokens(self) -> float:
        """Return the trained tokens, those of the parent on neutral text, and the persona's answers."""
        training, persona = self.training, self.persona
        rows = training.rows + 4 / 3 * training.neutral_rows
        answers = persona.rows * (persona.reply_tokens + 32) * len(persona.traits) if persona.enabled else 0
        return training.steps * (rows * training.length_tokens + answers)


PHASE = Phase(
    name="bake",
    order=6,
    summary="bake tools, memory use and persona into the weights",
    config=Config,
    several_processes=True,
)
