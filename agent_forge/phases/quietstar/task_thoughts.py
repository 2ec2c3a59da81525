"""Objective `task_thoughts`: short rationales learned from verified examples, then reinforced.

For models under a billion parameters, which gain nothing from thoughts at every position: first
rationales between tags are learned as any answer is, then the model's own replies are reinforced by
whether their answers are right. A control learns the same questions and answers without rationales,
in as many tokens. The result goes on only where it answers more questions than the parent and than
the control, beyond chance; else the parent's weights do, and the report says so. Reads sources[0], writes a model of its
kind.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from agent_forge import data, evaluate, learn, models
from agent_forge.config import OptimConfig, Report
from agent_forge.core.errors import CheckpointError
from agent_forge.core.seeds import seed_for
from agent_forge.data.sources import RowSource
from agent_forge.data.synthetic import rationales
from agent_forge.evaluate import Scores
from agent_forge.learn.reward import Questions, Reinforcement
from agent_forge.models.thought import ThoughtForCausalLM
from agent_forge.phases import PhaseRun
from agent_forge.phases.quietstar import Config

TASK = "rationales"
SPLIT = "validation"
CONTROL, SHOWN, REINFORCED = "answers alone", "rationales", "reinforced"
_IN_WORDS = {"parent": "the parent", CONTROL: "answers alone at equal training tokens"}


@dataclass(slots=True)
class TaskStages:
    """What the training left: scores by stage, and records of the reinforcement."""

    scores: dict[str, Scores]
    records: list[learn.StepRecord]


def run(phase: PhaseRun[Config]) -> Report:
    """Read sources[0], write the model that thinks in words.

    Raises CheckpointError without a parent and for a parent that thinks at every position.
    """
    if not phase.sources:
        raise CheckpointError("quietstar needs a parent checkpoint: sources=[DIRECTORY]")
    parent = models.load(phase.sources[0], device=phase.device)
    if isinstance(parent, ThoughtForCausalLM):
        raise CheckpointError(
            f"{phase.sources[0].path} is a thinking model already; give quietstar the checkpoint "
            "before it"
        )
    model = copy.deepcopy(parent)
    trained = _trained(phase, parent, model)
    gains = _gains(phase, trained.scores)
    report = _report(trained, gains)
    report.samples = _samples(phase, model)
    missing = [name for name, gain in gains.items() if gain["low"] <= 0]
    if phase.config.only_if_better and missing:
        names = " and over ".join(_IN_WORDS[name] for name in missing)
        report.summary += f" No gain over {names} is shown, so the parent's weights go on."
        chosen = parent
    else:
        report.summary += " The result goes on."
        chosen = model
    written = phase.out.write(
        lambda directory: models.save(chosen, phase.tokenizer, directory),
        metrics=report.metrics,
        deployable_bytes=models.deployable_bytes(chosen),
    )
    phase.events.metrics("thinking", report.metrics)
    report.outputs = [str(written.path)]
    return report


def _gains(phase: PhaseRun[Config], scores: dict[str, Scores]) -> dict[str, dict[str, Any]]:
    """Return the gain of the last stage over the parent, and over the control where it ran."""
    last = scores[list(scores)[-1]]
    gains = {}
    for name in ("parent", CONTROL):
        if name in scores:
            value, low = evaluate.paired_gain(
                scores[name], last, samples=phase.config.measure.samples, seed=phase.config.seed
            )
            gains[name] = {"value": value, "low": low, "n": last.n}
    return gains


def _trained(
    phase: PhaseRun[Config], parent: PreTrainedModel, model: PreTrainedModel
) -> TaskStages:
    """Train `model` in place, stage after stage, and score every stage on the same questions."""
    config, task = phase.config, phase.config.task
    seed = seed_for(config.seed, "quietstar", TASK)
    rows = rationales.rows(task.rows, "train", seed)
    scores = {"parent": _scores(phase, "parent", parent)}
    if task.control:
        control = copy.deepcopy(parent)
        _fine_tune(phase, control, [rationales.plain(row) for row in rows], CONTROL)
        scores[CONTROL] = _scores(phase, CONTROL, control)
        del control
    _fine_tune(phase, model, rows, SHOWN)
    scores[SHOWN] = _scores(phase, SHOWN, model)
    records: list[learn.StepRecord] = []
    if task.reinforce_steps:
        records = _reinforce(phase, model, rows)
        scores[REINFORCED] = _scores(phase, REINFORCED, model)
    return TaskStages(scores, records)


def _scores(phase: PhaseRun[Config], name: str, model: PreTrainedModel) -> Scores:
    """Return exact match on held-out questions, computed once, also across restarts."""

    def measured() -> Any:
        items = phase.config.task.measure_items
        return evaluate.score(model, phase.tokenizer, [TASK], SPLIT, items, phase.eval_context)[
            TASK
        ].to_plain()

    return Scores.from_plain(phase.out.remember(f"score-{name.replace(' ', '-')}", measured))


def _fine_tune(
    phase: PhaseRun[Config], model: PreTrainedModel, rows: list[dict[str, Any]], stage: str
) -> None:
    """Learn the replies of `rows`, with text of the base beside them so that it stays."""
    config, task = phase.config, phase.config.task
    sources: dict[str, Any] = {TASK: RowSource(rows, phase.tokenizer)}
    weights = {TASK: 1 - task.text_share}
    if task.text_share:
        sources["text"] = data.source("text", config.data, phase.tokenizer, "train", config.seed)
        weights["text"] = task.text_share
    mixture = data.Mixture(
        sources, weights, rows=config.batch_rows, length_tokens=config.length_tokens,
        seed=config.seed, name=f"quietstar-{TASK}",
    )  # fmt: skip
    _train(phase, model, mixture, learn.lm_loss, stage, task.steps, task.lr)


def _reinforce(
    phase: PhaseRun[Config], model: PreTrainedModel, rows: list[dict[str, Any]]
) -> list[learn.StepRecord]:
    task = phase.config.task
    reference = copy.deepcopy(model).requires_grad_(False).eval()
    seed = phase.config.seed
    loss = Reinforcement(rows, phase.tokenizer, reference, task, seed=seed, phase="quietstar")
    batches = Questions(len(rows), task.items, seed, "quietstar")
    return _train(phase, model, batches, loss, REINFORCED, task.reinforce_steps, task.reinforce_lr)


def _train(
    phase: PhaseRun[Config],
    model: PreTrainedModel,
    batches: learn.Batches,
    loss: Callable[..., Any],
    stage: str,
    steps: int,
    lr: float,
) -> list[learn.StepRecord]:
    """Train one stage with the phase's optimiser at a rate of its own."""
    optim: OptimConfig = copy.copy(phase.config.optim)
    optim.lr, optim.clip_norm = lr, 1.0
    return learn.train(
        model,
        learn.TrainRequest(
            batches=batches, loss_fn=loss, stage=stage.replace(" ", "-"), steps=steps, optim=optim,
            out=phase.out, events=phase.events, seed=phase.config.seed, device=phase.device,
            dtype=phase.dtype,
        ),
    )  # fmt: skip


def _report(trained: TaskStages, gains: dict[str, dict[str, Any]]) -> Report:
    """Return what rationales and reinforcement brought, stage by stage and kind by kind."""
    scores = trained.scores
    last = list(scores)[-1]
    metrics: dict[str, Any] = {
        f"right_{name.replace(' ', '_')}": one.as_metric() for name, one in scores.items()
    }
    metrics["gain_over_parent"] = gains["parent"]
    baseline = "none ran: task.control=true trains on answers alone, in as many tokens"
    if CONTROL in gains:
        metrics["gain_over_control"] = over = gains[CONTROL]
        baseline = (
            "against the same questions without rationales at equal training tokens: "
            f"{over['value']:+.3f} (at least {over['low']:+.3f}, n={over['n']}); a reply with a "
            "thought is longer"
        )
    if trained.records:
        tenth = trained.records[-max(len(trained.records) // 10, 1) :]
        metrics["reward_last_steps"] = sum(one.metrics["reward"] for one in tenth) / len(tenth)
        metrics["kl_last_steps_nats"] = sum(one.metrics["kl_nats"] for one in tenth) / len(tenth)
    shares = ", ".join(f"{name} {one.mean:.3f}" for name, one in scores.items())
    rows = [
        {"stage": name, "kind": kind, "right": round(figures["value"], 4), "n": figures["n"]}
        for name, one in scores.items()
        for kind, figures in one.by_kind().items()
    ]
    return Report(
        summary=f"Right answers: {shares} (n={scores[last].n}).", outputs=[],
        metrics=metrics, tables={"right answers by kind of question (validation)": rows},
        baseline=baseline,
    )  # fmt: skip


def _samples(phase: PhaseRun[Config], model: PreTrainedModel) -> list[str]:
    """Return the first held-out questions with what the trained model replies."""
    shown = phase.config.measure.shown
    if not shown:
        return []
    items = evaluate.task_items(TASK, SPLIT, shown, phase.eval_context)
    questions = [item["messages"][:1] for item in items]
    decoding = phase.eval_context.decoding(phase.config.task.max_new_tokens)
    replies = evaluate.generate_replies(model, phase.tokenizer, questions, decoding)
    return [
        f"{item['messages'][0]['content']} {phase.tokenizer.decode(reply)!r} "
        f"(right: {item['answer']})"
        for item, reply in zip(items, replies, strict=True)
    ]
