"""Compress a model for shipping: every tensor gets the codec and rate that cost least for what they lose.

Calibration text gives each tensor's second-order sensitivity: the loss of an error ΔW is estimated as
½ Σ_o E[g_o²] ΔW_o E[x xᵀ] ΔW_oᵀ, with g from labels drawn from the model itself (its true Fisher information). Each
tensor is coded by every candidate; a Lagrangian picks one a tensor, under a byte budget or a floor on measured quality.
`mode: stacked` runs SeedLM, VPTQ and Hyper one after another instead, for comparison: it only adds their losses.
Reads sources[0], any Hugging Face causal LM; writes a compressed checkpoint that `from_pretrained` opens and runs.
Sources: Martens and Grosse 2015, arXiv:1503.05671 (Kronecker factors); Shoham and Gersho 1988 (allocation).
"""

from dataclasses import dataclass
from typing import Any

from agent_forge.config import Flag, OptimConfig, Phase, PhaseConfig
from agent_forge.core.errors import ConfigError

MODES = ("allocate", "stacked")


@dataclass(slots=True, kw_only=True)
class CalibrationConfig:
    """Text that the sensitivities are measured on."""

    windows: int  # of the train split, drawn by `mix`
    count_windows: (
        int  # more of them in which tokens are only counted, to weigh the embedding's rows; no model reads them
    )
    length_tokens: int  # of a window
    mix: dict[str, float]  # kind of data -> share of the windows
    sums_mb: float  # most megabytes of layers' sums of x xᵀ held at once; what does not fit takes another forward pass


@dataclass(slots=True, kw_only=True)
class MeasureConfig:
    """Text that quality is measured on: the search split chooses, the validation split reports."""

    windows: int  # for each kind of `calibration.mix`
    length_tokens: int


@dataclass(slots=True, kw_only=True)
class BudgetConfig:
    """What the allocation must keep; exactly one of the two is above 0."""

    quality_floor: float  # lowest exp(-rise of the loss a token), over the kinds of data; 0 is off
    bytes_ratio: float  # largest share of the fp32 bytes; 0 is off
    search_steps: int  # allocations measured while looking for the smallest one above the floor

    def __post_init__(self) -> None:
        values = (self.quality_floor, self.bytes_ratio)
        if all(isinstance(v, float) for v in values):
            if (self.quality_floor > 0) == (self.bytes_ratio > 0):
                raise ConfigError(
                    "exactly one of budget.quality_floor and budget.bytes_ratio must be above 0, got "
                    f"{self.quality_floor} and {self.bytes_ratio}; try budget.quality_floor=0.96 budget.bytes_ratio=0"
                )
            if not (0 <= self.quality_floor < 1 and 0 <= self.bytes_ratio <= 1):
                raise ConfigError(f"budget.quality_floor must be in [0, 1) and bytes_ratio in [0, 1], got {values}")


@dataclass(slots=True, kw_only=True)
class CodecConfig:
    """What each tensor is offered. An entry is {codec: NAME, setting: value, ...} with the codec's own settings."""

    candidates: list[dict[str, Any]]
    uncalibrated: dict[str, Any]  # for tensors that the calibration text never reaches
    min_weights: int  # smaller matrices stay as they are


@dataclass(slots=True, kw_only=True)
class RecoverConfig:
    """Recovery after coding, first block by block, then end to end: scales of rows and uncoded parameters learn."""

    block_steps: int  # optimiser steps for each block, to the parent block's outputs; 0 is none
    block_windows: int  # of the calibration's, taken in turn
    block_lr: float  # learning rate of the first of these steps; it falls to zero
    steps: int  # optimiser steps end to end, to the parent's logits, on the calibration's mix; 0 is none
    rows: int  # windows a step
    length_tokens: int  # of a window
    optim: OptimConfig

    def __post_init__(self) -> None:
        lowest = {"block_steps": 0, "block_windows": 1, "steps": 0}
        for name, least in lowest.items():
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise ConfigError(f"recover.{name} must be at least {least}, got {value}")
        if isinstance(self.block_lr, float) and self.block_lr <= 0:
            raise ConfigError(f"recover.block_lr must be above 0, got {self.block_lr}; try 1.0e-3")


@dataclass(slots=True, kw_only=True)
class CurveConfig:
    """Further files that are written, reloaded and measured, none kept: bytes against quality against speed."""

    enabled: bool  # `--curve`
    bytes_ratios: list[float]  # shares of the fp32 bytes, a file each
    speed_tokens: int  # generated for the tokens a second

    def __post_init__(self) -> None:
        ratios = list(self.bytes_ratios) if isinstance(self.bytes_ratios, list) else []
        if not all(0 < ratio <= 1 for ratio in ratios):
            raise ConfigError(f"curve.bytes_ratios must be in (0, 1], got {ratios}; try curve.bytes_ratios=[0.05,0.1]")
        if self.enabled is True and not ratios:
            raise ConfigError("--curve needs at least one size; try curve.bytes_ratios=[0.05,0.07,0.1,0.14,0.2]")
        if isinstance(self.speed_tokens, int) and self.speed_tokens < 1:
            raise ConfigError(f"curve.speed_tokens must be at least 1, got {self.speed_tokens}")


@dataclass(slots=True, kw_only=True)
class Config(PhaseConfig):
    """Settings of `forge compress`."""

    mode: str  # allocate or stacked
    seed_ratio: float  # largest share of the weights that may be coded by seeds
    codebook: int  # centroids of a VPTQ codebook, at most 256
    hyper_ratio: float  # bytes of what Hyper codes, at most this share of its bfloat16 bytes
    budget: BudgetConfig
    calibration: CalibrationConfig
    measure: MeasureConfig
    codec: CodecConfig
    recover: RecoverConfig
    curve: CurveConfig

    def __post_init__(self) -> None:
        if self.mode not in (*MODES, "???"):
            raise ConfigError(f"mode must be one of {', '.join(MODES)}, got '{self.mode}'")
        for name in ("seed_ratio", "hyper_ratio"):
            value = getattr(self, name)
            if isinstance(value, float) and not 0 <= value <= 1:
                raise ConfigError(f"{name} must be in [0, 1], got {value}")
        if self.mode == "stacked" and getattr(self.curve, "enabled", False) is True:
            raise ConfigError("--curve needs mode=allocate: stacked codecs give one file, whatever the budget")

    def work_tokens(self) -> float:
        """Return the calibration's passes and those that measure allocations; coding itself is not in it."""
        calibration = self.calibration.windows * self.calibration.length_tokens
        measured = self.measure.windows * self.measure.length_tokens * len(self.calibration.mix) / 3
        files = len(self.curve.bytes_ratios) if self.curve.enabled else 0
        recover = self.recover
        recovery = 4 / 3 * recover.steps * recover.rows * recover.length_tokens
        recovery += recover.block_steps * self.calibration.length_tokens
        return calibration + (self.budget.search_steps + 2 + files) * measured + recovery


PHASE = Phase(
    name="compress",
    order=8,
    summary="code every tensor by the codec that costs least for what it loses",
    config=Config,
    promises_smaller=True,
    flags=(
        Flag("curve", "Also measure bytes against quality against speed, at curve.bytes_ratios.", "curve.enabled=true"),
    ),
)
