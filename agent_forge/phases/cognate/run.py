"""Pretrain or take the trunk, branch and train the three specialists, probe all four, write four checkpoints."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import data, learn, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import Report
from agent_forge.core.device import pick_device, pick_dtype
from agent_forge.core.errors import ConfigError
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import seed_for
from agent_forge.data.synthetic import memory, mixed, reasoning, tools
from agent_forge.models import cognate_loss
from agent_forge.models.cognate import CognateConfig, CognateForCausalLM
from agent_forge.phases.cognate import Config, SpecialistConfig
from agent_forge.phases.cognate.probes import OWN_PROBE, measure
from agent_forge.phases.cognate.segments import SegmentRows, two_segment_loss

SPECIALISTS = ("reasoning", "memory_integration", "adaptive_computation")
MODEL_SETTINGS = (
    "halting_threshold", "surprise_weight", "novelty_weight", "halting_loss_weight", "entropy_cost", "ponder_cost",
    "read_loss_weight", "write_loss_weight",
)  # fmt: skip
Loss = Callable[[Any, dict[str, Tensor], int], tuple[Tensor, Mapping[str, Any]]]


def run(config: Config, sources: list[Checkpoint], out: Workspace, events: EventLog) -> Report:
    """Make the four models. Raises ConfigError when model=imported has no source."""
    device = pick_device(config.runtime.device)
    if config.model.kind == "imported":
        if not sources:
            raise ConfigError(
                "model=imported takes its trunk from a checkpoint; give sources=[DIR] (see `forge import`)"
            )
        tokenizer = models.load_tokenizer(sources[0])
        trunk = models.load(sources[0], device=device)
        losses: list[float] = []
    else:
        tokenizer = trained_tokenizer(config, out, events)
        trunk, losses = pretrained_trunk(config, tokenizer, out, events, device)
    tables = {"trunk": out.remember("probe-trunk", lambda: measure(trunk, tokenizer, config))}
    written = [_write(trunk, tokenizer, out, "trunk", "trunk", tables["trunk"], losses)]
    events.artefact(written[0].path)
    for name in SPECIALISTS:
        model, losses = specialist(name, trunk, config, tokenizer, out, events, device)
        tables[name] = out.remember(f"probe-{name}", partial(measure, model, tokenizer, config))
        written.append(_write(model, tokenizer, out, name, "specialist", tables[name], losses, parents=[written[0]]))
        events.artefact(written[-1].path)
    return _report(tables, written)


def trained_tokenizer(config: Config, out: Workspace, events: EventLog) -> PreTrainedTokenizerFast:
    """Return the tokenizer, trained once on text and rendered rows and kept in the phase's state."""
    directory = out.state / "tokenizer"

    def train() -> dict[str, str]:
        events.message("training the tokenizer", stage="tokenizer")
        rows = [
            message["content"]
            for task in (reasoning, memory, tools, mixed)
            for row in task.rows(config.tokenizer_rows, "train", seed_for(config.seed, "cognate", "tokenizer"))
            for message in row["messages"]
        ]
        texts = [*data.documents(config.data, "train"), *rows]
        tokenizer = data.train_tokenizer(
            texts, config.model.vocab_size, context_tokens=config.model.max_position_embeddings
        )
        tokenizer.save_pretrained(directory)
        return {file.name: file.read_text() for file in sorted(directory.iterdir())}

    for name, content in out.remember("tokenizer", train).items():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    return PreTrainedTokenizerFast.from_pretrained(directory)


def pretrained_trunk(
    config: Config, tokenizer: PreTrainedTokenizerFast, out: Workspace, events: EventLog, device: torch.device
) -> tuple[CognateForCausalLM, list[float]]:
    """Return the trunk after pretraining, and its loss at every step (nats)."""
    shape = {key: value for key, value in asdict(config.model).items() if key != "kind"}
    torch.manual_seed(seed_for(config.seed, "cognate", "weights"))
    model: Any = CognateForCausalLM(
        CognateConfig(
            **{**shape, "vocab_size": max(config.model.vocab_size, len(tokenizer))},
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **{key: getattr(config.reasoning, key) for key in MODEL_SETTINGS},
        )
    )
    model.to(device)
    grow_step = round(config.trunk.one_pass_share * config.trunk.steps)

    def loss_fn(model: CognateForCausalLM, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        loops = 1 if step < grow_step else None
        loss, metrics, _ = cognate_loss.expected_loss(model, batch["input_ids"], batch["labels"], loops=loops)
        return loss, metrics

    batches = data.Mixture(
        {kind: _source(kind, config, tokenizer) for kind in config.trunk.mix},
        config.trunk.mix,
        rows=config.trunk.rows,
        length_tokens=config.trunk.length_tokens,
        seed=config.seed,
        name="cognate-trunk",
    )
    records = learn.train(
        model, batches, loss_fn, stage="trunk", steps=config.trunk.steps, optim=config.trunk.optim, out=out,
        events=events, seed=config.seed, device=device, dtype=pick_dtype(config.runtime.dtype),
        settings={"one_pass_share": config.trunk.one_pass_share},
    )  # fmt: skip
    return model.eval(), [record.loss for record in records]


def specialist(
    name: str,
    trunk: PreTrainedModel,
    config: Config,
    tokenizer: PreTrainedTokenizerFast,
    out: Workspace,
    events: EventLog,
    device: torch.device,
) -> tuple[PreTrainedModel, list[float]]:
    """Return a copy of the trunk trained as specialist `name`, and its loss at every step (nats)."""
    settings: SpecialistConfig = getattr(config, name)
    model = copy.deepcopy(trunk)
    segmented = settings.write_segments and isinstance(model, CognateForCausalLM)
    if isinstance(model, CognateForCausalLM):
        for key in MODEL_SETTINGS:
            setattr(model.config, key, getattr(settings, key))
    loss_fn: Loss = learn.lm_loss
    if segmented:
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

        def loss_fn(model: Any, batch: dict[str, Tensor], step: int) -> tuple[Tensor, Mapping[str, Any]]:  # noqa: ARG001
            return two_segment_loss(model, batch["input_ids"], batch["labels"], pad)

    batches = data.Mixture(
        {kind: _source(kind, config, tokenizer, segmented and kind == "memory") for kind in settings.mix},
        settings.mix,
        rows=config.branch.rows,
        length_tokens=config.branch.length_tokens,
        seed=config.seed,
        name=f"cognate-{name}",
    )
    records = learn.train(
        model, batches, loss_fn, stage=name, steps=config.branch.steps, optim=config.branch.optim, out=out,
        events=events, seed=config.seed, device=device, dtype=pick_dtype(config.runtime.dtype),
        settings={"mix": dict(settings.mix)},
    )  # fmt: skip
    return model.eval(), [record.loss for record in records]


def _source(kind: str, config: Config, tokenizer: PreTrainedTokenizerFast, segmented: bool = False) -> Any:
    seed = seed_for(config.seed, "cognate", "rows", kind)
    if segmented:
        return SegmentRows(memory.rows(config.generated_rows, "train", seed), tokenizer)
    return data.source(kind, config.data, tokenizer, "train", seed, rows=config.generated_rows)


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    out: Workspace,
    name: str,
    role: str,
    probes: dict[str, float],
    losses: list[float],
    parents: list[Checkpoint] | None = None,
) -> Checkpoint:
    def save(directory: Path) -> None:
        models.save(model, tokenizer, directory)

    return out.write(
        save,
        name=name,
        role=role,
        metrics={**probes, "parameters": sum(p.numel() for p in model.parameters()), "steps": len(losses)},
        extra={"training": {"losses_nats": losses}, "validation": {"split": "validation", **probes}},
        deployable_bytes=models.deployable_bytes(model),
        parents=parents,
    )


def _report(tables: dict[str, dict[str, float]], written: list[Checkpoint]) -> Report:
    trunk = tables["trunk"]
    metrics: dict[str, Any] = {
        "trunk_text_bits_per_byte": {
            "value": trunk["text_bits_per_byte"], "low": trunk["text_low"], "high": trunk["text_high"]
        }
    }  # fmt: skip
    own = []
    for name, probe in OWN_PROBE.items():
        losses = {other: tables[other][f"{probe}_loss_nats"] for other in tables}
        best = min(losses[other] for other in SPECIALISTS if other != name)
        metrics[f"{name}_{probe}_loss_nats"] = losses[name]
        own.append(
            {
                "specialist": name, "probe": probe, "loss_nats": round(losses[name], 4), "best_sibling": round(best, 4),
                "trunk": round(losses["trunk"], 4), "beats_siblings": losses[name] < best,
            }
        )  # fmt: skip
    won = sum(bool(row["beats_siblings"]) for row in own)
    rows = [{"model": name, **{key: round(value, 4) for key, value in found.items()}} for name, found in tables.items()]
    return Report(
        summary=f"Trunk at {trunk['text_bits_per_byte']:.3f} bits per byte; "
        f"{won} of 3 specialists beat their siblings on their own probe.",
        outputs=[str(checkpoint.path) for checkpoint in written],
        metrics=metrics,
        tables={"Own probes": own, "All probes": rows},
    )
