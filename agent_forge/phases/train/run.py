"""Run the ten stages one after another, measure after each, and write the model."""

import copy
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from agent_forge import evaluate, models
from agent_forge.config import Report
from agent_forge.core.errors import ConfigError
from agent_forge.core.seeds import seed_for
from agent_forge.data import sets
from agent_forge.learn import StepRecord, TrainRequest, last_weights, train
from agent_forge.phases import PhaseRun
from agent_forge.phases.train import STAGES, Config, choice, plain
from agent_forge.phases.train.control import Rollback
from agent_forge.phases.train.measure import TrainBench, scores_of
from agent_forge.phases.train.stages import (
    Planner,
    StagePlan,
    mechanism_settings,
    mixture,
    plain_sources,
    self_model_error,
    stage_optim,
)

SAMPLES = 1000  # bootstrap resamples of the gain over the parent


def run(phase: PhaseRun[Config]) -> Report:
    """Train sources[0] through all stages that have steps.

    Raises ConfigError without a source and without a step.
    """
    config, out = phase.config, phase.out
    if not phase.sources:
        raise ConfigError("train needs a model to start from: set sources=[DIRECTORY]")
    stages = config.taken_stages()
    if not stages:
        raise ConfigError(
            "train has no step to take: every stage of `steps` is 0; set one, for example steps.settle=40"
        )
    model = models.load(phase.sources[0], device=phase.device)
    kinds = plain_sources(config, phase.tokenizer)
    bench = TrainBench(config, phase.tokenizer, mixture(config, kinds, config.mix, "probes"))
    planner = Planner(phase, bench, kinds)
    before = out.remember("measured-start", lambda: bench.everything(model, "start"))
    rows = [_row("start", before, {})]
    measured = before
    steered = [] if config.only_averages() else config.steered_stages()
    unsteered: Any = None
    for stage in stages:
        if config.baseline and [stage] == steered[:1]:
            unsteered = copy.deepcopy(model)
        plan = planner.plan(stage, model)
        records = _train_stage(phase, plan, stage, model)
        measured = out.remember(f"measured-{stage}", partial(bench.everything, model, stage))
        rows.append(_row(stage, measured, _facts(stage, plan, records)))
        phase.events.metrics(
            stage, {key: value for key, value in rows[-1].items() if value is not None}
        )
    ending = _Ending(measured=measured, rows=rows, baseline=plain.SAME)
    last = last_weights(out, stages[-1], phase.events) if config.is_on("average") else {}
    if last:
        _choose_average(phase, bench, model, last, ending)
    if unsteered is not None:
        plain.train_plainly(phase, unsteered, kinds)
        _choose_mechanisms(phase, bench, model, unsteered, ending)
    elif steered:
        ending.baseline = plain.NOT_RUN
    report = _write(phase, model, before, ending.measured, rows)
    report.tables |= ending.tables
    report.summary += "".join(f"; {choice.VERDICTS[name]}" for name in ending.kept)
    report.baseline = ending.baseline
    return report


@dataclass(slots=True, kw_only=True)
class _Ending:
    """What goes on after the last stage.

    measured: its figures. rows: of the table of stages. kept: what each choice came to.
    """

    measured: dict[str, Any]
    rows: list[dict[str, Any]]
    baseline: str
    kept: list[str] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def compare(self, plainly: dict[str, Any], seed: int) -> None:
        """Note the gain over plain training, whose scores are `plainly`."""
        beside = plain.compared(self.measured["scores"], plainly, seed)
        self.tables["against plain training of equal tokens"] = beside
        self.baseline = plain.phrase(beside)


def _choose_average(
    phase: PhaseRun[Config], bench: TrainBench, model: Any, last: dict[str, Tensor], ending: _Ending
) -> None:
    """Leave the average in the model, or the weights `last` of the last step.

    Where no other mechanism is on, the weights of the last step are the plain run as well.
    """
    config, stage = phase.config, phase.config.taken_stages()[-1]
    averaged = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    row = choice.better_of(phase, bench, model, last)
    ending.kept.append(row["kept"])
    ending.tables["the average against the last step (search split)"] = [row]
    if row["kept"] == choice.LAST_STEP:
        ending.measured = phase.out.remember(
            "measured-last", partial(bench.everything, model, stage)
        )
        ending.rows.append(
            _row("last step", ending.measured, {"mechanism": "average", "on": False})
        )
        ending.baseline = plain.SAME_AS_LAST
    elif not config.baseline:
        ending.baseline = plain.NOT_RUN
    elif config.only_averages():
        choice.put(model, last)
        ending.compare(
            phase.out.remember("measured-plain", lambda: bench.scores(model)), config.seed
        )
        choice.put(model, averaged)


def _choose_mechanisms(
    phase: PhaseRun[Config], bench: TrainBench, model: Any, unsteered: Any, ending: _Ending
) -> None:
    """Leave the steered weights in the model, or those of `unsteered`, trained plainly."""
    measured = phase.out.remember("measured-plain", partial(bench.everything, unsteered, "plain"))
    ending.compare(measured["scores"], phase.config.seed)
    names = (choice.STEERED, choice.PLAIN)
    row = choice.better_of(phase, bench, model, dict(unsteered.named_parameters()), names)
    ending.kept.append(row["kept"])
    ending.tables["the mechanisms against plain training (search split)"] = [row]
    if row["kept"] == choice.PLAIN:
        ending.measured = measured
        ending.rows.append(_row(choice.PLAIN, measured, {"on": False}))


def _train_stage(
    phase: PhaseRun[Config], plan: StagePlan, stage: str, model: Any
) -> list[StepRecord]:
    """Train one stage as planned; its optimiser starts from the state of the stage before."""
    config, stages = phase.config, phase.config.taken_stages()
    return train(
        model,
        TrainRequest(
            batches=plan.batches,
            loss_fn=plan.loss,
            stage=stage,
            steps=getattr(config.steps, stage),
            optim=stage_optim(config, stage, stages),
            out=phase.out,
            events=phase.events,
            seed=seed_for(config.seed, "train"),
            parameters=plan.parameters(model) if plan.parameters else None,
            on_step=plan.controller,
            device=phase.device,
            dtype=phase.dtype,
            average_decay=config.average_decay if config.average == "exponential" else 0.0,
            settings={
                "mix": dict(config.mix),
                **mechanism_settings(config, STAGES[stage]),
                **mechanism_settings(config, "replay"),
            },
            optimiser_from=["", *stages][stages.index(stage)],
            keep_optimiser=stage != stages[-1],
            keep_last=stage == stages[-1],
        ),
    )


def _facts(stage: str, plan: StagePlan, records: list[StepRecord]) -> dict[str, Any]:
    """Return what a stage did, for its row."""
    tail = [
        record.loss
        for record in records[-max(len(records) // 4, 1) :]
        if math.isfinite(record.loss)
    ]
    guard = plan.controllers.get("rollback")
    return {
        "mechanism": STAGES[stage],
        "on": plan.active,
        "steps": len(records),
        "loss": sum(tail) / len(tail) if tail else None,
        "rollbacks": guard.count if isinstance(guard, Rollback) else None,
        "self-model error": self_model_error(records),
        "notes": ", ".join(f"{key} {value}" for key, value in plan.notes().items()),
    }


def _row(stage: str, measured: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Return one line of the table of stages."""
    tasks = {
        f"{task} right": scores_of(measured, task).mean
        for task in measured["scores"]
        if task != "text"
    }
    exponents = measured["exponents"]
    return {
        "stage": stage,
        "mechanism": facts.get("mechanism", ""),
        "on": facts.get("on"),
        "steps": facts.get("steps", 0),
        "loss": facts.get("loss"),
        "bits per byte": scores_of(measured, "text").mean,
        **tasks,
        "depth exponent": exponents["depth"],
        "logit sensitivity": exponents["sensitivity"],
        "twin exponent": exponents.get("twin"),
        "rollbacks": facts.get("rollbacks"),
        "self-model error": facts.get("self-model error"),
        "notes": facts.get("notes", ""),
    }


def _write(
    phase: PhaseRun[Config],
    model: Any,
    before: dict[str, Any],
    after: dict[str, Any],
    rows: list[dict[str, Any]],
) -> Report:
    metrics: dict[str, Any] = {}
    task_changes = []
    for task in after["scores"]:
        parent, child = scores_of(before, task), scores_of(after, task)
        gain, low = evaluate.paired_gain(parent, child, samples=SAMPLES, seed=phase.config.seed)
        metrics[task] = child.as_metric()
        metrics[f"{task} gain"] = {"value": gain, "low": low, "n": child.n}
        task_changes.append(
            f"{task} {parent.mean:.3f} -> {child.mean:.3f} {child.metric} (n={child.n})"
        )
    metrics |= {f"{name} exponent": value for name, value in after["exponents"].items()}
    written = phase.out.write(
        lambda directory: models.save(model, phase.tokenizer, directory),
        metrics=metrics,
        extra={"benchmarks": sets.benchmarks_of(phase.config.replayed_texts())},
        deployable_bytes=models.deployable_bytes(model),
    )
    steps = sum(row["steps"] for row in rows)
    gains = plain.gains(plain.compared(after["scores"], before["scores"], phase.config.seed))
    summary = (
        f"{steps} steps in {len(phase.config.taken_stages())} stages; {'; '.join(task_changes)}; "
        f"gain over the parent: {gains}"
    )
    off = sorted({row["mechanism"].replace("_", " ") for row in rows[1:] if not row["on"]} - {""})
    if off:
        summary += f"; {plain.SKIPPED}: {', '.join(off)}"
    return Report(
        summary=summary, outputs=[str(written.path)], metrics=metrics, tables={"stages": rows}
    )
