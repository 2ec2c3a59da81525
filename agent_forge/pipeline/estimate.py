"""What a dry run says: inputs checked, and rough time, memory and disk from parameter counts. Nothing is written."""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from agent_forge.config import PhaseConfig
from agent_forge.pipeline.fits import fits
from agent_forge.pipeline.run_all import RunAll
from agent_forge.pipeline.run_phase import check_inputs, nearest

PROCESS_BYTES = 450_000_000  # Python with torch and transformers, measured on CPU builds
TRAINING_BYTES_PER_PARAMETER = 20  # weights, gradients, two moments, one average: float32 each
FLOP_PER_PARAMETER_TOKEN = 6.0  # forward and backward
EFFICIENCY = 0.35  # of training against a matrix product: measured on nano and on SmolLM2-135M
DEFAULT_PARAMETERS = 1_500_000  # of a nano model, where no source says it


@dataclass(slots=True, kw_only=True)
class Estimate:
    """Rough needs of one phase. Estimates, not promises; seconds 0 means unknown."""

    phase: str
    sources: list[str]
    out: str
    parameters: int
    tokens: int  # trained tokens, or passes worth as much
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
    tokens = config.work_tokens()
    disk_bytes = parameters * 4 * 5
    free = shutil.disk_usage(nearest(Path(config.out))).free
    notes = fits(name, config, sources)
    short = [f"disk: needs about {disk_bytes:,} bytes, free {free:,}; free some space or set out= to another disk"]
    return Estimate(
        phase=name,
        sources=[str(s.path) for s in sources] or list(config.sources),
        out=config.out,
        parameters=parameters,
        tokens=round(tokens),
        seconds=round(tokens * parameters * FLOP_PER_PARAMETER_TOKEN / _flop_per_second(), 1),
        memory_bytes=PROCESS_BYTES + parameters * TRAINING_BYTES_PER_PARAMETER,
        disk_bytes=disk_bytes,
        notes=[*notes, *(short if free < disk_bytes else [])],
    )


def estimate_run(run: RunAll) -> list[Estimate]:
    """Estimate every phase of a run; only the first one's sources exist yet."""
    found: list[Estimate] = []
    for name, config in run.phases.items():
        found.append(estimate_phase(name, config, parameters=found[0].parameters if found else 0, check=not found))
    return found


def _flop_per_second() -> float:
    """Return the share of a measured matrix product's best rate that training reaches."""
    import torch

    a = torch.randn(512, 512)
    seconds = []
    for _ in range(30):
        started = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - started)
    return EFFICIENCY * 2 * 512**3 / min(seconds)
