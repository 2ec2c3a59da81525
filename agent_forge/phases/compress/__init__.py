"""Compress a model for shipping: every tensor gets the codec and rate that cost least for what they lose.

Calibration text gives each tensor's second-order sensitivity: the loss of an error ΔW is estimated as
½ Σ_o E[g_o²] ΔW_o E[x xᵀ] ΔW_oᵀ, with g from labels drawn from the model itself (its true Fisher information). Each
tensor is coded by every candidate; a Lagrangian picks one a tensor, under a byte budget or a floor on measured quality.
`mode: stacked` runs SeedLM, VPTQ and Hyper one after another instead, for comparison: it only adds their losses.
Reads sources[0], any Hugging Face causal LM; writes a compressed checkpoint that `from_pretrained` opens and runs.
Sources: Martens and Grosse 2015, arXiv:1503.05671 (Kronecker factors); Shoham and Gersho 1988 (allocation).
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

    windows: Count  # of the train split, drawn by `mix`
    # more of them in which tokens are only counted, to weigh the embedding's rows; no model reads them
    count_windows: CountOrNone
    length_tokens: Window  # of a window
    mix: DataMix  # kind of data -> share of the windows
    # of the weight of the embedding's and head's rows, spread over the vocabulary by Zipf's law: text of other kinds
    other_share: Share
    # most megabytes of layers' sums of x xᵀ held at once; what does not fit takes another forward pass
    sums_mb: Annotated[float, Range(0, 1e9, above=True)]


@dataclass(slots=True, kw_only=True)
class MeasureConfig:
    """Text that quality is measured on: the search split chooses, the validation split reports."""

    windows: Count  # for each kind of `calibration.mix`
    length_tokens: Window
    unseen_items: Count  # pieces of text of kinds that are not in the calibration


@dataclass(slots=True, kw_only=True)
class BudgetConfig:
    """What the allocation must keep; exactly one of the two is above 0."""

    # lowest exp(-rise of the loss a token), over the kinds of data; 0 is off
    quality_floor: Annotated[float, Range(0, 1, below=True)]
    bytes_ratio: Share  # largest share of the fp32 bytes; 0 is off
    search_steps: Count  # allocations measured while looking for the smallest one above the floor

    def validate(self) -> None:
        """Check settings that depend on each other. Raises ConfigError."""
        if (self.quality_floor > 0) == (self.bytes_ratio > 0):
            raise ConfigError(
                "exactly one of budget.quality_floor and budget.bytes_ratio must be above 0, got "
                f"{self.quality_floor} and {self.bytes_ratio}; try budget.quality_floor=0.96 budget.bytes_ratio=0"
            )


@dataclass(slots=True, kw_only=True)
class CodecConfig:
    """What each tensor is offered. An entry is {codec: NAME, setting: value, ...} with the codec's own settings."""

    candidates: list[dict[str, Any]]
    uncalibrated: dict[str, Any]  # for tensors that the calibration text never reaches
    min_weights: CountOrNone  # smaller matrices stay as they are


@dataclass(slots=True, kw_only=True)
class RecoverConfig:
    """Recovery after coding, first block by block, then end to end: scales of rows and uncoded parameters learn."""

    block_steps: CountOrNone  # optimiser steps for each block, to the parent block's outputs; 0 is none
    block_windows: Count  # of the calibration's, taken in turn
    block_lr: Annotated[float, Range(0, 10, above=True)]  # learning rate of the first of these steps; it falls to zero
    steps: CountOrNone  # optimiser steps end to end, to the parent's logits, on the calibration's mix; 0 is none
    rows: Count  # windows a step
    length_tokens: Window  # of a window
    optim: OptimConfig


@dataclass(slots=True, kw_only=True)
class CurveConfig:
    """Further files that are written, reloaded and measured, none kept: bytes against quality against speed."""

    enabled: bool  # `--curve`
    bytes_ratios: list[PositiveShare]  # shares of the fp32 bytes, a file each
    speed_tokens: Count  # generated for the tokens a second

    def validate(self) -> None:
        """Check settings that depend on each other. Raises ConfigError."""
        if self.enabled and not self.bytes_ratios:
            raise ConfigError("--curve needs at least one size; try curve.bytes_ratios=[0.05,0.07,0.1,0.14,0.2]")


@dataclass(slots=True, kw_only=True)
class Config(PhaseConfig):
    """Settings of `forge compress`."""

    mode: Annotated[str, OneOf(MODES)]  # allocate or stacked
    seed_ratio: Share  # largest share of the weights that may be coded by seeds
    codebook: Annotated[int, Range(2, 256)]  # centroids of a VPTQ codebook, at most 256
    hyper_ratio: Share  # bytes of what Hyper codes, at most this share of its bfloat16 bytes
    budget: BudgetConfig
    calibration: CalibrationConfig
    measure: MeasureConfig
    codec: CodecConfig
    recover: RecoverConfig
    curve: CurveConfig

    def validate(self) -> None:
        """Check settings that depend on each other. Raises ConfigError."""
        if self.mode == "stacked" and self.curve.enabled:
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
    effort=2.2,
    copies=3.0,
    example="budget.quality_floor=0 budget.bytes_ratio=0.1",
    flags=(
        Flag("curve", "Also measure bytes against quality against speed, at curve.bytes_ratios.", "curve.enabled=true"),
    ),
)
