"""Settings: shared dataclasses, the phase contract, and composition of conf/ into typed objects."""

from agent_forge.config.schema import (
    DataConfig,
    EvalSettings,
    Flag,
    GateConfig,
    OptimConfig,
    Phase,
    PhaseConfig,
    Report,
    RuntimeConfig,
    StepMemory,
)

__all__ = [
    "DataConfig",
    "EvalSettings",
    "Flag",
    "GateConfig",
    "OptimConfig",
    "Phase",
    "PhaseConfig",
    "Report",
    "RuntimeConfig",
    "StepMemory",
]
