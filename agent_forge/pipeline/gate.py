"""The gate between two phases: score parent and child on the same held-out items, and judge.

Every gate scores every task of `gate.tasks`, whatever the phase. A task on which the parent is
above chance is gated, so a skill that one phase teaches is gated from the next phase on. Tasks
whose verdict is not yet certain are scored again with more items. The child is also compared with
the base of its chain.

Scores of a block of items are kept in the data cache under the checkpoint's id and the items' hash,
because the child of one gate is the parent of the next. Speed and memory are measured each time,
parent and child in turn, because an older figure would depend on the state of the machine then.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agent_forge import evaluate, models
from agent_forge.checkpoint import Checkpoint, atomic
from agent_forge.config import Phase, PhaseConfig, suites
from agent_forge.core import device
from agent_forge.core.events import EventLog

SPLIT = "validation"
LOOK_GROWTH = 4  # each look at the open tasks has this many times the items of the one before
MEMORY_SLACK_BYTES = 32_000_000  # two loads of one small model differ by less
SPEED_REPEATS = 3
# Other work on the machine can only slow a model down, so a slow child gets more tries.
SPEED_TRIES = 3


class Scored:
    """A checkpoint that is scored on demand; its model is loaded once, when it is first needed."""

    def __init__(self, source: Checkpoint, config: PhaseConfig, events: EventLog, who: str) -> None:
        self.source, self.config, self.events, self.who = source, config, events, who
        self.memory_bytes = 0
        self._model: Any = None
        self.tokenizer: Any = models.load_tokenizer(source.path)

    @property
    def model(self) -> Any:
        """Return the model, and note the bytes that loading it and answering once took."""
        if self._model is None:
            runtime = self.config.runtime
            place, dtype = device.pick_device(runtime.device), device.pick_dtype(runtime.dtype)

            def load() -> Any:
                model = models.load(self.source, device=place, dtype=dtype)
                evaluate.measure_speed(model, self.tokenizer, repeats=1)
                return model

            self._model, self.memory_bytes = evaluate.footprint(load, str(place))
        return self._model

    def scores(self, task: str, items: list[Any], borders: list[int]) -> evaluate.Scores:
        """Return the scores on `items`, whose blocks end at `borders`; known blocks are cached."""
        starts = [0, *borders[:-1]]
        blocks = [
            self._block(task, items[start:end])
            for start, end in zip(starts, borders, strict=True)
            if items[start:end]
        ]
        return evaluate.scores_of(
            task, items[: borders[-1]], np.concatenate(blocks), SPLIT, self.config.seed
        )

    def _block(self, task: str, items: list[Any]) -> Any:
        file = self._file(task, items)
        if file.exists():
            return np.asarray(json.loads(file.read_text(encoding="utf-8")), np.float64)
        context = evaluate.EvalContext(
            data=self.config.data, tokenizer=self.tokenizer, seed=self.config.seed
        )
        pairs = evaluate.item_pairs(self.model, self.tokenizer, task, items, context)
        atomic.write_json(file, pairs.tolist())
        mean = float(pairs[:, 0].sum() / max(pairs[:, 1].sum(), 1e-30))
        self.events.progress(f"gate: {self.who}", len(items), len(items), {task: mean})
        return pairs

    def _file(self, task: str, items: list[Any]) -> Path:
        version = evaluate.load_task(task).TASK.version
        dtype = self.config.runtime.dtype
        key = [self.source.id, task, version, evaluate.split_hash(items), dtype]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
        return Path(self.config.data.cache) / "scores" / f"{name}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A child and what it is judged against.

    parent: None for a model that is made from nothing; it passes when its scores are finite.
    base: the first model of the chain, for the limits of `gate.chain`.
    """

    child: Checkpoint
    parent: Checkpoint | None = None
    base: Checkpoint | None = None


def judge_child(
    phase: Phase, config: PhaseConfig, chain: Chain, events: EventLog
) -> tuple[dict[str, Any], float]:
    """Return the verdict on the child as plain values, and its tokens per second."""
    child, parent, base = chain.child, chain.parent, chain.base
    config = _with_suites_expanded(config, child.manifest.extra.get("benchmarks", ()), events)
    sources = {"child": child, "parent": parent, "base": base}
    who = {
        name: Scored(source, config, events, name)
        for name, source in sources.items()
        if source is not None
    }
    speed, memory = _speed_and_memory(who, config)
    parent_cost, child_cost = (
        evaluate.Cost(
            deployable_bytes=source.manifest.deployable_bytes if source else 0,
            tokens_per_second=speed.get(name, 0.0),
            memory_bytes=memory.get(name, 0),
        )
        for name, source in (("parent", parent), ("child", child))
    )
    facts: dict[str, Any] = {
        "parent_cost": parent_cost,
        "child_cost": child_cost,
        "promises_smaller": phase.promises_smaller,
        "memory_slack": MEMORY_SLACK_BYTES,
        "seed": config.seed,
    }
    verdict, scores = _looked(who, config, facts)
    plain = {
        **_finite(asdict(verdict)),
        **{
            f"{prefix}scores": {
                name: value.as_metric() for name, value in scores.get(whose, {}).items()
            }
            for prefix, whose in (("", "child"), ("parent_", "parent"), ("base_", "base"))
        },
        "base": {"path": str(base.stored), "id": base.id, "name": base.name} if base else {},
        "parent_speed": parent_cost.tokens_per_second,
        "speed": child_cost.tokens_per_second,
        "parent_memory_bytes": parent_cost.memory_bytes,
        "memory_bytes": child_cost.memory_bytes,
    }
    return json.loads(json.dumps(plain)), child_cost.tokens_per_second


def _with_suites_expanded(
    config: PhaseConfig, benchmarks: Sequence[str], events: EventLog
) -> PhaseConfig:
    """Return the settings with the tasks of each suite in the suite's place.

    A message names each task that is left out: its package is missing, or its data are among the
    benchmarks that the child was trained on.
    """
    gate = config.gate
    for line in suites.expanded([*gate.tasks, *gate.chain])[1]:
        events.message(line)
    tasks, chain = suites.limits(gate.tasks), suites.limits(gate.chain)
    for name in sorted({*tasks, *chain} & set(benchmarks)):
        events.message(f"the gate leaves out {name}: the child was trained on its data")
        tasks.pop(name, None)
        chain.pop(name, None)
    return replace(config, gate=replace(gate, tasks=tasks, chain=chain))


def _looked(
    who: dict[str, Scored], config: PhaseConfig, facts: dict[str, Any]
) -> tuple[evaluate.Verdict, dict[str, dict[str, evaluate.Scores]]]:
    """Return the verdict, and the scores by model and task; open tasks get more items per look."""
    gate = config.gate
    tasks = list(dict.fromkeys([*gate.tasks, *(gate.chain if "base" in who else ())]))
    sizes = [gate.items * LOOK_GROWTH**look for look in range(gate.looks)]
    context = evaluate.EvalContext(
        data=config.data, tokenizer=who["child"].tokenizer, seed=config.seed
    )
    items = {task: evaluate.task_items(task, SPLIT, sizes[-1], context) for task in tasks}
    scores: dict[str, dict[str, evaluate.Scores]] = {name: {} for name in who}
    open_tasks, verdict = tasks, None
    for look in range(gate.looks):
        for task in open_tasks:
            for name, model in who.items():
                scores[name][task] = model.scores(task, items[task], sizes[: look + 1])
        verdict = evaluate.judge(
            gate, scores.get("parent", {}), scores["child"], base=scores.get("base"), **facts
        )
        open_tasks = [task for task in verdict.open_tasks() if len(items[task]) > sizes[look]]
        if not open_tasks:
            break
    assert verdict is not None
    return verdict, scores


def _speed_and_memory(
    who: dict[str, Scored], config: PhaseConfig
) -> tuple[dict[str, float], dict[str, int]]:
    """Return tokens per second and bytes of parent and child, which are measured in turn."""
    names = [name for name in ("parent", "child") if name in who]
    pairs = [(who[name].model, who[name].tokenizer) for name in names]
    best = [0.0] * len(names)
    for _ in range(SPEED_TRIES):
        best = [
            max(pair)
            for pair in zip(
                best, evaluate.measure_speeds(pairs, repeats=SPEED_REPEATS), strict=True
            )
        ]
        if best[-1] >= config.gate.speed_ratio * best[0]:
            break
    return dict(zip(names, best, strict=True)), {name: who[name].memory_bytes for name in names}


def _finite(value: Any) -> Any:
    """Return plain values, with None for numbers that JSON cannot hold (a ratio to zero)."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
