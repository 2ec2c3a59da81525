"""Compress a model for shipping: every tensor gets the codec and rate that cost least for what they
lose.

Calibration text gives each tensor's second-order sensitivity: the loss of an error ΔW is estimated
as ½ Σ_o E[g_o²] ΔW_o E[x xᵀ] ΔW_oᵀ, with g from labels drawn from the model itself (its true Fisher
information). Each tensor is coded by every candidate; a Lagrangian picks one per tensor, under a
byte budget or a floor on measured quality. `mode: stacked` runs SeedLM, VPTQ and Hyper one after
another instead, for comparison: it only adds their losses. Reads sources[0], any Hugging Face
causal LM; writes a compressed checkpoint that `from_pretrained` opens and runs. Sources: Martens
and Grosse 2015, arXiv:1503.05671 (Kronecker factors); Shoham and Gersho 1988 (allocation).
"""

from dataclasses import dataclass
from typing import Annotated, Any

from agent_forge.config import Flag, OptimConfig, Phase, PhaseConfig
from agent_forge.config.limits import (
    Count,
    CountOrNone,
    DataMix,
    OneOf,
    PositiveShare,
    Range,
    Share,
    Window,
)
from agent_forge.core.errors import ConfigError

MODES = ("allocate", "stacked")


@dataclass(slots=True, kw_only=True)
class CalibrationConfig:
    """Text that the sensitivities are measured on."""

    windows: Count
    count_windows: CountOrNone
    length_tokens: Window
    mix: DataMix
    texts: str
    other_share: Share
    sums_mb: Annotated[float, Range(0, 1e9, above=True)]


@dataclass(slots=True, kw_only=True)
class MeasureConfig:
    """Text that quality is measured on: the search split chooses, the validation split reports."""

    windows: Count
    length_tokens: Window
    unseen_items: Count
    domain_items: CountOrNone


@dataclass(slots=True, kw_only=True)
class BudgetConfig:
    """What the allocation must keep; exactly one of the two is above 0."""

    quality_floor: Annotated[float, Range(0, 1, below=True)]
    bytes_ratio: Share
    search_steps: Count

    def validate(self) -> None:
        """Check settings that depend on each other. Raises ConfigError."""
        if (self.quality_floor > 0) == (self.bytes_ratio > 0):
            raise ConfigError(
                "exactly one of budget.quality_floor and budget.bytes_ratio must be above 0, got "
                f"{self.quality_floor} and {self.bytes_ratio}; try budget.quality_floor=0.96 budget.bytes_ratio=0"
            )


@dataclass(slots=True, kw_only=True)
class CodecConfig:
    """What each tensor is offered. An entry is {codec: NAME, setting: value, ...} with the codec's
    own settings.
    """

    candidates: list[dict[str, Any]]
    uncalibrated: dict[str, Any]
    min_weights: CountOrNone


@dataclass(slots=True, kw_only=True)
class RecoverConfig:
    """Recovery after coding, first block by block, then end to end: scales of rows and uncoded
    parameters learn.
    """

    block_steps: CountOrNone
    block_windows: Count
    block_lr: Annotated[float, Range(0, 10, above=True)]
    steps: CountOrNone
    rows: Count
    length_tokens: Window
    optim: OptimConfig


@dataclass(slots=True, kw_only=True)
class CurveConfig:
    """Further files that are written, reloaded and measured, none kept: bytes against quality
    against speed.
    """

    enabled: bool
    bytes_ratios: list[PositiveShare]
    speed_tokens: Count

    def validate(self) -> None:
        """Check settings that depend on each other. Raises ConfigError."""
        if self.enabled and not self.bytes_ratios:
            raise ConfigError(
                "--curve needs at least one size; try curve.bytes_ratios=[0.05,0.07,0.1,0.14,0.2]"
            )


@dataclass(slots=True, kw_only=True)
class Config(PhaseConfig):
    """Settings of `forge compress`."""

    mode: Annotated[str, OneOf(MODES)]
    seed_ratio: Share
    codebook: Annotated[int, Range(2, 256)]
    hyper_ratio: Share
    budget: BudgetConfig
    calibration: CalibrationConfig
    measure: MeasureConfig
    codec: CodecConfig
    recover: RecoverConfig
    curve: CurveConfig

    def validate(self) -> None:
        """Check settings that depend on each other. Raises ConfigError."""
        if self.mode == "stacked" and self.curve.enabled:
            raise ConfigError(
                "--curve needs mode=allocate: stacked codecs give one file, whatever the budget"
            )

    def work_tokens(self) -> float:
        """Return the calibration's passes and those that measure allocations; coding itself is not
        in it.
        """
        calibration = self.calibration.windows * self.calibration.length_tokens
        kinds = sum(share > 0 for share in self.calibration.mix.values())
        measured = self.measure.windows * self.measure.length_tokens * kinds / 3
        files = len(self.curve.bytes_ratios) if self.curve.enabled else 0
        # A floor is searched for; a size gives one allocation, and stacked codecs have but one.
        is_searched = self.budget.quality_floor > 0 and self.mode == "allocate"
        allocations = self.budget.search_steps + 2 if is_searched else 2
        recover = self.recover
        recovery = 4 / 3 * recover.steps * recover.rows * recover.length_tokens
        recovery += recover.block_steps * self.calibration.length_tokens
        return calibration + (allocations + files) * measured + recovery

    def step_tokens(self) -> float:
        """Return the tokens of one window, forward and backward."""
        recovery = self.recover.rows * self.recover.length_tokens if self.recover.steps else 0
        return max(self.calibration.length_tokens, recovery)


PHASE = Phase(
    name="compress",
    order=8,
    summary="code every tensor by the codec that costs least for what it loses",
    config=Config,
    promises_smaller=True,
    effort=4.0,
    copies=3.0,
    example="budget.quality_floor=0 budget.bytes_ratio=0.1",
    flags=(
        Flag(
            "curve",
            "Also measure bytes against quality against speed, at curve.bytes_ratios.",
            "curve.enabled=true",
        ),
    ),
)
