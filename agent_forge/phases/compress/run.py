"""Run the compress phase: calibrate, code every tensor by every candidate, choose, write, score what was written."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import data, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.codecs import allocate
from agent_forge.codecs.allocate import Choice
from agent_forge.config import Report
from agent_forge.core.device import pick_device
from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.core.events import EventLog
from agent_forge.models.compressed import coded_modules
from agent_forge.phases.compress import Config, choose, measure, offers, sensitivity
from agent_forge.phases.compress.offers import Offer

HEADER_BYTES = 160  # what a tensor takes in the header of a safetensors file, at most: its name, type, shape and place

ROWS_PER_WINDOW = 12  # generated chat rows drawn for a window; several fit into one


def run(config: Config, sources: list[Checkpoint], out: Workspace, events: EventLog) -> Report:
    """Read sources[0], write the compressed checkpoint.

    Raises CheckpointError without a parent or when it is compressed already, PhaseError when it has nothing to
    compress, ConfigError when a candidate or the budget cannot be honoured.
    """
    if not sources:
        raise CheckpointError("compress needs a parent checkpoint: sources=[DIRECTORY]")
    offers.check(config)
    tokenizer = models.load_tokenizer(sources[0])
    model = models.load(sources[0], device=pick_device(config.runtime.device))
    if coded_modules(model):
        raise CheckpointError(f"{sources[0].path} is compressed already; give compress the checkpoint before it")
    tensors = offers.quantisable(model, config)
    search, validation = (measure.held_out(config, tokenizer, split) for split in ("search", "validation"))
    parent = out.remember_tensors("parent-search", lambda: measure.losses(model, search))
    sensitivities = sensitivity.measure(model, _calibration(config, tokenizer), config.seed, out, events)
    if config.mode == "stacked":
        coded = offers.stacked(tensors, sensitivities, config, out, events)
    else:
        coded = offers.all_offers(model, tensors, sensitivities, config, out, events)
    del sensitivities
    fp32 = 4 * sum(value.numel() for value in models.storage.stored_tensors(model).values())
    choice, points = _choose(config, model, coded, search, parent, fp32, out, events)
    before = out.remember_tensors("parent-validation", lambda: measure.losses(model, validation))
    packed = out.state / "packed"
    shutil.rmtree(packed, ignore_errors=True)
    models.save(choose.build(model, coded, choice), tokenizer, packed)
    reloaded = models.load(packed, device=model.device)
    figures = measure.quality(measure.losses(reloaded, validation), before)
    report = _report(config, model, reloaded, coded, choice, figures, points, fp32, packed, sources[0])
    written = out.write(
        lambda directory: shutil.copytree(packed, directory, dirs_exist_ok=True),  # type: ignore[arg-type,return-value]
        metrics=report.metrics,
    )
    events.metrics("compressed", report.metrics)
    report.outputs = [str(written.path)]
    return report


def _calibration(config: Config, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Return calibration windows (n, length) int64 of the train split."""
    settings = config.calibration
    mix = {kind: weight for kind, weight in settings.mix.items() if weight > 0}
    rows = ROWS_PER_WINDOW * settings.windows
    sources = {kind: data.source(kind, config.data, tokenizer, "train", config.seed, rows=rows) for kind in sorted(mix)}
    mixture = data.Mixture(
        sources, mix, rows=settings.windows, length_tokens=settings.length_tokens, seed=config.seed, name="compress"
    )
    return mixture.batch(0)["input_ids"]


def _choose(
    config: Config,
    model: PreTrainedModel,
    coded: dict[str, list[Offer]],
    search: measure.Windows,
    parent: dict[str, torch.Tensor],
    fp32_bytes: int,
    out: Workspace,
    events: EventLog,
) -> tuple[Choice, list[dict[str, Any]]]:
    """Return the allocation and the rate-quality points that were measured on the way (search split)."""
    weights = [options[0].payload(name).shape for name, options in coded.items()]
    tensors = [[o.option(r * c) for o in options] for options, (r, c) in zip(coded.values(), weights, strict=True)]
    total_weights = sum(r * c for r, c in weights)
    max_seeds = int(config.seed_ratio * total_weights) if config.mode == "allocate" else total_weights

    def measured(choice: Choice) -> dict[str, Any]:
        out.check_stop()
        size = allocate.total_bytes(tensors, choice)
        name = "point-" + "-".join(map(str, choice)) if len(choice) < 40 else f"point-{size}"
        return out.remember(name, lambda: _point(model, coded, choice, search, parent, size, total_weights, tensors))

    if config.budget.bytes_ratio > 0 or config.mode == "stacked":
        fixed = fp32_bytes - 4 * total_weights + HEADER_BYTES * len(model.state_dict())
        budget = int(config.budget.bytes_ratio * fp32_bytes) - fixed if config.mode == "allocate" else 2**62
        if budget <= 0:
            raise ConfigError(
                f"budget.bytes_ratio={config.budget.bytes_ratio} is below the {fixed:,} bytes of what is not coded and "
                "of the file's header; raise it"
            )
        choice = allocate.within_budget(tensors, budget, max_seed_blocks=max_seeds)
        return choice, [measured(choice)]
    choices = choose.hull(tensors, max_seeds)
    return choose.smallest_above_floor(choices, tensors, measured, config, events)


def _point(
    model: PreTrainedModel,
    coded: dict[str, list[Offer]],
    choice: Choice,
    search: measure.Windows,
    parent: dict[str, torch.Tensor],
    size_bytes: int,
    weights: int,
    tensors: list[list[allocate.Option]],
) -> dict[str, Any]:
    figures = measure.quality(measure.losses(choose.build(model, coded, choice), search), parent)
    estimated = allocate.total_distortion(tensors, choice)
    return {
        "bytes": size_bytes,
        "bits": round(8 * size_bytes / weights, 3),
        "estimated_nats": round(estimated, 5),
        **figures,
    }


def _report(
    config: Config,
    model: PreTrainedModel,
    reloaded: PreTrainedModel,
    coded: dict[str, list[Offer]],
    choice: Choice,
    figures: dict[str, Any],
    points: list[dict[str, Any]],
    fp32_bytes: int,
    packed: Path,
    parent: Checkpoint,
) -> Report:
    size = sum(file.stat().st_size for file in packed.glob("*.safetensors"))
    memory = sum(t.numel() * t.element_size() for t in [*reloaded.parameters(), *reloaded.buffers()])
    rows, by_codec = [], dict[str, int]()
    for (name, options), i in zip(coded.items(), choice, strict=True):
        offer = options[i]
        shape = offer.payload(name).shape
        by_codec[offer.codec] = by_codec.get(offer.codec, 0) + shape[0] * shape[1]
        rows.append({
            "tensor": name, "shape": f"{shape[0]}x{shape[1]}", "codec": offer.label, "bytes": len(offer.data),
            "bits": round(8 * len(offer.data) / (shape[0] * shape[1]), 3), "relative_error": round(offer.relative_error, 6),
            "estimated_nats": round(offer.distortion, 6),
        })  # fmt: skip
    total = sum(by_codec.values())
    metrics = {
        "bytes": size,
        "bytes_of_fp32": round(size / fp32_bytes, 5),
        "bytes_of_parent": round(size / max(parent.manifest.deployable_bytes, 1), 5),
        "bits_per_weight": round(8 * size / (fp32_bytes / 4), 4),
        "memory_bytes": memory,
        "seed_share": round(by_codec.get("seedlm", 0) / total, 5),
        **figures,
    }
    summary = (
        f"{size:,} bytes: {100 * size / fp32_bytes:.1f}% of fp32, {100 * metrics['bytes_of_parent']:.0f}% of the parent's "
        f"{parent.manifest.deployable_bytes:,}; quality {figures['quality']:.3f} of the parent's (perplexity, worst kind)"
    )
    del model
    shares = [{"codec": name, "weights": n, "share": round(n / total, 4)} for name, n in sorted(by_codec.items())]
    tables = {
        "rate and quality (search split)": sorted(points, key=lambda p: -p["bytes"]),
        "weights by codec": shares,
        "tensors": rows,
    }
    if config.mode == "stacked":
        summary = f"stacked for comparison: {summary}"
    return Report(summary=summary, outputs=[], metrics=metrics, tables=tables)
