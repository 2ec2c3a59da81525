"""Fitness in nats: how well a candidate keeps or improves the trunk's loss on text and generated tasks.

Retention of a task is the trunk's loss over the candidate's (both per token); fitness is the weighted mean of its
logarithms, less a penalty where a task falls below the floor. A smooth loss on shared items tells candidates apart with
far fewer tokens than accuracy does. Items are interleaved, so any prefix holds all tasks in equal numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from agent_forge import evaluate
from agent_forge.core import registry
from agent_forge.core.errors import ConfigError, DataError
from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.data import encode_chat
from agent_forge.evaluate.tasks import text as text_task
from agent_forge.phases.evomerge import Config
from agent_forge.search.race import Yard

MaskedRow = tuple[list[int], list[bool]]
# Losses are compared after adding this: a task that is solved to .001 nats must not outweigh all others.
SMOOTHING_NATS = 0.01
WORST = -1e9  # fitness of a candidate whose loss is not finite


@dataclass(slots=True, kw_only=True)
class Yardstick:
    """Items of one split and what is made of their losses.

    tasks: names in order; item i belongs to task i % len(tasks). rows: (ids, mask) of each item; tokens: how many it
    scores. trunk_nats: the trunk's summed loss of each item, once it is measured.
    """

    tasks: list[str]
    weights: list[float]
    rows: list[MaskedRow]
    tokens: NDArray[np.float64]
    floor: float
    floor_penalty: float
    trunk_nats: list[float]

    def log_retentions(self, nats: Sequence[float]) -> tuple[float, ...]:
        """Return log(trunk loss / candidate loss) of every task on the first len(nats) items."""
        return tuple(self.log_retention(nats, task) for task in range(len(self.tasks)))

    def split(self, items: int) -> "tuple[Yardstick, Yardstick]":
        """Return the yardstick of the first `items` items a task, and that of the others."""
        border = items * len(self.tasks)
        first = replace(self, rows=self.rows[:border], tokens=self.tokens[:border], trunk_nats=[])
        return first, replace(self, rows=self.rows[border:], tokens=self.tokens[border:], trunk_nats=[])

    def yard(self) -> Yard[Any]:
        """Return what a search makes of an item's numbers; the trunk's must be known."""
        return Yard(self.fitness, self.log_retentions, self.difference)

    def log_retention(self, nats: Sequence[float], task: int) -> float:
        """Return log(trunk loss / candidate loss) of one task on the first len(nats) items."""
        places = slice(task, len(nats), len(self.tasks))
        tokens = float(self.tokens[places].sum())
        ours, trunk = (sum(values[places]) / tokens for values in (list(nats), self.trunk_nats))
        return math.log((trunk + SMOOTHING_NATS) / (ours + SMOOTHING_NATS)) if math.isfinite(ours) else WORST

    def fitness(self, nats: Sequence[float]) -> float:
        """Return the fitness on the first len(nats) items; 0 is the trunk's, higher is better."""
        logs = self.log_retentions(nats)
        if min(logs) == WORST:
            return WORST
        short = sum(max(0.0, math.log(max(self.floor, 1e-9)) - value) for value in logs)
        return float(np.average(logs, weights=self.weights)) - self.floor_penalty * short

    def difference(self, nats: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
        """Return (mean, standard error) of the fitness of `nats` over that of `other`, paired item by item.

        The error is that of the linearised log ratio of summed losses; below the floor the penalty steepens it.
        """
        mean = self.fitness(nats) - self.fitness(other)
        if not (math.isfinite(sum(nats)) and math.isfinite(sum(other))):
            return mean, 0.0
        variance, low = 0.0, math.log(max(self.floor, 1e-9))
        for task, weight in enumerate(self.weights):
            places = slice(task, len(nats), len(self.tasks))
            ours, theirs, tokens = (np.asarray(v, np.float64)[places] for v in (nats, other, self.tokens[: len(nats)]))
            if len(ours) < 2:
                return mean, math.inf
            steep = min(self.log_retention(nats, task), self.log_retention(other, task)) < low
            slope = weight / sum(self.weights) + (self.floor_penalty if steep else 0.0)
            ours, theirs = (values + SMOOTHING_NATS * tokens for values in (ours, theirs))
            pull = slope * len(ours) * (theirs / theirs.sum() - ours / ours.sum())  # of each item on the log ratio
            variance += float(pull.var(ddof=1)) / len(ours)
        return mean, math.sqrt(variance)

    def gain(
        self, nats: Sequence[float], other: Sequence[float], floor_penalty: float, samples: int, seed: int
    ) -> dict[str, Any]:
        """Return the fitness that `nats` has over `other` on all items, with the paired-bootstrap 95% interval.

        Items are resampled within their task. With a penalty of 0 this is the gain in mean log retention.
        """
        count, items = len(self.tasks), len(self.rows) // len(self.tasks)
        draws = numpy_generator(seed, "evomerge", "bootstrap").integers(0, items, (count, samples + 1, items))
        draws[:, 0] = np.arange(items)  # the first is the sample itself
        shares, low = np.asarray(self.weights) / sum(self.weights), math.log(max(self.floor, 1e-9))
        fitness = []
        for values in (nats, other):
            total = np.zeros(samples + 1)
            for task in range(count):
                ours, trunk, tokens = (
                    np.asarray(v, np.float64)[task::count][draws[task]].sum(1)
                    for v in (values, self.trunk_nats, self.tokens)
                )
                kept = np.log(_smooth(trunk, tokens) / _smooth(ours, tokens))
                total += shares[task] * kept - floor_penalty * np.maximum(0.0, low - kept)
            fitness.append(total)
        gains = fitness[0] - fitness[1]
        bounds = np.percentile(gains[1:], [2.5, 97.5])
        return {"value": float(gains[0]), "low": float(bounds[0]), "high": float(bounds[1]), "n": len(self.rows)}

    def scores(self, nats: Sequence[float], split: str, seed: int) -> dict[str, evaluate.Scores]:
        """Return each task's loss per token (nats) with its interval."""
        found = {}
        for task, name in enumerate(self.tasks):
            values = np.asarray(nats, np.float64)[task :: len(self.tasks)]
            tokens = self.tokens[task :: len(self.tasks)]
            found[name] = evaluate.Scores(
                task=f"{name} loss", version=1, metric="nats per token", higher_is_better=False, chance=math.inf,
                split=split, items_hash=evaluate.split_hash([ids for ids, _ in self.rows[task :: len(self.tasks)]]),
                mean=float(values.sum() / tokens.sum()),
                interval=evaluate.bootstrap_interval(values, tokens, seed=seed_for(seed, "evomerge", name)),
                values=values.tolist(), weights=tokens.tolist(),
            )  # fmt: skip
        return found


def make_yardstick(config: Config, tokenizer: PreTrainedTokenizerFast, split: str, items: int) -> Yardstick:
    """Return the yardstick over `items` items a task of `split` (fewer where the text has fewer).

    Raises ConfigError for an unknown task, DataError when the split has no text.
    """
    weights = {name: weight for name, weight in config.fitness.items() if weight > 0}
    by_task = {name: _rows(name, config, tokenizer, split, items) for name in weights}
    count = min(len(rows) for rows in by_task.values())
    rows = [by_task[name][i] for i in range(count) for name in by_task]
    return Yardstick(
        tasks=list(weights),
        weights=list(weights.values()),
        rows=rows,
        tokens=np.asarray([sum(mask) for _, mask in rows], np.float64),
        floor=config.floor,
        floor_penalty=config.floor_penalty,
        trunk_nats=[],
    )


def require_disjoint(a: Yardstick, b: Yardstick) -> None:
    """Raise DataError when an item is in both: a winner must be judged on what the search never saw."""
    seen = {tuple(ids) for ids, _ in a.rows}
    for i, (ids, _) in enumerate(b.rows):
        if tuple(ids) in seen:
            raise DataError(
                f"item {i // len(b.tasks)} of {b.tasks[i % len(b.tasks)]} is in the search split and in the test split; "
                "remove repeated text from data.text"
            )


def _rows(name: str, config: Config, tokenizer: PreTrainedTokenizerFast, split: str, items: int) -> list[MaskedRow]:
    if name == "text":
        separator = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        context = evaluate.EvalContext(data=config.data, seed=seed_for(config.seed, "evomerge"), tokenizer=tokenizer)
        pieces = text_task.items(split, items, context)
        encoded = [tokenizer.encode(piece, add_special_tokens=False) for piece in pieces]
        return [([separator, *ids], [False] + [True] * len(ids)) for ids in encoded]
    try:
        task = registry.load("agent_forge.data.synthetic", name, "generated task")
    except ConfigError as error:
        raise ConfigError(f"fitness: {error} (and text)") from None
    found: list[Mapping[str, Any]] = task.rows(items, split, seed_for(config.seed, "evomerge", name))
    return [encode_chat(tokenizer, row["messages"]) for row in found]


def _smooth(nats: Any, tokens: Any) -> Any:
    return nats / tokens + SMOOTHING_NATS
