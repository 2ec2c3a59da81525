"""The gate between a phase and the next: the same held-out items for parent and child, a paired bootstrap, a verdict.

Scores are kept in the data cache by checkpoint id, since the child of one gate is the parent of the next.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent_forge import evaluate, models
from agent_forge.checkpoint import Checkpoint, atomic
from agent_forge.config import Phase, PhaseConfig
from agent_forge.core import device
from agent_forge.core.events import EventLog

SPLIT = "validation"


def judge_child(
    phase: Phase, config: PhaseConfig, parent: Checkpoint | None, child: Checkpoint, events: EventLog
) -> tuple[dict[str, Any], float]:
    """Return the verdict on `child` as plain values, and its tokens per second.

    Without a parent (a model made from nothing) the child is scored and passes when its scores are finite.
    """
    child_scores, child_run = score_checkpoint(child, config, events, "child")
    parent_scores, parent_run = ({}, {}) if parent is None else score_checkpoint(parent, config, events, "parent")
    verdict = evaluate.judge(
        config.gate,
        parent_scores,
        child_scores,
        parent_bytes=parent.manifest.deployable_bytes if parent else 0,
        child_bytes=child.manifest.deployable_bytes,
        promises_smaller=phase.promises_smaller,
        parent_speed=parent_run.get("tokens_per_second", 0.0),
        child_speed=child_run["tokens_per_second"],
        parent_memory=int(parent_run.get("peak_memory_bytes", 0)),
        child_memory=int(child_run["peak_memory_bytes"]),
        seed=config.seed,
    )
    found = {
        **asdict(verdict),
        "scores": {name: scores.as_metric() for name, scores in child_scores.items()},
        "parent_scores": {name: scores.as_metric() for name, scores in parent_scores.items()},
    }
    return json.loads(json.dumps(found)), float(child_run["tokens_per_second"])


def score_checkpoint(
    source: Checkpoint, config: PhaseConfig, events: EventLog, who: str
) -> tuple[dict[str, "evaluate.Scores"], dict[str, float]]:
    """Return the scores of a checkpoint on the gate's tasks, and {"tokens_per_second", "peak_memory_bytes"}."""
    settings = [sorted(config.gate.tasks), config.gate.items, config.seed, config.data.text, config.data.max_text_bytes]
    key = hashlib.sha256(json.dumps([source.id, settings, config.runtime.dtype]).encode()).hexdigest()[:16]
    file = Path(config.data.cache) / "scores" / f"{key}.json"
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        return {name: evaluate.Scores.from_plain(value) for name, value in kept["scores"].items()}, kept["run"]
    model = models.load(
        source, device=device.pick_device(config.runtime.device), dtype=device.pick_dtype(config.runtime.dtype)
    )
    tokenizer = models.load_tokenizer(source.path)
    context = evaluate.EvalContext(data=config.data, tokenizer=tokenizer, seed=config.seed)
    evaluate.reset_peak_memory()
    scores: dict[str, evaluate.Scores] = {}
    for number, task in enumerate(config.gate.tasks, start=1):
        scores |= evaluate.score(model, tokenizer, [task], SPLIT, config.gate.items, context)
        events.progress(f"gate: {who}", number, len(config.gate.tasks), {task: scores[task].mean})
    run = {
        "tokens_per_second": evaluate.measure_speed(model, tokenizer),
        "peak_memory_bytes": float(evaluate.peak_memory_bytes()),
    }
    atomic.write_json(file, {"scores": {name: value.to_plain() for name, value in scores.items()}, "run": run})
    return scores, run
