"""Run the compress phase: calibrate, code every tensor by every candidate, choose, write, and score
the file that was written.
"""

import shutil
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import data, evaluate, models
from agent_forge.codecs import allocate
from agent_forge.codecs.allocate import Choice
from agent_forge.config import Report
from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.data import sets
from agent_forge.models import compressed, conv1d
from agent_forge.models.compressed import coded_modules
from agent_forge.phases import PhaseRun
from agent_forge.phases.compress import (
    Config,
    choose,
    curve,
    fits,
    measure,
    offers,
    recover,
    sensitivity,
    texts,
)
from agent_forge.phases.compress.choose import CodedModel

# The bytes of a tensor's entry in the header of a safetensors file beside its name and numbers:
# "N.payload":{"dtype":"BF16", ...},
HEADER_WORDS_BYTES = 60

# Generated chat rows drawn per window, for several fit into one.
ROWS_PER_WINDOW = 12


def run(phase: PhaseRun[Config]) -> Report:
    """Read sources[0], write the compressed checkpoint.

    Raises CheckpointError without a parent or when it is compressed already, PhaseError when it has
    nothing to compress, ConfigError when a candidate or the budget cannot be honoured.
    """
    if not phase.sources:
        raise CheckpointError("compress needs a parent checkpoint: sources=[DIRECTORY]")
    offers.check(phase.config)
    config, out, tokenizer = phase.config, phase.out, phase.tokenizer
    model = _parent(phase)
    tensors = offers.quantisable(model, config)
    phase.events.message(fits.reach_line(model, tensors))
    search, validation = (_reference(phase, model, split) for split in ("search", "validation"))
    calibration, counts = calibration_windows(config, tokenizer)
    coded = _coded(phase, model, tensors, calibration, counts)
    choice, points = _choose(phase, coded, search)
    packed = out.state / "packed"
    shutil.rmtree(packed, ignore_errors=True)
    built, rows = _built(phase, coded, choice, calibration)
    conv1d.fold(built)  # uncoded tensors are written in the shape that the model type has
    models.save(built, tokenizer, packed)
    del built  # only the file is scored from here on
    reloaded = models.load(packed, device=model.device)
    figures = validation.quality(reloaded)
    elsewhere, kinds = _elsewhere(phase, model, reloaded)
    figures |= elsewhere
    by_domain, domains = _by_domain(phase, model, reloaded)
    figures |= by_domain
    weight = Weight(
        file_bytes=sum(file.stat().st_size for file in packed.glob("*.safetensors")),
        fp32_bytes=coded.fp32_bytes,
        memory_bytes=sum(
            t.numel() * t.element_size() for t in [*reloaded.parameters(), *reloaded.buffers()]
        ),
    )
    report = _report(phase, weight, rows, figures)
    by_size = sorted(points, key=lambda p: -p["bytes"])
    report.tables = {
        "rate and quality (search split)": by_size, **report.tables, evaluate.TITLE: kinds,
    }  # fmt: skip
    if domains:
        report.tables[evaluate.TABLE] = domains
        report.summary += f"; perplexity kept by domain: {evaluate.kept_words(domains)}"
    extra: dict[str, Any] = {"benchmarks": sets.benchmarks_of(config.calibration.texts)}
    if config.curve.enabled:
        curve_rows = curve.points(phase, coded, _fixed_bytes(config, coded), validation)
        report.tables[curve.TITLE], report.plots = curve_rows, curve.plots(curve_rows)
        extra["curve"] = curve_rows
    written = out.write(
        lambda directory: shutil.copytree(packed, directory, dirs_exist_ok=True),  # type: ignore[arg-type,return-value]
        metrics=report.metrics,
        extra=extra,
    )
    phase.events.metrics("compressed", report.metrics)
    report.outputs = [str(written.path)]
    return report


def _parent(phase: PhaseRun[Config]) -> PreTrainedModel:
    """Return the model of sources[0], its linears as nn.Linear.

    Raises CheckpointError when it is compressed already.
    """
    source = phase.sources[0]
    model = models.load(source, device=phase.device)
    if coded_modules(model):
        raise CheckpointError(
            f"{source.path} is compressed already; give compress the checkpoint before it"
        )
    conv1d.unfold(model)
    return model


def _reference(phase: PhaseRun[Config], model: PreTrainedModel, split: str) -> measure.Reference:
    """Return the held-out windows of a split with the parent's losses on them."""
    windows = measure.held_out(phase.config, phase.tokenizer, split)
    parent = phase.out.remember_tensors(f"parent-{split}", lambda: measure.losses(model, windows))
    return measure.Reference(windows, parent)


def _coded(
    phase: PhaseRun[Config],
    model: PreTrainedModel,
    tensors: dict[str, torch.Tensor],
    windows: torch.Tensor,
    counts: torch.Tensor,
) -> CodedModel:
    """Return the model with the offers of every tensor, weighed by sensitivities from calibration
    windows.
    """
    settings = phase.config.calibration
    calibration = sensitivity.Calibration(
        windows, counts, 1e6 * settings.sums_mb, settings.other_share
    )
    sensitivities = sensitivity.remembered(phase, model, calibration)
    if phase.config.mode == "stacked":
        every = offers.stacked(phase, tensors, sensitivities)
    else:
        every = offers.all_offers(phase, model, tensors, sensitivities)
    stored = models.storage.stored_tensors(model).values()
    return CodedModel(model, every, fp32_bytes=4 * sum(tensor.numel() for tensor in stored))


def _elsewhere(
    phase: PhaseRun[Config], parent: PreTrainedModel, child: PreTrainedModel
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return metrics and a table of what the child keeps on kinds of text that are not in the
    calibration.
    """
    config = phase.config
    items = config.measure.unseen_items
    before, after = (
        evaluate.unseen_scores(name, model, items, phase.eval_context, phase.out)
        for name, model in (("parent", parent), ("child", child))
    )
    return evaluate.kept_elsewhere(before, after, config.gate.samples, config.seed)


def _by_domain(
    phase: PhaseRun[Config], parent: PreTrainedModel, child: PreTrainedModel
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return metrics and a table of the perplexity that the child keeps, domain by domain."""
    config = phase.config
    items = config.measure.domain_items
    before, after = (
        evaluate.domains_remembered(name, model, items, phase.eval_context, phase.out)
        for name, model in (("parent", parent), ("child", child))
    )
    kinds = texts.shares(config)
    return evaluate.kept_by_domain(before, after, kinds, config.gate.samples, config.seed)


def calibration_windows(
    config: Config, tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return calibration windows (n, length) int64 of the train split, and the counts of each token
    in more of them.
    """
    settings = config.calibration

    def drawn(windows: int, name: str) -> torch.Tensor:
        return _mixture(config, tokenizer, windows, settings.length_tokens, name).batch(0)[
            "input_ids"
        ]

    windows = drawn(settings.windows, "compress")
    more = (
        drawn(settings.count_windows, "compress-count") if settings.count_windows else windows[:0]
    )
    return windows, torch.bincount(torch.cat([windows, more]).flatten()).float()


def _mixture(
    config: Config, tokenizer: PreTrainedTokenizerFast, rows: int, length: int, name: str
) -> data.Mixture:
    """Return batches of `rows` windows of the train split, in the calibration's mix."""
    drawn = ROWS_PER_WINDOW * config.calibration.windows
    sources, mix = texts.sources(config, tokenizer, "train", drawn), texts.shares(config)
    return data.Mixture(sources, mix, rows=rows, length_tokens=length, seed=config.seed, name=name)


def _built(
    phase: PhaseRun[Config], coded: CodedModel, choice: Choice, calibration: torch.Tensor
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """Return the compressed model, recovered where the settings say so, and one row of the report
    per tensor.
    """
    config = phase.config
    picked = choose.picked(coded.offers, choice)
    dense = coded.model
    if config.recover.steps or config.recover.block_steps:
        settings = config.recover
        batches = _mixture(
            config, phase.tokenizer, settings.rows, settings.length_tokens, recover.STAGE
        )
        dense, picked = recover.recovered(phase, coded.model, picked, calibration, batches)
    rows = []
    for (name, options), i in zip(coded.offers.items(), choice, strict=True):
        offer, size = options[i], len(picked[name].data)
        weights = offer.shape[0] * offer.shape[1]
        rows.append({
            "tensor": name, "shape": f"{offer.shape[0]}x{offer.shape[1]}", "codec": offer.label, "bytes": size,
            "bits": round(8 * size / weights, 3), "relative_error": round(offer.relative_error, 6),
            "estimated_nats": round(offer.distortion, 6),
        })  # fmt: skip
    return compressed.compress(recover.light_copy(dense, picked), picked), rows


def _choose(
    phase: PhaseRun[Config], coded: CodedModel, search: measure.Reference
) -> tuple[Choice, list[dict[str, Any]]]:
    """Return the allocation and the rate-quality points that were measured on the way (search
    split).
    """
    config, out = phase.config, phase.out
    tensors, weights = coded.options, coded.weights
    max_seeds = int(config.seed_ratio * weights) if config.mode == "allocate" else weights

    def measured(choice: Choice) -> dict[str, Any]:
        out.check_stop()
        size = allocate.total_bytes(tensors, choice)
        name = "point-" + "-".join(map(str, choice)) if len(choice) < 40 else f"point-{size}"
        return out.remember(name, lambda: _point(coded, choice, search))

    if config.budget.bytes_ratio > 0 or config.mode == "stacked":
        fixed = _fixed_bytes(config, coded)
        budget = (
            int(config.budget.bytes_ratio * coded.fp32_bytes) - fixed
            if config.mode == "allocate"
            else 2**62
        )
        if budget <= 0:
            raise ConfigError(
                f"budget.bytes_ratio={config.budget.bytes_ratio} is below the {fixed:,} bytes of what is not coded and "
                "of the file's header; raise it"
            )
        choice = allocate.within_budget(tensors, budget, max_seed_blocks=max_seeds)
        return choice, [measured(choice)]
    choices = choose.hull(tensors, max_seeds)
    return choose.smallest_above_floor(choices, tensors, measured, config, phase.events)


def _fixed_bytes(config: Config, coded: CodedModel) -> int:
    """Return an upper bound of the bytes of a file without its coded tensors."""
    fixed = coded.fp32_bytes - 4 * coded.weights + header_bytes(coded.model, coded.fp32_bytes)
    if config.recover.steps or config.recover.block_steps:
        # Trained scales compress a little worse than fitted ones.
        fixed += sum(options[0].shape[0] for options in coded.offers.values()) // 2
    return fixed


def header_bytes(model: PreTrainedModel, fp32_bytes: int) -> int:
    """Return an upper bound of the bytes of a compressed file's header: for each tensor its name,
    type, shape and place.
    """
    digits = len(str(fp32_bytes))
    tensors = models.storage.stored_tensors(model)
    return 16 + sum(
        len(name) + HEADER_WORDS_BYTES + 3 * digits + 2 * tensor.ndim
        for name, tensor in tensors.items()
    )


def _point(coded: CodedModel, choice: Choice, search: measure.Reference) -> dict[str, Any]:
    """Return size and quality of one allocation."""
    figures = search.quality(coded.build(choice))
    size_bytes = allocate.total_bytes(coded.options, choice)
    return {
        "bytes": size_bytes,
        "bits": round(8 * size_bytes / coded.weights, 3),
        "estimated_nats": round(allocate.total_distortion(coded.options, choice), 5),
        **figures,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """How much a compressed model weighs in its file and in memory, and did in float32."""

    file_bytes: int
    fp32_bytes: int
    memory_bytes: int


def _report(
    phase: PhaseRun[Config], weight: Weight, rows: list[dict[str, Any]], figures: dict[str, Any]
) -> Report:
    """Return the report of a written file: size, memory and quality, and which codec coded what."""
    parent, size, fp32_bytes = phase.sources[0], weight.file_bytes, weight.fp32_bytes
    by_codec = dict[str, int]()
    for row in rows:
        height, width = map(int, row["shape"].split("x"))
        codec = row["codec"].split("(")[0]
        by_codec[codec] = by_codec.get(codec, 0) + height * width
    total = sum(by_codec.values())
    metrics = {
        "bytes": size,
        "bytes_of_fp32": round(size / fp32_bytes, 5),
        "bytes_of_parent": round(size / max(parent.manifest.deployable_bytes, 1), 5),
        "bits_per_weight": round(8 * size / (fp32_bytes / 4), 4),
        "memory_bytes": weight.memory_bytes,
        "seed_share": round(by_codec.get("seedlm", 0) / total, 5),
        **figures,
    }
    worst = min(texts.shares(phase.config), key=lambda kind: float(figures[f"{kind}_kept"]))
    summary = (
        f"{size:,} bytes: {100 * size / fp32_bytes:.1f}% of fp32, {100 * metrics['bytes_of_parent']:.0f}% of the parent's "
        f"{parent.manifest.deployable_bytes:,} bytes; quality {figures['quality']:.3f} of the parent's "
        f"(perplexity on {worst}, the worst kind); "
        f"bits per byte kept on text that was not in the calibration: {evaluate.kept_text(figures)}"
    )
    shares = [
        {"codec": name, "weights": n, "share": round(n / total, 4)}
        for name, n in sorted(by_codec.items())
    ]
    tables = {
        "weights by codec": shares,
        "tensors": rows,
    }
    if phase.config.mode == "stacked":
        summary = f"stacked for comparison: {summary}"
    baseline = "none ran: no other coder was given as many bytes (`python -m scripts.bench run compress` compares them)"
    return Report(summary=summary, outputs=[], metrics=metrics, tables=tables, baseline=baseline)
