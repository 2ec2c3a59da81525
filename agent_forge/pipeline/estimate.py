"""What a dry run says: inputs checked, and rough time, memory and disk from parameter counts. Nothing is written."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from agent_forge.config import PhaseConfig
from agent_forge.pipeline.run_all import RunAll
from agent_forge.pipeline.run_phase import check_inputs

PROCESS_BYTES = 450_000_000  # Python with torch and transformers, measured on CPU builds
TRAINING_BYTES_PER_PARAMETER = 20  # weights, gradients, two moments, one average: float32 each
FLOP_PER_PARAMETER_TOKEN = 6.0  # forward and backward
DEFAULT_PARAMETERS = 1_500_000  # of a nano model, where no source says it


@dataclass(slots=True, kw_only=True)
class Estimate:
    """Rough needs of one phase. Estimates, not promises; seconds 0 means unknown."""

    phase: str
    sources: list[str]
    out: str
    tokens: int
    seconds: float
    memory_bytes: int
    disk_bytes: int
    notes: list[str] = field(default_factory=list)


def estimate_phase(name: str, config: PhaseConfig, parameters: int = 0, check: bool = True) -> Estimate:
    """Check a phase's inputs (sources, data, directory) and estimate its needs."""
    from agent_forge.data.documents import documents

    sources = check_inputs(name, config, write_probe=False) if check else []
    next(iter(documents(config.data, "train")))
    stored = max((s.manifest.deployable_bytes for s in sources), default=0)
    weights = max(
        (sum(f["bytes"] for p, f in s.manifest.files.items() if p.endswith(".safetensors")) for s in sources), default=0
    )
    parameters = parameters or max(weights, stored) // 4 or DEFAULT_PARAMETERS
    tokens = training_tokens(asdict(config))
    return Estimate(
        phase=name,
        sources=[str(s.path) for s in sources] or list(config.sources),
        out=config.out,
        tokens=tokens,
        seconds=round(tokens * parameters * FLOP_PER_PARAMETER_TOKEN / _flop_per_second(), 1),
        memory_bytes=PROCESS_BYTES + parameters * TRAINING_BYTES_PER_PARAMETER,
        disk_bytes=parameters * 4 * 5,
    )


def estimate_run(run: RunAll) -> list[Estimate]:
    """Estimate every phase of a run; only the first one's sources exist yet."""
    return [estimate_phase(name, config, check=not i) for i, (name, config) in enumerate(run.phases.items())]


def training_tokens(settings: Mapping[str, Any], rows: int = 16, length: int = 128) -> int:
    """Return the tokens that the `steps` anywhere in the settings train on, with the nearest batch shape."""
    rows = int(settings.get("rows", rows) or rows)
    length = int(settings.get("length_tokens", length) or length)
    total = 0
    for key, value in settings.items():
        if isinstance(value, Mapping):
            total += training_tokens(value, rows, length)
        elif (key == "steps" or key.endswith("_steps")) and not key.startswith("warmup") and isinstance(value, int):
            total += value * rows * length
    return total


def _flop_per_second() -> float:
    """Return a measured rate of a mid-sized matrix product, halved: training does not reach it."""
    import torch

    a = torch.randn(512, 512)
    a @ a
    started = time.perf_counter()
    for _ in range(20):
        a @ a
    return 0.5 * 20 * 2 * 512**3 / (time.perf_counter() - started)
