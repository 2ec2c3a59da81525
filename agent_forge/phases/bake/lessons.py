"""What one step of baking learns from: trace rows, replay, neutral text and persona answers, and
their joint loss.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agent_forge import data, learn
from agent_forge.core.errors import PhaseError
from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.data.sources import IGNORE
from agent_forge.phases import PhaseRun
from agent_forge.phases.bake import Config, own, persona, preferences, toolformer, traces, voice

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Kinds of training.mix that can be all that a bake teaches; the others are replay.
TAUGHT = ("rows", "schemas", "copying", "bfcl")
Lessons = dict[str, dict[str, Tensor]]  # trait -> lesson of persona.teach


def enabled_kinds(config: Config) -> list[str]:
    """Return the kinds of traces that are made.

    Raises PhaseError when there is none and nothing else is taught either: no rows of the user's
    own, no pairs, and no generated or packaged calls.
    """
    kinds = config.kinds()
    taught = any(config.training.mix.get(kind, 0) > 0 for kind in TAUGHT)
    if not (kinds or taught or config.preferences.rows):
        raise PhaseError(
            "bake has nothing to bake: every traces.<kind>.count is 0, or builtin kinds are off and "
            "tools=[]; try traces.calculator.count=2000, tools=[my_tools.py], "
            "training.mix={schemas: 1}, or rows of your own"
        )
    return kinds


def make(phase: PhaseRun[Config], kind: str) -> list[traces.Trace]:
    """Return the training traces of a kind, before the filter."""
    config = phase.config
    if kind == own.KIND:
        return own.training(phase)
    count = getattr(config.traces, kind).count
    digits = config.traces.digits
    return traces.make(kind, count, "train", config.seed, config.data, digits)


def collect(
    phase: PhaseRun[Config], parent: "PreTrainedModel"
) -> tuple[dict[str, list[traces.Trace]], list[dict[str, Any]]]:
    """Return the traces of each kind whose call helps, and a table of how many there are."""
    config = phase.config
    helpful: dict[str, list[traces.Trace]] = {}
    table = []
    for kind in enabled_kinds(config):

        def compute(kind: str = kind) -> dict[str, Any]:
            candidates = make(phase, kind)
            filtered = [i for i, trace in enumerate(candidates) if trace["filtered"]]
            losses = toolformer.trace_losses(
                parent, phase.tokenizer, [candidates[i] for i in filtered]
            )
            gains = [toolformer.gain(one) for one in losses]
            chosen = {
                filtered[k]
                for k in toolformer.keep(
                    gains, config.traces.tau_nats, config.traces.min_kept_share
                )
            }
            passing = sum(gain >= config.traces.tau_nats for gain in gains)
            whole = [
                trace for i, trace in enumerate(candidates) if i in chosen or not trace["filtered"]
            ]
            count = max(len(gains), 1)
            return {
                "kept": whole, "asked": len(filtered), "passing": passing, "chosen": len(chosen),
                "gain": sum(gains) / count, "losses": [sum(part) / count for part in zip(*losses, strict=True)],
            }  # fmt: skip

        record = phase.out.remember(f"traces-{kind}", compute)
        helpful[kind] = record["kept"]
        if record["passing"] < record["chosen"]:
            phase.events.warning(
                f"{kind}: only {record['passing']} of {record['asked']} traces lower the answer's loss by "
                f"{config.traces.tau_nats:g} nats; the best {record['chosen']} are taken all the same "
                "(traces.min_kept_share overrides the filter)"
            )
        after, without, empty = record["losses"] or (0.0, 0.0, 0.0)
        table.append(
            {
                "kind": kind, "made": record["asked"], "pass tau": record["passing"],
                "taken below tau (filter overridden)": max(record["chosen"] - record["passing"], 0),
                "trained": len(record["kept"]), "mean gain (nats)": round(record["gain"], 3),
                "answer after the result": round(after, 3), "without a call": round(without, 3),
                "after an empty result": round(empty, 3),
            }
        )  # fmt: skip
        phase.events.progress("traces", len(helpful), len(enabled_kinds(config)))
    return helpful, table


class BakeBatches:
    """The batches of the joint training.

    One step holds {"input_ids", "labels"} for cross-entropy, "neutral_ids" of neutral data and
    "neutral_mask", where the parent's distribution on them is kept, "persona_rows", the numbers of
    rows of one trait's lesson, "voice_rows", likewise of the parent's own answers, and
    "preference_rows", the numbers of pairs.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: "PreTrainedTokenizerFast",
        helpful: Mapping[str, Sequence[traces.Trace]],
        lessons: Lessons,
        spoken: Mapping[str, Tensor] | None = None,
        pairs: Mapping[str, Tensor] | None = None,
    ) -> None:
        training = config.training
        seed = seed_for(config.seed, "bake", "batches")
        replay = {kind: weight for kind, weight in training.mix.items() if weight > 0}
        neutral: dict[str, float] = {}
        if training.neutral_rows > 0 and training.neutral_weight > 0:
            neutral = {kind: weight for kind, weight in training.neutral_mix.items() if weight > 0}
        sources: dict[str, data.sources.Source] = {
            kind: data.source(
                kind, config.data, tokenizer, "train", config.seed,
                rows=training.generated_rows, last_turn=training.last_turn,
            )
            for kind in {**replay, **neutral}
        }  # fmt: skip
        learned: dict[str, data.sources.Source] = {
            f"traces {kind}": data.RowSource(rows, tokenizer) for kind, rows in helpful.items()
        }
        weights = {f"traces {kind}": getattr(config.traces, kind).weight for kind in helpful}
        self.mixture = data.Mixture(
            {**learned, **{kind: sources[kind] for kind in replay}},
            {**weights, **replay},
            rows=training.rows,
            length_tokens=training.length_tokens,
            seed=seed,
            name="bake",
        )
        self.neutral: data.Mixture | None = None
        if neutral:
            self.neutral = data.Mixture(
                {kind: sources[kind] for kind in neutral}, neutral, rows=training.neutral_rows,
                length_tokens=training.length_tokens, seed=seed, name="bake-neutral",
            )  # fmt: skip
        self.lessons, self.seed, self.persona_rows = lessons, seed, config.persona.rows
        self.traits = list(lessons)
        self.spoken, self.voice_rows = spoken, config.voice.rows
        self.pairs, self.pairs_per_step = pairs, config.preferences.pairs
        self.on_policy = config.on_policy.steps > 0
        self.drawn_back = bool(config.retain.tasks)

    def trait(self, step: int) -> str:
        """Return the trait whose turn it is ("" without lessons)."""
        return self.traits[step % len(self.traits)] if self.traits else ""

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the tensors of one step: a pure function of step."""
        tensors = self.mixture.batch(step)
        if self.neutral is not None:
            neutral = self.neutral.batch(step)
            tensors["neutral_ids"] = neutral["input_ids"]
            tensors["neutral_mask"] = neutral["labels"] != IGNORE
        if self.traits:
            count = len(self.lessons[self.trait(step)]["ids"])
            generator = numpy_generator(self.seed, "persona", step)
            rows = generator.choice(count, min(self.persona_rows, count), replace=False)
            tensors["persona_rows"] = torch.from_numpy(rows)
        if self.spoken is not None:
            generator = numpy_generator(self.seed, "voice", step)
            count = len(self.spoken["ids"])
            rows = generator.choice(count, min(self.voice_rows, count), replace=False)
            tensors["voice_rows"] = torch.from_numpy(rows)
        if self.pairs is not None:
            generator = numpy_generator(self.seed, "preferences", step)
            count = len(self.pairs["ids"]) // 2
            rows = generator.choice(count, min(self.pairs_per_step, count), replace=False)
            tensors["preference_rows"] = torch.from_numpy(rows)
        return tensors


def joint_loss(
    config: Config,
    parent: "PreTrainedModel",
    batches: BakeBatches,
    weights: Callable[[Any, int], Mapping[str, float]],
) -> learn.LossFn:
    """Return the loss of a step: cross-entropy + neutral KL + the KL of the trait whose turn it is.

    weights(model, step) gives each trait's weight now (0 for a trait at its target).
    """

    def loss_fn(model: Any, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Any]]:
        trait = batches.trait(step)
        weight = weights(model, step).get(trait, 0.0) if trait else 0.0
        loss, _ = learn.lm_loss(model, batch, step)
        metrics: dict[str, Any] = {"cross_entropy": loss.detach()}
        if "neutral_ids" in batch:
            ids = batch["neutral_ids"]
            with torch.no_grad():
                teacher = parent(input_ids=ids).logits
            kl = learn.distill_loss(
                teacher, model(input_ids=ids).logits, batch["neutral_mask"], 1.0
            )
            loss = loss + config.training.neutral_weight * kl
            metrics["neutral_kl"] = kl.detach()
        if "voice_rows" in batch:
            kl = voice.lesson_loss(model, batches.spoken, learn.on_host(batch)["voice_rows"])
            loss = loss + config.voice.weight * kl
            metrics["voice_kl"] = kl.detach()
        if batches.pairs is not None and "preference_rows" in batch:
            rows = learn.on_host(batch)["preference_rows"]
            dpo, margin = preferences.lesson_loss(
                model, batches.pairs, rows, config.preferences.beta
            )
            loss = loss + config.preferences.weight * dpo
            metrics |= {"dpo": dpo.detach(), "margin": margin}
        if weight > 0:
            rows = learn.on_host(batch)["persona_rows"]
            total, count = persona.lesson_kl(model, batches.lessons[trait], rows)
            loss = loss + weight * total / max(count, 1)
            metrics["persona_kl"] = total.detach() / max(count, 1)
        return loss, metrics

    return loss_fn
