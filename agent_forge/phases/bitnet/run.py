"""Run the phase: measure the parent, make its linears ternary, start the codes well, distil,
measure, pack, write.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from agent_forge import data, evaluate, learn, models
from agent_forge.config import Report
from agent_forge.core.errors import PhaseError
from agent_forge.core.seeds import seed_for
from agent_forge.data import sets
from agent_forge.data.sources import Source
from agent_forge.evaluate import Scores
from agent_forge.models.ternary import set_blend, ternarise, ternary_layers
from agent_forge.phases import PhaseRun
from agent_forge.phases.bitnet import Config, fits, measure, own_text
from agent_forge.phases.bitnet.compensate import CalibrationRun, Rounding
from agent_forge.phases.bitnet.distill import Distillation
from agent_forge.phases.bitnet.follow import compensated
from agent_forge.phases.bitnet.sub_norm import mean_sizes, set_gains

Findings = tuple[dict[str, Any], list[dict[str, Any]]]  # metrics, and the rows of a table


@dataclass(slots=True, kw_only=True)
class BitnetFigures:
    """What the phase measures of its parent and its child.

    before: the parent's score. stages: the child's, stage by stage, the last one at the end.
    start: the codes of each layer before training. elsewhere, by_domain: what the child keeps of
    text that was not in the calibration, and of each domain of text.
    """

    before: Scores
    stages: dict[str, Scores]
    start: dict[str, torch.Tensor]
    elsewhere: Findings
    by_domain: Findings


def run(phase: PhaseRun[Config]) -> Report:
    """Make sources[0] ternary. Raises PhaseError when there is no source or it has no layer to make
    ternary.
    """
    config, out, events = phase.config, phase.out, phase.events
    if not phase.sources:
        raise PhaseError("bitnet needs a model to make ternary: set sources=[CHECKPOINT]")
    tokenizer, context = phase.tokenizer, phase.eval_context
    parent, model = (models.load(phase.sources[0], device=phase.device) for _ in range(2))
    parent.requires_grad_(False)
    names = ternarise(model, config.linear)
    events.message(f"{len(names)} linear layers become ternary: {fits.reach_line(model)}")
    texts = _sources(phase, parent)

    def scored(name: str, which: PreTrainedModel) -> Scores:
        scores = out.remember(
            f"score-{name}",
            lambda: measure.text_scores(which, tokenizer, config.measure_items, context).to_plain(),
        )
        return Scores.from_plain(scores)

    stages: dict[str, Scores] = {}
    before = scored("parent", parent)
    stages["rounded"] = scored("rounded", model)
    if config.linear.sub_norm:
        sizes = out.remember_tensors(
            "sizes", lambda: mean_sizes(model, _calibration(config, model, texts))
        )
        set_gains(model, sizes)
    if config.init.method == "gptq":
        start_compensated(phase, parent, model, lambda: _calibration(config, model, texts))
        stages["compensated"] = scored("compensated", model)
    start = {name: layer.ternary_parts()[0] for name, layer in ternary_layers(model).items()}
    if config.train.steps:
        batches = _mixture(config, texts, "train")
        distil(phase, parent, model, batches, tokenizer.pad_token_id)
        stages["trained"] = scored("trained", model)
    by_domain = _by_domain(phase, parent, model)
    items = config.unseen_items
    elsewhere = evaluate.kept_elsewhere(
        evaluate.unseen_scores("parent", parent, items, context, out),
        evaluate.unseen_scores("child", model, items, context, out),
        config.gate.samples,
        config.seed,
    )
    measured = BitnetFigures(
        before=before, stages=stages, start=start, elsewhere=elsewhere, by_domain=by_domain
    )
    return _write(phase, parent, model, measured)


def _by_domain(
    phase: PhaseRun[Config], parent: PreTrainedModel, child: PreTrainedModel
) -> "Findings":
    """Return metrics and a table of the perplexity that the child keeps, domain by domain."""
    config = phase.config
    before, after = (
        evaluate.domains_remembered(name, model, config.domain_items, phase.eval_context, phase.out)
        for name, model in (("parent", parent), ("child", child))
    )
    return evaluate.kept_by_domain(before, after, _shares(config), config.gate.samples, config.seed)


def _shares(config: Config) -> dict[str, float]:
    """Return kind of data, or domain of the data set, -> share of the windows, of those above 0."""
    train = config.train
    mix = sets.open_set(train.texts).shares if train.texts else train.mix
    return {kind: share for kind, share in mix.items() if share > 0}


def _sources(phase: PhaseRun[Config], parent: PreTrainedModel) -> dict[str, Source]:
    config = phase.config
    if config.train.texts:
        data_set = sets.open_set(config.train.texts)
        return sets.domain_sources(data_set, config.data, phase.tokenizer, "train")
    sources: dict[str, Source] = {}
    for kind in _shares(config):
        if kind == own_text.KIND:
            sources[kind] = _own_text(phase, parent)
        else:
            seed = seed_for(config.seed, "bitnet", kind)
            sources[kind] = data.source(kind, config.data, phase.tokenizer, "train", seed)
    return sources


def _own_text(phase: PhaseRun[Config], parent: PreTrainedModel) -> own_text.OwnText:
    config, tokenizer = phase.config, phase.tokenizer

    def write() -> dict[str, torch.Tensor]:
        first = own_text.first_tokens(
            parent.config.get_text_config().vocab_size,
            config.own.windows,
            tokenizer.all_special_ids,
            config.seed,
        )
        prefix = data.window_prefix(tokenizer)
        windows = own_text.sample(
            parent,
            [[*prefix, token] for token in first],
            config.train.length_tokens,
            config.own.temperature,
            config.seed,
        )
        return {"windows": windows}

    return own_text.OwnText(phase.out.remember_tensors("own", write)["windows"])


def _mixture(config: Config, sources: dict[str, Source], name: str) -> data.Mixture:
    train = config.train
    return data.Mixture(
        sources,
        _shares(config),
        rows=train.rows,
        length_tokens=train.length_tokens,
        seed=seed_for(config.seed, "bitnet", name),
        name=name,
    )


def _calibration(
    config: Config, model: PreTrainedModel, texts: dict[str, Source]
) -> list[torch.Tensor]:
    mixture = _mixture(config, texts, "calibration")
    batches = -(-config.init.rows // config.train.rows)
    return [mixture.batch(i)["input_ids"].to(model.device) for i in range(batches)]


def start_compensated(
    phase: PhaseRun[Config],
    parent: PreTrainedModel,
    model: PreTrainedModel,
    windows: Callable[[], list[torch.Tensor]],
) -> None:
    """Give every layer latents that round to compensated codes, and scales of its own where
    training wants them.

    Computed once, also across restarts.

    windows: returns the calibration batches of ids (B, T).
    """
    config, out, events = phase.config, phase.out, phase.events

    def compute() -> dict[str, torch.Tensor]:
        def progress(done: int, total: int) -> None:
            events.progress("compensate", done, total)
            out.check_stop()

        rounding = Rounding(config.init.damping, config.init.sweeps)
        calibration = CalibrationRun(windows=windows(), dtype=phase.dtype, progress=progress)
        return compensated(parent, model, calibration, config.init.waves, rounding)

    latents = out.remember_tensors("compensated", compute)
    layers = ternary_layers(model)
    missed = sorted(name for name in layers if f"{name}.weight" not in latents)
    with torch.no_grad():
        for name in layers.keys() - set(missed):
            layers[name].weight.copy_(latents[f"{name}.weight"])
            layers[name].free_scales(
                latents[f"{name}.weight_scale"].view(layers[name].scales_shape)
            )
    if not (config.train.steps and config.train.scale_lr):
        for layer in layers.values():
            layer.tie_scales()
    if missed:
        events.message(
            f"{len(missed)} layers are not reached by calibration and start from plain rounding ({missed[0]}, ...)"
        )


def distil(
    phase: PhaseRun[Config],
    parent: PreTrainedModel,
    model: PreTrainedModel,
    batches: learn.Batches,
    pad: int | None,
    on_step: learn.OnStep | None = None,
) -> None:
    """Train a ternary model in place to behave like its parent. pad: the id of padding, or None."""
    config, train, dtype = phase.config, phase.config.train, phase.dtype
    # Autocast would round the teacher's weights in every forward pass; a rounded copy saves that.
    teacher = parent if dtype == torch.float32 else copy.deepcopy(parent).to(dtype=dtype)  # type: ignore[call-arg]
    loss = Distillation(
        teacher, config.distill, pad=pad, steps=train.steps, blend_share=train.blend_share
    )
    if not train.embeddings:
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            embedding.requires_grad_(False)
    learn.train(
        model,
        learn.TrainRequest(
            batches=batches,
            loss_fn=loss,
            parameters=_trained(model, train.scale_lr),
            stage="distil",
            steps=train.steps,
            optim=train.optim,
            out=phase.out,
            events=phase.events,
            seed=config.seed,
            on_step=on_step,
            device=model.device,
            dtype=dtype,
            settings={"distill": asdict(config.distill), "blend_share": train.blend_share},
        ),
    )
    for layer in ternary_layers(model).values():
        layer.tie_scales()
    model.requires_grad_(True)
    set_blend(model, 1.0)


def _trained(model: PreTrainedModel, scale_lr: float) -> list[dict[str, Any]] | None:
    """Return the groups of trained parameters, with free scales in a group of their own; None
    trains all at one rate.
    """
    if not scale_lr:
        return None
    layers = ternary_layers(model).values()
    for layer in layers:
        if layer.weight_scale is None:
            layer.free_scales()
    scales = {id(layer.weight_scale): layer.weight_scale for layer in layers}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in scales]
    return [
        {"params": rest, "lr_scale": 1.0},
        {"params": list(scales.values()), "lr_scale": scale_lr},
    ]


def _write(
    phase: PhaseRun[Config],
    parent: PreTrainedModel,
    model: PreTrainedModel,
    measured: BitnetFigures,
) -> Report:
    """Write the packed checkpoint, and report its size, its codes and what it keeps."""
    config, out, events = phase.config, phase.out, phase.events
    before, stages, start = measured.before, measured.stages, measured.start
    elsewhere, by_domain = measured.elsewhere, measured.by_domain
    scored = stages[list(stages)[-1]]
    size = measure.packed_file_bytes(model, out.state / "packed.safetensors")
    parent_size = models.deployable_bytes(parent)
    codes = measure.code_figures(model)
    retention = evaluate.retention(measure.TASK, before, scored, config.gate.samples, config.seed)
    metrics: dict[str, Any] = {
        "bits_per_byte_parent": before.as_metric(),
        **{f"bits_per_byte_{name}": scores.as_metric() for name, scores in stages.items()},
        "kept": retention.as_metric(),
        **{name: codes[name] for name in ("zeros", "entropy_bits", "stored_bits")},
        "codes_changed_in_training": _changed_codes(model, start) / codes["ternary_weights"],
        "packed_file_bytes": size,
        "parent_bytes": parent_size,
        "size_ratio": size / parent_size,
        **elsewhere[0],
        **by_domain[0],
    }
    events.metrics(
        "bitnet", {key: value for key, value in metrics.items() if not isinstance(value, dict)}
    )
    written = out.write(
        lambda directory: models.save(model, phase.tokenizer, directory),
        metrics=metrics,
        extra={"benchmarks": sets.benchmarks_of(config.train.texts)},
        deployable_bytes=size,
    )
    events.artefact(written.path)
    summary = (
        f"{len(start)} layers ternary ({codes['zeros']:.0%} zeros, {codes['stored_bits']:.2f} bits "
        f"per weight), {size:,} bytes packed, {size / parent_size:.1%} of the parent; "
        f"bits per byte {before.mean:.3f} -> {scored.mean:.3f} "
        f"({retention.ratio:.1%} kept, n={before.n}); "
        f"kept on text that was not in the calibration: {evaluate.kept_text(elsewhere[0])}"
    )
    if by_domain[1]:
        summary += f"; perplexity kept by domain: {evaluate.kept_words(by_domain[1])}"
    table = measure.comparison(before, stages, config.gate.samples, config.seed)
    tables = {"Bits per byte": table, evaluate.TITLE: elsewhere[1]}
    if by_domain[1]:
        tables[evaluate.TABLE] = by_domain[1]
    return Report(
        summary=summary,
        outputs=[str(written.path)],
        metrics=metrics,
        tables=tables,
        baseline=measure.starts(stages),
    )


def _changed_codes(model: PreTrainedModel, start: dict[str, torch.Tensor]) -> int:
    """Return how many codes are not what they were in `start`, layer by layer."""
    codes = {name: layer.ternary_parts()[0] for name, layer in ternary_layers(model).items()}
    return sum(int((own != start[name]).sum()) for name, own in codes.items())
