"""Run the quietstar phase: wrap the parent, train it to think, set the gate from held-out tokens,
then write the model and report.
"""

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent_forge import data, learn, models
from agent_forge.config import Report
from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.core.seeds import seed_for
from agent_forge.models.thought import ThoughtForCausalLM
from agent_forge.phases import PhaseRun
from agent_forge.phases.quietstar import Config, measure, rlp, task_thoughts
from agent_forge.phases.quietstar.objective import QuietStarLoss

STAGE, PLAIN = "think", "plain"
TRAIN_ROWS = 4000  # generated rows per kind of data
SHOWN_CONTEXT_TOKENS = 12
# Settings that must not change while training is resumed.
SHAPING = (
    "objective", "thoughts", "thought_length", "lookahead", "temperature", "positions", "base_lr",
    "policy_weight",
)  # fmt: skip


def run(phase: PhaseRun[Config]) -> Report:
    """Read sources[0], write the thinking model.

    Raises CheckpointError without a parent and for a parent that thinks already, PhaseError for a
    parent that cannot think.
    """
    config, out, device = phase.config, phase.out, phase.device
    if config.objective == "task_thoughts":
        return task_thoughts.run(phase)
    if not phase.sources:
        raise CheckpointError("quietstar needs a parent checkpoint: sources=[DIRECTORY]")
    model = _wrapped(phase).to(device)  # type: ignore[arg-type]
    kinds = [kind for kind, share in config.mix.items() if share > 0]
    windows = {
        split: measure.held_out(config, _sources(phase, kinds, split), split)
        for split in ("search", "validation")
    }
    parent = out.remember_tensors(
        "parent",
        lambda: measure.base_losses(model, windows["validation"], config.batch_rows, device),
    )
    plain = _plain_losses(phase, kinds, windows)
    records = _train(phase, model, kinds)
    model.eval()

    def think_over(split: str) -> dict[str, Tensor]:
        return measure.think_over(model, windows[split], config, split, device)

    measured = {
        split: out.remember_tensors(f"measured-{split}", partial(think_over, split))
        for split in windows
    }
    gate, gate_table = measure.choose_gate(measured["search"], kinds, config)
    model.config.gate_entropy_nats = gate
    report = _report(config, measured["validation"], parent, kinds, gate, records)
    gains = {
        split: measure.over_plain(measured[split], losses, kinds, gate, config)
        for split, losses in plain.items()
    }
    if gains:
        report.metrics["gain_over_plain_nats"] = gains["validation"]
        report.baseline = measure.over_plain_words(gains["validation"])
        report.tables["by difficulty"] = measure.by_decile(
            measured["validation"], kinds, config, plain["validation"]
        )
    reason = _why_not(config, gate, gains.get("search"))
    if reason:
        report.summary += f" {reason}"
    report.tables["when the gate may open (search split)"] = gate_table
    report.samples = _samples(phase, measured["validation"], windows["validation"], kinds)
    chosen = models.load(phase.sources[0]) if reason else model
    written = out.write(
        lambda directory: models.save(chosen, phase.tokenizer, directory),
        metrics=report.metrics,
        deployable_bytes=models.deployable_bytes(chosen),
    )
    phase.events.metrics("thinking", report.metrics)
    report.outputs = [str(written.path)]
    return report


def _why_not(config: Config, gate: float | None, gain: dict[str, Any] | None) -> str:
    """Return why the parent goes on in the place of the thinking model; "" where the latter does.

    gain: over plain training, on the search split; None where that did not run.
    """
    if not config.only_if_better:
        return ""
    if gate is None:
        return (
            "So this phase is skipped: the parent's weights go on unchanged (only_if_better=false "
            "keeps the thinking model)."
        )
    if gain is not None and gain["low"] <= 0:
        return (
            "But plain training of equal tokens does as well, so the parent's weights go on "
            "unchanged (only_if_better=false keeps the thinking model)."
        )
    return ""


def _plain_losses(
    phase: PhaseRun[Config], kinds: list[str], windows: dict[str, dict[str, dict[str, Tensor]]]
) -> dict[str, dict[str, Tensor]]:
    """Return split -> losses of the parent trained on the same windows without thoughts.

    Nothing without a baseline, and where the base is frozen: then the parent is that baseline.
    """
    config, out = phase.config, phase.out
    if not config.baseline or not config.base_lr or not config.steps:
        return {}
    model = models.load(phase.sources[0], device=phase.device)
    optim = replace(config.optim, lr=config.base_lr, clip_norm=config.group_clip_norm)
    learn.train(
        model,
        learn.TrainRequest(
            batches=_batches(phase, kinds), loss_fn=learn.lm_loss, stage=PLAIN, steps=config.steps,
            optim=optim, out=out, events=phase.events, seed=config.seed, device=phase.device,
            dtype=phase.dtype,
        ),
    )  # fmt: skip
    model.eval()
    return {
        split: out.remember_tensors(
            f"plain-{split}",
            partial(measure.base_losses, model, batches, config.batch_rows, phase.device),
        )
        for split, batches in windows.items()
    }


def _wrapped(phase: PhaseRun[Config]) -> ThoughtForCausalLM:
    config, parent = phase.config, phase.sources[0]
    base = models.load(parent)
    if isinstance(base, ThoughtForCausalLM):
        raise CheckpointError(
            f"{parent.path} is a thinking model already; give quietstar the checkpoint before it"
        )
    ids = {
        name: phase.tokenizer.encode(getattr(config, name), add_special_tokens=False)
        for name in ("start_text", "end_text")
    }
    for name, encoded in ids.items():
        if not encoded:
            raise ConfigError(
                f"{name}={getattr(config, name)!r} is empty for this tokenizer; try {name}='\\n'"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "quietstar", "head"))
        model = ThoughtForCausalLM.wrap(
            base, start_ids=ids["start_text"], end_ids=ids["end_text"], thought_length=config.thought_length,
            thoughts=config.generate_thoughts, temperature=config.temperature,
        )  # fmt: skip
    if config.objective == "rlp":
        rlp.predicts_from_thoughts_alone(model)
    return model.eval()


def _sources(phase: PhaseRun[Config], kinds: list[str], split: str) -> dict[str, Any]:
    config = phase.config
    rows = TRAIN_ROWS if split == "train" else 10 * config.measure.windows
    return {
        kind: data.source(kind, config.data, phase.tokenizer, split, config.seed, rows=rows)
        for kind in kinds
    }


def _train(
    phase: PhaseRun[Config], model: ThoughtForCausalLM, kinds: list[str]
) -> list[learn.StepRecord]:
    """Train the head, the meta vectors and, unless base_lr is 0, the base.

    Each of them has its own learning rate and clipping.
    """
    config = phase.config
    head, meta = list(model.mixing.parameters()), [model.start, model.end]
    base = [parameter for parameter in model.base.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": part, "lr_scale": 1.0}
        for part in (head, meta)
        if any(parameter.requires_grad for parameter in part)
    ]
    if config.base_lr > 0:
        groups.append({"params": base, "lr_scale": config.base_lr / config.optim.lr})
    else:
        model.base.requires_grad_(False)
    request = learn.TrainRequest(
        batches=_batches(phase, kinds),
        loss_fn=QuietStarLoss(config, [group["params"] for group in groups]),
        stage=STAGE,
        steps=config.steps,
        optim=config.optim,
        out=phase.out,
        events=phase.events,
        seed=config.seed,
        parameters=groups,
        device=phase.device,
        dtype=phase.dtype,
        settings={name: getattr(config, name) for name in SHAPING},
    )
    if config.objective == "quiet_star":
        return learn.train(model, request)
    request.loss_fn = rlp.RlpLoss(config, [group["params"] for group in groups])
    request.on_step = rlp.Follow(config)
    request.settings = {**request.settings, **asdict(config.rlp)}
    rlp.remember(model, config.rlp.updates)
    try:
        return learn.train(model, request)
    finally:
        rlp.forget(model)


def _batches(phase: PhaseRun[Config], kinds: list[str]) -> learn.Batches:
    """Return the windows that are trained on."""
    config = phase.config
    mixture = data.Mixture(
        _sources(phase, kinds, "train"), config.mix, rows=config.batch_rows,
        length_tokens=config.length_tokens, seed=config.seed, name="quietstar",
    )  # fmt: skip
    return rlp.Repeated(mixture, config.rlp.updates) if config.objective == "rlp" else mixture


def _report(
    config: Config, record: dict[str, Tensor], parent: dict[str, Tensor], kinds: list[str], gate: float | None,
    records: list[learn.StepRecord],
) -> Report:  # fmt: skip
    """Return what thinking changed on the validation split: over all tokens, by kind, and by
    difficulty.
    """
    samples, seed = config.measure.samples, config.seed
    rows = []
    for kind in [*kinds, "all"]:
        chosen = kinds if kind == "all" else [kind]
        base, mixed, weight, helped = (
            measure.stacked(record, chosen, name) for name in ("base", "mixed", "weight", "helped")
        )
        before = np.concatenate([parent[name].numpy() for name in chosen])
        real = ~np.isnan(base)
        gain = measure.interval(base - mixed, real, samples, seed)
        base_gain = measure.interval(before - base, real, samples, seed)
        mean = {
            name: measure.interval(v, real, 1, seed)["value"]
            for name, v in (("weight", weight), ("helped", helped))
        }
        rows.append(
            {
                "data": kind, "tokens": gain["n"], "parent (nats)": measure.interval(before, real, 1, seed)["value"],
                "base (nats)": measure.interval(base, real, 1, seed)["value"],
                "thinking (nats)": measure.interval(mixed, real, 1, seed)["value"],
                "gain of thinking": gain["value"], "gain low": gain["low"], "gain high": gain["high"],
                "gain of base over parent": base_gain["value"], "base low": base_gain["low"], "base high": base_gain["high"],
                "mixing weight": mean["weight"], "share helped": mean["helped"],
            }
        )  # fmt: skip
    entropy = measure.stacked(record, kinds, "entropy")
    gate_open = (
        np.zeros(real.shape, bool) if gate is None else real & (np.nan_to_num(entropy) >= gate)
    )
    inside = measure.interval(base - mixed, gate_open, samples, seed)
    metrics = {
        "thinking_gain_nats": gain, "base_gain_over_parent_nats": base_gain, "gain_where_gate_opens_nats": inside,
        "gate_entropy_nats": gate, "gate_open_share": float(gate_open.sum() / real.sum()), "mixing_weight": mean["weight"],
        "share_helped": mean["helped"], "reward_nats_last_steps": _last(records, "reward_nats"),
    }  # fmt: skip
    tables = {
        "thinking on held-out tokens (validation split)": rows,
        "by difficulty": measure.by_decile(record, kinds, config),
    }
    baseline = (
        "none ran of equal budget (the parent trained on without thoughts); against the same weights without thoughts: "
        f"{gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}] nats per token (n={gain['n']})"
    )
    summary = _summary(gain, inside, metrics)
    return Report(summary=summary, outputs=[], metrics=metrics, tables=tables, baseline=baseline)


def _summary(gain: dict[str, Any], inside: dict[str, Any], metrics: dict[str, Any]) -> str:
    """Return whether thinking helped, in one or two sentences."""
    said = f"{_judged(gain)} over {gain['n']} held-out tokens"
    if metrics["gate_entropy_nats"] is None:
        return (
            f"{said}; at no tried gate did it help by more than chance, so the gate stays shut and the model answers "
            "without thinking."
        )
    return (
        f"{said}. The gate opens from {metrics['gate_entropy_nats']:.2f} nats of entropy, on "
        f"{metrics['gate_open_share']:.0%} of tokens, where it gains {inside['value']:+.4f} "
        f"[{inside['low']:+.4f}, {inside['high']:+.4f}]."
    )


def _judged(gain: dict[str, Any]) -> str:
    """Return what thinking did: it gained, it cost, or its interval holds 0."""
    value, low, high = gain["value"], gain["low"], gain["high"]
    if low > 0:
        return f"Thinking gained {value:.4f} nats per token [{low:.4f}, {high:.4f}]"
    if high < 0:
        return f"Thinking cost {-value:.4f} nats per token [{-high:.4f}, {-low:.4f}]"
    return (
        f"Thinking made no clear difference: {value:+.4f} nats per token [{low:+.4f}, {high:+.4f}]"
    )


def _last(records: list[learn.StepRecord], name: str) -> float:
    """Return the mean of a metric over the last tenth of the steps."""
    values = [record.metrics[name] for record in records if name in record.metrics]
    return float(np.mean(values[-max(len(values) // 10, 1) :])) if values else 0.0


def _samples(
    phase: PhaseRun[Config],
    record: dict[str, Tensor],
    windows: dict[str, dict[str, Tensor]],
    kinds: list[str],
) -> list[str]:
    """Return thoughts in their context: the first of evenly spread windows, not the best."""
    samples: list[str] = []
    count = phase.config.measure.shown
    for number in range(count):
        kind = kinds[number % len(kinds)]
        batch, base, mixed = windows[kind], record[f"{kind}/base"], record[f"{kind}/mixed"]
        rows = (~base.isnan()).any(1).nonzero().flatten()
        if not len(rows):
            continue
        row = int(rows[number * len(rows) // count])
        real = (~base[row].isnan()).nonzero().flatten()
        at = int(real[len(real) // 2])
        column = int(batch["positions"][row, at])
        ids = batch["input_ids"][row].tolist()
        context, following = (
            ids[max(column - SHOWN_CONTEXT_TOKENS, 0) : column + 1],
            ids[column + 1],
        )
        thought = record[f"{kind}/tokens"][row, at, 0].tolist()
        before, word, after = (
            phase.tokenizer.decode(part) for part in (context, thought, [following])
        )
        without, thinking = float(base[row, at]), float(mixed[row, at])
        samples.append(
            f"{before!r} thinks {word!r}, then {after!r}: {without:.3f} nats without, {thinking:.3f} with"
        )
    return samples
