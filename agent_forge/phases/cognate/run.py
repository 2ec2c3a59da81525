"""Pretrain or import the trunk, branch and train the three specialists, probe all four, write four
checkpoints.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import data, learn, models
from agent_forge.checkpoint import Checkpoint
from agent_forge.config import Report
from agent_forge.core.errors import ConfigError
from agent_forge.core.seeds import seed_for
from agent_forge.data.synthetic import memory, mixed, reasoning, tools
from agent_forge.learn.adapters import adapters
from agent_forge.models.cognate import CognateConfig, CognateForCausalLM
from agent_forge.models.cognate import loss as cognate_loss
from agent_forge.phases import PhaseRun
from agent_forge.phases.cognate import SPECIALISTS, Config, SpecialistConfig, longer
from agent_forge.phases.cognate.probes import OWN_PROBE, measure
from agent_forge.phases.cognate.segments import (
    KIND,
    BatchPlan,
    RecallRows,
    WithRecall,
    segment_loss,
)

MODEL_SETTINGS = (
    "halting_threshold", "surprise_weight", "novelty_weight", "halting_loss_weight", "entropy_cost", "ponder_cost",
    "read_loss_weight", "write_loss_weight",
)  # fmt: skip
# Names of the halting head begin so.
HALTING = "model.halting."
UNION, CONTROL = "union", "control"  # name and role of the model that merging is compared with


def run(phase: PhaseRun[Config]) -> Report:
    """Train and write the four models. Raises ConfigError when model=imported has no source."""
    config, out = phase.config, phase.out
    if config.model.kind == "imported":
        if not phase.sources:
            raise ConfigError(
                "model=imported takes its trunk from a checkpoint; give sources=[DIR] (see `forge import`)"
            )
        trunk = models.load(phase.sources[0], device=phase.device)
        losses: list[float] = []
    else:
        phase.tokenizer = trained_tokenizer(phase)
        trunk, losses = pretrained_trunk(phase)
    tables = {"trunk": out.remember("probe-trunk", lambda: measure(trunk, phase.tokenizer, config))}
    written = [_write(phase, trunk, "trunk", tables["trunk"], losses, parents=None)]
    items: dict[str, Any] = {}
    beside = config.baseline and config.starts_from_nothing()
    for name in SPECIALISTS:
        model, losses = specialist(phase, name, trunk)
        tables[name] = out.remember(
            f"probe-{name}", partial(measure, model, phase.tokenizer, config)
        )
        written.append(_write(phase, model, name, tables[name], losses, parents=[written[0]]))
        if beside:
            items[name] = out.remember(
                f"items-{name}", partial(longer.own_items, model, phase.tokenizer, config, [name])
            )
    rival = _longer(phase, trunk, tables) if beside else {}
    if config.union:
        written.append(_union(phase, trunk, tables, written[0]))
    return _report(tables, written, longer.compared(items, rival, config))


def trained_tokenizer(phase: PhaseRun[Config]) -> PreTrainedTokenizerFast:
    """Return the tokenizer, trained once on text and rendered rows and kept in the phase's
    state.
    """
    config, directory = phase.config, phase.out.state / "tokenizer"

    def train() -> dict[str, str]:
        phase.events.message("training the tokenizer", stage="tokenizer")
        rows = [
            message["content"]
            for task in (reasoning, memory, tools, mixed)
            for row in task.rows(
                config.tokenizer_rows, "train", seed_for(config.seed, "cognate", "tokenizer")
            )
            for message in row["messages"]
        ]
        texts = [*data.documents(config.data, "train"), *rows]
        tokenizer = data.train_tokenizer(
            texts, config.model.vocab_size, context_tokens=config.model.max_position_embeddings
        )
        tokenizer.save_pretrained(directory)
        return {file.name: file.read_text(encoding="utf-8") for file in sorted(directory.iterdir())}

    for name, content in phase.out.remember("tokenizer", train).items():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content, encoding="utf-8")
    return PreTrainedTokenizerFast.from_pretrained(directory)


def pretrained_trunk(phase: PhaseRun[Config]) -> tuple[CognateForCausalLM, list[float]]:
    """Return the trunk after pretraining, and its loss at every step (nats)."""
    config, tokenizer = phase.config, phase.tokenizer
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
    model.to(phase.device)
    # Up to this step the trunk makes one pass per token, which costs a part of the full loop.
    grow_step = round(config.trunk.one_pass_share * config.trunk.steps)

    plan = BatchPlan(
        name="cognate-trunk",
        steps=config.trunk.steps,
        rows=config.trunk.rows,
        length_tokens=config.trunk.length_tokens,
        seed=config.seed,
    )
    batches = mixed_batches(plan, config.trunk.mix, config, tokenizer)
    recall_or_plain = loss_over(batches, config)

    def loss_fn(
        model: Any, batch: dict[str, Tensor], step: int
    ) -> tuple[Tensor, Mapping[str, Any]]:
        return recall_or_plain(model, batch, step, loops=1 if step < grow_step else None)

    records = learn.train(
        model,
        learn.TrainRequest(
            batches=batches,
            loss_fn=loss_fn,
            stage="trunk",
            steps=config.trunk.steps,
            optim=config.trunk.optim,
            out=phase.out,
            events=phase.events,
            seed=config.seed,
            device=phase.device,
            dtype=phase.dtype,
            settings={"one_pass_share": config.trunk.one_pass_share},
        ),
    )
    return model.eval(), [record.loss for record in records]


def specialist(
    phase: PhaseRun[Config], name: str, trunk: PreTrainedModel
) -> tuple[PreTrainedModel, list[float]]:
    """Return a copy of the trunk trained as specialist `name`, and its loss at every step
    (nats).
    """
    settings: SpecialistConfig = getattr(phase.config, name)
    steps = phase.config.branch_steps(name)
    return trained_on(phase, trunk, name, settings.mix, steps, settings)


def _longer(
    phase: PhaseRun[Config], trunk: Any, tables: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Measure the trunk that is trained as long into `tables`; return its items of every
    specialist's own probe.
    """
    config, tokenizer, out = phase.config, phase.tokenizer, phase.out
    model = longer_trunk(phase, trunk)
    tables[longer.NAME] = out.remember("probe-longer", lambda: measure(model, tokenizer, config))
    return dict(
        out.remember(
            "items-longer", lambda: longer.own_items(model, tokenizer, config, SPECIALISTS)
        )
    )


def longer_trunk(phase: PhaseRun[Config], trunk: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of the trunk trained on with its own mix, for a specialist's mean steps,
    batches and optimiser.
    """
    config = phase.config
    return trained_on(phase, trunk, "longer", config.trunk.mix, config.longer_steps())[0]


def _union(
    phase: PhaseRun[Config],
    trunk: PreTrainedModel,
    tables: dict[str, dict[str, float]],
    parent: Checkpoint,
) -> Checkpoint:
    """Train and write the control of merging: one model on the union of the specialists' data, for
    as many tokens as all of them together.
    """
    config = phase.config
    steps = {name: config.branch_steps(name) for name in SPECIALISTS}
    mix: dict[str, float] = {}
    for name in SPECIALISTS:
        own = getattr(config, name).mix
        for kind, share in own.items():
            mix[kind] = mix.get(kind, 0.0) + steps[name] * share / sum(own.values())
    model, losses = trained_on(phase, trunk, UNION, mix, sum(steps.values()))
    tables[UNION] = phase.out.remember(
        "probe-union", lambda: measure(model, phase.tokenizer, config)
    )
    return _write(phase, model, UNION, tables[UNION], losses, parents=[parent])


def trained_on(
    phase: PhaseRun[Config],
    trunk: PreTrainedModel,
    stage: str,
    mix: Mapping[str, float],
    steps: int,
    own: SpecialistConfig | None = None,
) -> tuple[PreTrainedModel, list[float]]:
    """Return a copy of the trunk trained on `mix` with a specialist's batches and optimiser, and
    its loss at every step (nats).

    own: what a specialist has of its own: settings of the model, and the price of its passes.
    """
    config = phase.config
    model, branch = copy.deepcopy(trunk), config.branch
    if own is not None and isinstance(model, CognateForCausalLM):
        for key in MODEL_SETTINGS:
            setattr(model.config, key, getattr(own, key))
    plan = BatchPlan(
        name=f"cognate-{stage}",
        steps=steps,
        rows=branch.rows,
        length_tokens=branch.length_tokens,
        seed=config.seed,
    )
    segmented = isinstance(model, CognateForCausalLM)
    batches = mixed_batches(plan, mix, config, phase.tokenizer, segmented=segmented)
    loss = loss_over(batches, config)
    with adapters(
        model,
        branch.lora_rank,
        branch.lora_alpha,
        seed_for(config.seed, "cognate", "adapters", stage),
        "branch.lora_rank",
    ):
        records = learn.train(
            model,
            learn.TrainRequest(
                batches=batches,
                loss_fn=loss if own is None else priced(loss, own, steps),
                stage=stage,
                steps=steps,
                optim=branch.optim,
                out=phase.out,
                events=phase.events,
                seed=config.seed,
                parameters=None if own is None else _groups(model, own),
                device=phase.device,
                dtype=phase.dtype,
                settings={"mix": dict(mix), "lora": [branch.lora_rank, branch.lora_alpha]},
            ),
        )
    return model.eval(), [record.loss for record in records]


def priced(loss: Any, settings: SpecialistConfig, steps: int) -> Any:
    """Return `loss` of a specialist whose passes get their price at a share of the steps.

    With a price from the start, tokens would halt before the deeper passes had learned to be
    useful.
    """

    def priced_loss(
        model: Any, batch: dict[str, Tensor], step: int
    ) -> tuple[Tensor, Mapping[str, Any]]:
        if isinstance(model.config, CognateConfig):
            # Before its price begins, a pass is free and the exits are kept undecided.
            early = step < settings.ponder_from * steps
            model.config.ponder_cost = 0.0 if early else settings.ponder_cost
            model.config.entropy_cost = 1.0 if early else settings.entropy_cost
        return loss(model, batch, step)

    return priced_loss


def _groups(model: PreTrainedModel, settings: SpecialistConfig) -> list[dict[str, Any]]:
    """Return the groups of trained parameters. The halting head has its own, because its learning
    rate must bring it to sure decisions in few steps.
    """
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    halting = [value for name, value in trained if name.startswith(HALTING)]
    groups = [{"params": [value for name, value in trained if not name.startswith(HALTING)]}]
    return groups + (
        [{"params": halting, "lr_scale": settings.halting_lr_scale}] if halting else []
    )


def mixed_batches(
    plan: BatchPlan,
    mix: Mapping[str, float],
    config: Config,
    tokenizer: PreTrainedTokenizerFast,
    *,
    segmented: bool = True,
) -> data.Mixture | WithRecall:
    """Return the batches of a stage. A model without memory (segmented=False) gets recall as
    ordinary rows.
    """

    def rows_seed(kind: str) -> int:
        return seed_for(config.seed, "cognate", "rows", kind)

    plain = {kind: share for kind, share in mix.items() if kind != KIND}
    if not segmented and KIND in mix:
        plain["memory"] = plain.get("memory", 0.0) + mix[KIND]
    mixture = None
    if sum(plain.values()) > 0:
        sources = {
            kind: data.source(
                kind, config.data, tokenizer, "train", rows_seed(kind), rows=config.generated_rows
            )
            for kind in plain
        }
        mixture = data.Mixture(
            sources,
            plain,
            rows=plan.rows,
            length_tokens=plan.length_tokens,
            seed=plan.seed,
            name=plan.name,
        )
    if not (segmented and mix.get(KIND, 0.0) > 0):
        assert mixture is not None
        return mixture
    facts = memory.rows(config.generated_rows, "train", rows_seed(KIND))
    return WithRecall(
        mixture,
        mix[KIND] / sum(mix.values()),
        RecallRows(facts, tokenizer, config.recall.segment_tokens),
        data.TextSource(config.data, tokenizer, "train"),
        config.recall,
        plan,
    )


def loss_over(batches: data.Mixture | WithRecall, config: Config) -> Any:
    """Return loss(model, batch, step, loops=None): over segments in steps of recall, else the
    model's own loss.
    """

    def loss(
        model: Any, batch: dict[str, Tensor], step: int, loops: int | None = None
    ) -> tuple[Tensor, Mapping[str, Any]]:
        if isinstance(batches, WithRecall) and batches.recalls(step):
            return segment_loss(
                model,
                batch["input_ids"],
                batch["labels"],
                config.recall,
                batches.source.pad,
                loops=loops,
            )
        if loops is None:
            return learn.lm_loss(model, batch, step)
        total, metrics, _ = cognate_loss.expected_loss(
            model, batch["input_ids"], batch["labels"], loops=loops
        )
        return total, metrics

    return loss


def _write(
    phase: PhaseRun[Config],
    model: PreTrainedModel,
    name: str,
    probes: dict[str, float],
    losses: list[float],
    parents: list[Checkpoint] | None,
) -> Checkpoint:
    def save(directory: Path) -> None:
        models.save(model, phase.tokenizer, directory)

    written = phase.out.write(
        save,
        name=name,
        role={"trunk": "trunk", UNION: CONTROL}.get(name, "specialist"),
        metrics={
            **probes,
            "parameters": sum(p.numel() for p in model.parameters()),
            "steps": len(losses),
        },
        extra={
            "training": {"losses_nats": losses},
            "validation": {"split": "validation", **probes},
        },
        deployable_bytes=models.deployable_bytes(model),
        parents=parents,
    )
    phase.events.artefact(written.path)
    return written


def _report(
    tables: dict[str, dict[str, float]], written: list[Checkpoint], baseline: str
) -> Report:
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
                "trunk": round(losses["trunk"], 4),
                **({longer.NAME: round(losses[longer.NAME], 4)} if longer.NAME in losses else {}),
                "beats_siblings": losses[name] < best,
            }
        )  # fmt: skip
    winners = sum(bool(row["beats_siblings"]) for row in own)
    rows = [
        {"model": name, **{key: round(value, 4) for key, value in probes.items()}}
        for name, probes in tables.items()
    ]
    return Report(
        summary=f"Trunk at {trunk['text_bits_per_byte']:.3f} bits per byte; "
        f"{winners} of 3 specialists beat their siblings on their own probe.",
        outputs=[str(checkpoint.path) for checkpoint in written],
        metrics=metrics,
        tables={"Own probes": own, "All probes": rows},
        baseline=baseline,
    )
