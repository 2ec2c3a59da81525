"""Tools that a model has never seen: SmolLM2 before and after a bake on random schemas.

    python -m scripts.bench run held_out_schemas outputs/smollm2 [--items 100] [KEY=VALUE ...]

Runs `forge bake experiment=smollm2_schemas`, and plain supervised fine-tuning of the same parent on
the same rows for as many steps (all weights by cross-entropy alone, at a rate of its own). Where the
bake trains just so and then draws its weights back (`retain.tasks`), one training serves both: the
plain model is the baked one with its change from the parent divided by the share that was taken. All
three models then answer the same held-out questions, with the tools listed: the tasks `schemas`
(exactly the right calls) and `abstain` (whether to call at all). Schemas of the test split share no
object, no name, no description and no structure with those of training. Differences are paired by
question, their intervals resample clusters of questions about one object. What is in --work already
is neither trained nor asked again, and is refused where it was trained with other settings.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from agent_forge import checkpoint, evaluate, models
from agent_forge.config import EvalSettings
from agent_forge.config.compose import compose
from agent_forge.core import device
from agent_forge.evaluate import Scores
from agent_forge.phases.bake import Config, retain
from scripts.bench.phase_once import Finished, phase_once
from scripts.bench.result import Figure, Result, bars_met, here

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLAIM = "SmolLM2-135M learns to call tools that it has never seen"
BAR = "20 points over its prompted self and not below plain training, 60 minutes of CPU time"
LEAST_GAIN, LEAST_ABSTAINED, MOST_MINUTES = 0.2, 0.7, 60.0
TASKS, NONE_FITS = ("schemas", "abstain"), "no tool fits"
SAMPLES = 5000  # draws of the paired bootstrap
# Plain training: every weight, nothing but cross-entropy, the weights as they were trained.
PLAIN = (
    "training.lora_rank=0", "training.neutral_rows=0", "voice.prompts=0", "~retain.tasks.prose",
    "~retain.tasks.mathematics", "~retain.tasks.code",
)  # fmt: skip


def run(arguments: Sequence[str] = ()) -> Result:
    """Bake both ways, ask all three models, print the shares, and return them."""
    parser = argparse.ArgumentParser(prog="held_out_schemas", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("source", type=Path, help="the checkpoint to bake into")
    add("--items", type=int, default=100, help="held-out questions per task")
    add("--plain-lr", type=float, default=2e-4, help="learning rate of plain training")
    add("--work", type=Path, default=Path("outputs/held_out_schemas"))
    add("settings", nargs="*", metavar="KEY=VALUE", help="settings of both trainings")
    args = parser.parse_intermixed_args(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    baked = _bake(args, "baked", ())
    plain_settings = (*PLAIN, f"training.optim.lr={args.plain_lr}")
    minutes = baked.cpu_minutes
    before, after = (_scores(path, args) for path in (args.source, baked.path))
    if _trains_alike(args.settings, plain_settings):
        others = _scores(baked.path, args, whole_change=True)
    else:
        others = _scores(_bake(args, "plain", plain_settings).path, args)
    figures = [
        *(_figure(name, who[task], task) for task in TASKS for name, who in (
            ("the parent", before), ("baked", after), ("plain training", others))),
        _gain(before["schemas"], after["schemas"], "the parent", LEAST_GAIN),
        _gain(others["schemas"], after["schemas"], "plain training", 0.0),
        _abstention(after["abstain"]),
        Figure(
            claim="CPU time of the bake", figure=round(minutes, 1), unit="minutes",
            bar=f"at most {MOST_MINUTES:.0f}", met=minutes <= MOST_MINUTES,
        ),
        Figure(
            claim="the gate on text and skills passed (1: yes)",
            figure=float(baked.passed), bar="passed", met=baked.passed,
        ),
    ]  # fmt: skip
    for figure in figures:
        print(f"{figure.claim}: {figure.figure} {figure.unit} {figure.interval or ''}")
    return Result(
        claim=CLAIM, topic="Tools", bar=BAR, n=f"{args.items} questions per task", figures=figures,
        tables=_table({"the parent": before, "baked": after, "plain training": others}),
        **bars_met(figures), **here("held_out_schemas", arguments),
    )  # fmt: skip


def _bake(args: argparse.Namespace, name: str, settings: Sequence[str]) -> Finished:
    chosen = [f"sources=[{args.source}]", *args.settings, *settings]
    return phase_once(args.work / name, ("bake", "experiment=smollm2_schemas"), chosen)


def _trains_alike(settings: Sequence[str], plain: Sequence[str]) -> bool:
    """Return whether the bake differs from plain training by what is drawn back alone."""
    common = ["experiment=smollm2_schemas", "sources=[x]", *settings]
    baked, trained = compose("bake", Config, common), compose("bake", Config, [*common, *plain])
    return replace(baked, retain=trained.retain) == trained


def _scores(
    path: Path, args: argparse.Namespace, *, whole_change: bool = False
) -> dict[str, Scores]:
    """Return what a checkpoint scores on both tasks, from --work where it was asked before.

    whole_change: ask the model as it was trained, before its weights were drawn back.
    """
    opened = checkpoint.open(path)
    name = f"{opened.manifest.id[:16]}{'-whole' if whole_change else ''}-{args.items}.json"
    noted = args.work / name
    if not noted.exists():
        settings = compose("eval", EvalSettings, [])
        device.set_threads(settings.runtime.threads)
        tokenizer = models.load_tokenizer(opened.path)
        context = evaluate.EvalContext(data=settings.data, tokenizer=tokenizer, seed=settings.seed)
        model = models.load(opened, device=device.pick_device("cpu"))
        if whole_change:
            _undo_drawing_back(model, args.source, opened.manifest.metrics[retain.SHARE])
        scores = evaluate.score(model, tokenizer, TASKS, "test", args.items, context)
        noted.write_text(json.dumps({task: one.to_plain() for task, one in scores.items()}))
    content = json.loads(noted.read_text(encoding="utf-8"))
    return {task: Scores.from_plain(one) for task, one in content.items()}


def _undo_drawing_back(model: "PreTrainedModel", source: Path, share: float) -> None:
    """Set the weights to parent + change / share: those of the training, up to rounding."""
    parent = models.load(checkpoint.open(source), device=device.pick_device("cpu"))
    with torch.no_grad():
        for weight, old in zip(model.parameters(), parent.parameters(), strict=True):
            weight.copy_(old + (weight - old) / share)


def _figure(name: str, score: Scores, task: str) -> Figure:
    return Figure(
        claim=f"{task}: {name}", figure=round(score.mean, 3), interval=score.interval,
        n=f"{score.n} questions",
    )  # fmt: skip


def _gain(base: Scores, other: Scores, name: str, least: float) -> Figure:
    """Return the paired gain in right calls; it is judged by its value, as the bar is written."""
    gain, low = evaluate.paired_gain(base, other, samples=SAMPLES, seed=0, confidence=0.975)
    high = -evaluate.paired_gain(other, base, samples=SAMPLES, seed=0, confidence=0.975)[1]
    return Figure(
        claim=f"right calls of tools never seen, over {name}", figure=round(gain, 3),
        interval=(low, high), n=f"{base.n} questions", bar=f"at least {least}", met=gain >= least,
    )  # fmt: skip


def _abstention(score: Scores) -> Figure:
    kind = score.by_kind()[NONE_FITS]
    return Figure(
        claim="nothing called where no tool fits", figure=round(kind["value"], 3),
        interval=(kind["low"], kind["high"]), n=f"{kind['n']} questions",
        bar=f"at least {LEAST_ABSTAINED}", met=kind["value"] >= LEAST_ABSTAINED,
    )  # fmt: skip


def _table(models_scores: Mapping[str, Mapping[str, Scores]]) -> str:
    """Return a row per model and kind of question."""
    lines = ["| model | task | kind | right | n |", "|---|---|---|---|---|"]
    for name, scores in models_scores.items():
        for task, score in scores.items():
            for kind, of_kind in score.by_kind().items():
                lines.append(
                    f"| {name} | {task} | {kind} | {of_kind['value']:.2f} "
                    f"[{of_kind['low']:.2f}, {of_kind['high']:.2f}] | {of_kind['n']} |"
                )
    return "\n".join(lines)
