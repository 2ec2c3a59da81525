"""Names, types and limits of the settings that phases share. conf/ holds every value and explains
it; nothing here does.

`slots=True, kw_only=True` and never `frozen`: frozen nested schemas break composition in OmegaConf.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

from agent_forge.config.limits import (
    MANY,
    Count,
    CountOrNone,
    Device,
    Encoding,
    LearningRate,
    OneOf,
    Range,
    Share,
    TaskOrSuite,
    Text,
    Weight,
)
from agent_forge.core.device import DTYPES

SPLITS = ("train", "validation", "search", "test")
SAMPLING = ("random", "epoch")
COMPILE = ("auto", "on", "off")
GRAMMARS = ("none", "calls", "required")
ON_FAILURE = ("stop", "rollback", "continue")


@dataclass(slots=True, kw_only=True)
class DataConfig:
    """Where text comes from. Splits are by document hash, so they are disjoint by construction."""

    text: list[Text]
    max_text_bytes: CountOrNone
    cache: Text
    rows: list[Text]
    near_duplicates: Share
    sampling: Annotated[str, OneOf(SAMPLING)]
    encoding: Annotated[str, Encoding()]
    ignore_keys: list[Text]


@dataclass(slots=True, kw_only=True)
class RuntimeConfig:
    """How the work is run.

    `dtype`, `threads`, `compile`, `accumulate` and `shard` change the order of sums, and so the
    last bits of a result; the budgets and `rollbacks` change how far training goes.
    """

    device: Annotated[str, Device()]
    dtype: Annotated[str, OneOf(DTYPES)]
    threads: Annotated[int, Range(0, 4096)]
    save_every_seconds: Annotated[float, Range(0, 1e6)]
    compile: Annotated[str, OneOf(COMPILE)]
    workers: Annotated[int, Range(0, 1024)]
    processes: Annotated[int, Range(1, 4096)]
    accumulate: Count
    checkpoint_activations: bool
    shard: bool
    rollbacks: CountOrNone
    budget_tokens: Annotated[int, Range(0, 10**15)]
    budget_minutes: Annotated[float, Range(0, 1e6)]
    resume_anyway: bool
    background: bool


@dataclass(slots=True, kw_only=True)
class OptimConfig:
    """One optimiser setting: AdamW, or Muon for 2-D hidden matrices with AdamW for the rest."""

    method: Annotated[str, OneOf(("adamw", "muon"))]
    lr: LearningRate
    muon_lr: LearningRate
    warmup_steps: CountOrNone
    cooldown_share: Share
    weight_decay: Annotated[float, Range(0, 100)]
    beta1: Annotated[float, Range(0, 1, below=True)]
    beta2: Annotated[float, Range(0, 1, below=True)]
    clip_norm: Weight
    average_share: Share


@dataclass(slots=True, kw_only=True)
class GateConfig:
    """What a child must keep of its parent, and of the base of its chain, before it may go on."""

    enabled: bool
    tasks: dict[TaskOrSuite, Annotated[float, Range(0, 1000)]]
    chain: dict[TaskOrSuite, Annotated[float, Range(0, 1000)]]
    base: str
    items: Count
    looks: Annotated[int, Range(1, 100)]
    samples: Annotated[int, Range(100, MANY)]
    memory_ratio: Annotated[float, Range(0, 1e6, above=True)]
    speed_ratio: Annotated[float, Range(0, 1e6)]
    on_failure: Annotated[str, OneOf(ON_FAILURE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """What the training steps of a phase hold, for the estimate of a dry run.

    models: models of the source's size. rank: of the adapters that are trained; 0 where all weights
    are. averages: averages of what is trained. tokens: that have a gradient. compared_tokens: those
    on which two models' distributions are compared whole.
    """

    models: int
    rank: int
    averages: int
    tokens: float
    compared_tokens: float


@dataclass(slots=True, kw_only=True)
class PhaseConfig:
    """What every phase has."""

    seed: Annotated[int, Range(0, 2**63 - 1)]
    sources: list[Text]
    out: Text
    data: DataConfig
    runtime: RuntimeConfig
    gate: GateConfig

    def validate(self) -> None:
        """Check settings that depend on each other, once all are composed. Raises ConfigError."""

    def step_memory(self) -> list[StepMemory]:
        """Return what the steps of each training hold; none where rough figures must do."""
        return []

    def work_tokens(self) -> float:
        """Return the phase's main work in trained tokens (forward and backward; a forward pass
        counts a third).

        `--dry-run` turns it into a rough time.
        """
        return 0.0

    def step_tokens(self) -> float:
        """Return the tokens whose activations one step holds at once, for the memory that
        `--dry-run` estimates.
        """
        return 1024.0


@dataclass(slots=True, kw_only=True)
class EvalPart:
    """What the tasks of the user's own score, and under which grammar calls are scored too."""

    rows: list[Text]
    grammar: Annotated[str, OneOf(GRAMMARS)]


@dataclass(slots=True, kw_only=True)
class EvalSettings(PhaseConfig):
    """Settings of `forge eval` and `forge compare`."""

    tools: list[Text]
    eval: EvalPart


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of a phase's command: it stands for one setting, or shows a list and runs nothing."""

    name: str  # without dashes
    help: str
    override: str = ""  # KEY=VALUE that it sets
    # MODULE:FUNCTION, which returns the rows that are shown: dicts with "name" and "text".
    shows: str = ""


@dataclass(frozen=True, slots=True)
class Phase:
    """What the command line and the pipeline know of a phase before its code is loaded."""

    name: str
    order: int
    summary: str
    config: type[PhaseConfig]
    promises_smaller: bool = False  # the gate then refuses a larger deployable size
    several_processes: bool = (
        False  # its work is training, which runtime.processes (or torchrun) spreads
    )
    flags: tuple[Flag, ...] = ()
    effort: float = (
        1.0  # measured time over the time of work_tokens at the rate of training; for estimates
    )
    copies: float = (
        5.0  # float32 copies of the model held at once: weights, gradients, two moments, an average
    )
    writes: int = 1  # checkpoints written
    example: str = ""  # settings that somebody may want to try, shown in the help


@dataclass(slots=True, kw_only=True)
class Report:
    """What a phase says about itself when it ends.

    outputs: checkpoint directories, the one that the next phase takes first. metrics: name ->
    number, or {"value", "low", "high", "n"} where an interval is known. tables: title -> list of
    rows (dicts of plain values), shown in the report. plots: title -> points (x, y), drawn in
    report.html. baseline: how the result stands against a baseline of equal budget, with interval;
    "" where none ran.
    """

    summary: str
    outputs: list[str]
    metrics: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)
    plots: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    baseline: str = ""
