"""A dry run: check the inputs, and estimate time, memory and disk of each phase, writing nothing.

Time is the phase's count of tokens (`work_tokens`) at the rate of a training step timed here
(`step_time`), times a factor measured for the phase (`Phase.effort`), plus the scoring of its gate.
Memory is a process, the copies of the model that the phase holds, and the activations of one step;
it is counted where the phase says what its step holds (`step_memory`), and the model is a plain
decoder.
Constants are from the nano run (docs/log.md); on a quiet machine its estimates are within a factor
of two of the measured values.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_forge.checkpoint import Checkpoint
from agent_forge.config import Phase, PhaseConfig, suites
from agent_forge.core.errors import StorageError
from agent_forge.pipeline.catalogue import phase_named
from agent_forge.pipeline.fits import fits
from agent_forge.pipeline.run_all import RunAll, check_later_phases
from agent_forge.pipeline.run_phase import check_inputs, nearest

if TYPE_CHECKING:
    from agent_forge.pipeline.step_time import ModelShape

PROCESS_BYTES = 450_000_000  # Python with torch and transformers, measured on CPU builds
START_SECONDS = 10.0  # start a process, import libraries, read data and model
ITEM_TOKENS = 100  # per item of a gate; the parent's scores are known from its own gate
ACTIVATIONS_PER_WIDTH = 60  # floats kept for the backward pass, per token, layer and hidden unit
HIDDEN = 512  # taken where a config names its width in a way of its own
LOGITS = 4  # floats per token and word: logits, their softmax and gradients
# Model types with Llama's block.
PLAIN = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
# Copies of the float32 model on disk: the result, and the training states of a stage.
CHECKPOINT_COPIES = 3
SAFETY = 1.1  # a run is refused unless the free disk holds this many times the estimate


@dataclass(slots=True, kw_only=True)
class Estimate:
    """Rough needs of one phase. Estimates, not promises."""

    phase: str
    sources: list[str]
    out: str
    device: str
    parameters: int
    tokens: int  # trained tokens, or other work counted as trained tokens
    seconds: float
    memory_bytes: int
    disk_bytes: int
    notes: list[str] = field(default_factory=list)


def estimate_phase(name: str, config: PhaseConfig) -> Estimate:
    """Check a phase's inputs (sources, data, directory, room on the disk) and estimate its needs.

    Raises the errors of `check_inputs`, and StorageError when the disk is too small.
    """
    estimate = _checked(name, config, check_inputs(name, config, write_probe=False))
    check_disk([estimate])
    return estimate


def _checked(name: str, config: PhaseConfig, sources: Sequence[Checkpoint]) -> Estimate:
    """Read a first document, check that the phase fits its sources, and estimate."""
    from agent_forge.data.documents import documents

    next(iter(documents(config.data, "train")))
    estimate = _estimate(
        name, config, _shape(config, sources), [str(source.stored) for source in sources]
    )
    estimate.notes = fits(name, config, sources)
    return estimate


def estimate_run(run: RunAll) -> list[Estimate]:
    """Estimate every phase of a run.

    Each phase reads the output of the one before it, so only the sources of the first exist yet.
    """
    (first, config), *later = run.phases.items()
    sources = check_inputs(first, config, write_probe=False)
    estimates = [_checked(first, config, sources)]
    shape = _shape(config, sources)
    said = check_later_phases(run, sources)
    for name, settings in later:
        estimate = _estimate(name, settings, shape, [estimates[-1].out])
        estimate.notes = said[name]
        estimates.append(estimate)
    check_disk(estimates)
    return estimates


def check_disk(estimates: Sequence[Estimate]) -> None:
    """Raise StorageError when the disk has too little room for all estimates together."""
    needed = round(SAFETY * sum(estimate.disk_bytes for estimate in estimates))
    place = nearest(Path(estimates[0].out))
    free = shutil.disk_usage(place).free
    if free < needed:
        key = "out=" if len(estimates) == 1 else "run_dir="
        raise StorageError(
            f"disk too small: about {needed:,} bytes are needed at {place}, {free:,} "
            f"are free; free some space or set {key} "
            "to a directory on another disk"
        )


def _estimate(name: str, config: PhaseConfig, shape: "ModelShape", sources: list[str]) -> Estimate:
    from agent_forge.core.device import pick_device
    from agent_forge.pipeline.step_time import seconds_per_token

    phase = phase_named(name)
    device = pick_device(config.runtime.device)
    runtime = config.runtime
    # All phases share one timing on the CPU, where the size of a step changes little.
    step = 0 if device.type == "cpu" else round(config.step_tokens() / runtime.accumulate)
    per_token = seconds_per_token(shape, str(device), runtime.dtype, runtime.threads, step)
    tokens = config.work_tokens()
    gated = len(suites.limits(config.gate.tasks))
    scored = config.gate.items * gated * ITEM_TOKENS / 3 if config.gate.enabled else 0
    return Estimate(
        phase=name,
        sources=sources,
        out=config.out,
        device=str(device),
        parameters=shape.parameters,
        tokens=round(tokens),
        seconds=round(START_SECONDS + (phase.effort * tokens + scored) * per_token, 1),
        memory_bytes=_memory_bytes(phase, config, shape),
        disk_bytes=CHECKPOINT_COPIES * 4 * shape.parameters * phase.writes,
    )


def _memory_bytes(phase: Phase, config: PhaseConfig, shape: "ModelShape") -> int:
    """Return the memory of the process, the copies of the model and one step's activations."""
    from agent_forge.pipeline.step_memory import step_bytes

    width_bytes = 2 if config.runtime.dtype in ("bfloat16", "float16") else 4
    steps = config.step_memory() if shape.inner else []
    if steps:
        parts = config.runtime.accumulate
        return PROCESS_BYTES + max(step_bytes(shape, one, width_bytes, parts) for one in steps)
    per_token = (
        ACTIVATIONS_PER_WIDTH * shape.layers * shape.hidden * width_bytes + LOGITS * shape.words * 4
    )
    activations = config.step_tokens() / config.runtime.accumulate * per_token
    return round(PROCESS_BYTES + phase.copies * 4 * shape.parameters + activations)


def _shape(config: PhaseConfig, sources: Sequence[Checkpoint]) -> "ModelShape":
    """Return the shape of the largest source, or of the new model that the phase builds."""
    from agent_forge.pipeline.step_time import ModelShape

    if not sources:
        return _made_from_nothing(config)
    shapes = []
    for source in sources:
        content = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
        content = content.get("text_config") or content.get("base_config") or content
        stored = (
            sum(f["bytes"] for p, f in source.manifest.files.items() if p.endswith(".safetensors"))
            // 4
        )
        hidden = int(content.get("hidden_size") or content.get("n_embd") or HIDDEN)
        words = int(content.get("vocab_size") or 1)
        blocks = int(content.get("num_hidden_layers") or content.get("n_layer") or 1)
        layers = blocks * int(content.get("max_loops") or 1)
        stored = max(stored, hidden * words)
        shapes.append(ModelShape(stored, hidden, layers, blocks, words, **_block(content)))
    return max(shapes, key=lambda shape: shape.parameters)


def _block(content: Mapping[str, Any]) -> dict[str, int]:
    """Return the widths of a plain decoder's block by their names in ModelShape, or nothing where
    config.json describes a block of another kind.
    """
    heads = int(content.get("num_attention_heads") or 0)
    if content.get("model_type") not in PLAIN or content.get("quantization_config") or not heads:
        return {}
    width = int(content.get("head_dim") or content["hidden_size"] // heads)
    keys = width * int(content.get("num_key_value_heads") or heads)
    return {"inner": int(content["intermediate_size"]), "keys": keys, "heads": heads}


def _made_from_nothing(config: PhaseConfig) -> "ModelShape":
    """Return the shape of a Cognate of `config.model`, built without memory."""
    import torch

    from agent_forge.models.cognate import CognateConfig, CognateForCausalLM
    from agent_forge.pipeline.step_time import ModelShape

    model: Any = config.model  # type: ignore[attr-defined]
    with torch.device("meta"):
        cognate: Any = CognateForCausalLM(
            CognateConfig(**{k: v for k, v in asdict(model).items() if k != "kind"})
        )
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in cognate.parameters()),
        hidden=model.hidden_size,
        layers=model.num_hidden_layers * model.max_loops,
        blocks=model.num_hidden_layers,
        words=model.vocab_size,
    )
