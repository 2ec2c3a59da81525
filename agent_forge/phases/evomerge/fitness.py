"""Fitness in nats: how well a candidate keeps or improves the trunk's loss on text and generated
tasks.

The retention of a task is the trunk's loss divided by the candidate's, both per token. Fitness is
the weighted mean of the logarithms of the retentions, less a penalty where a task falls below the
floor. A smooth loss on shared items tells candidates apart with far fewer tokens than accuracy
does. Items are interleaved, so any prefix holds all tasks in equal numbers.
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
from agent_forge.data import encode_chat, text_start
from agent_forge.evaluate.tasks import text as text_task
from agent_forge.phases.evomerge import Config
from agent_forge.search.race import ScoringRule

MaskedRow = tuple[list[int], list[bool]]
# Losses are compared after adding this, so that a task that is solved to 0.001 nats does not
# outweigh all others.
SMOOTHING_NATS = 0.01
WORST = -1e9  # fitness of a candidate whose loss is not finite


@dataclass(slots=True, kw_only=True)
class Yardstick:
    """Items of one split, and how their losses become a fitness.

    tasks: names in order; item i belongs to task i % len(tasks). Of each item: rows: (ids, mask);
    tokens: how many tokens are scored; forms: its canonical form, equal for items that ask the
    same; clusters: the number of its cluster; trunk_nats: the trunk's summed loss, once measured.
    """

    tasks: list[str]
    weights: list[float]
    rows: list[MaskedRow]
    tokens: NDArray[np.float64]
    forms: list[str]
    clusters: NDArray[np.int64]
    floor: float
    floor_penalty: float
    trunk_nats: list[float]

    def log_retentions(self, nats: Sequence[float]) -> tuple[float, ...]:
        """Return log(trunk loss / candidate loss) of every task on the first len(nats) items."""
        return tuple(self.log_retention(nats, task) for task in range(len(self.tasks)))

    def split(self, items: int) -> "tuple[Yardstick, Yardstick]":
        """Return a yardstick of the first `items` items per task, and one of the other items."""
        border = items * len(self.tasks)
        return self._part(slice(0, border)), self._part(slice(border, len(self.rows)))

    def _part(self, places: slice) -> "Yardstick":
        return replace(
            self, rows=self.rows[places], tokens=self.tokens[places], forms=self.forms[places],
            clusters=self.clusters[places], trunk_nats=[],
        )  # fmt: skip

    def scoring_rule(self) -> ScoringRule[Any]:
        """Return how a search scores losses; the trunk's losses must be measured before."""
        return ScoringRule(self.fitness, self.log_retentions, self.difference)

    def log_retention(self, nats: Sequence[float], task: int) -> float:
        """Return log(trunk loss / candidate loss) of one task on the first len(nats) items."""
        places = slice(task, len(nats), len(self.tasks))
        tokens = float(self.tokens[places].sum())
        ours, trunk = (sum(values[places]) / tokens for values in (list(nats), self.trunk_nats))
        return (
            math.log((trunk + SMOOTHING_NATS) / (ours + SMOOTHING_NATS))
            if math.isfinite(ours)
            else WORST
        )

    def fitness(self, nats: Sequence[float]) -> float:
        """Return the fitness on the first len(nats) items; 0 is the trunk's, higher is better."""
        logs = self.log_retentions(nats)
        if min(logs) == WORST:
            return WORST
        short = sum(max(0.0, math.log(max(self.floor, 1e-9)) - value) for value in logs)
        return float(np.average(logs, weights=self.weights)) - self.floor_penalty * short

    def difference(self, nats: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
        """Return (mean, standard error) of what `nats` gains in fitness over `other`, item by item.

        The standard error belongs to the linearised log ratio of the losses, summed over clusters.
        Below the floor the penalty makes the slope steeper.
        """
        mean = self.fitness(nats) - self.fitness(other)
        if not (math.isfinite(sum(nats)) and math.isfinite(sum(other))):
            return mean, 0.0
        variance, low = 0.0, math.log(max(self.floor, 1e-9))
        for task, weight in enumerate(self.weights):
            places = slice(task, len(nats), len(self.tasks))
            numbers = self.clusters[places]
            ours, tokens = evaluate.cluster_sums(list(nats[places]), self.tokens[places], numbers)
            theirs, _ = evaluate.cluster_sums(list(other[places]), self.tokens[places], numbers)
            if len(ours) < 2:
                return mean, math.inf
            steep = min(self.log_retention(nats, task), self.log_retention(other, task)) < low
            slope = weight / sum(self.weights) + (self.floor_penalty if steep else 0.0)
            ours, theirs = (values + SMOOTHING_NATS * tokens for values in (ours, theirs))
            # The effect of each cluster on the log ratio, to first order (delta method).
            pull = slope * len(ours) * (theirs / theirs.sum() - ours / ours.sum())
            variance += float(pull.var(ddof=1)) / len(ours)
        return mean, math.sqrt(variance)

    def gain(
        self,
        nats: Sequence[float],
        other: Sequence[float],
        floor_penalty: float,
        samples: int,
        seed: int,
    ) -> dict[str, Any]:
        """Return what `nats` gains in fitness over `other` on all items, with its 95% interval.

        The interval is a paired bootstrap that resamples clusters within their task. With a penalty
        of 0 this is the gain in mean log retention.
        """
        count, generator = len(self.tasks), numpy_generator(seed, "evomerge", "bootstrap")
        draws = [self._draws(task, samples, generator) for task in range(count)]
        shares, low = np.asarray(self.weights) / sum(self.weights), math.log(max(self.floor, 1e-9))
        fitness = []
        for values in (nats, other):
            total = np.zeros(samples + 1)
            for task in range(count):
                numbers = self.clusters[task::count]
                ours, trunk, tokens = (
                    evaluate.cluster_sums(list(v[task::count]), self.tokens[task::count], numbers)[
                        0
                    ][draws[task]].sum(1)
                    for v in (values, self.trunk_nats, self.tokens)
                )
                log_ratio = np.log(_smooth(trunk, tokens) / _smooth(ours, tokens))
                total += shares[task] * log_ratio - floor_penalty * np.maximum(0.0, low - log_ratio)
            fitness.append(total)
        gains = fitness[0] - fitness[1]
        bounds = np.percentile(gains[1:], [2.5, 97.5])
        return {
            "value": float(gains[0]),
            "low": float(bounds[0]),
            "high": float(bounds[1]),
            "n": len(self.rows),
        }

    def _draws(self, task: int, samples: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return (samples + 1, clusters) draws of a task's clusters.

        The first row is the sample itself, in order.
        """
        count = len(set(self.clusters[task :: len(self.tasks)].tolist()))
        draws = evaluate.draw_from(generator, count, samples + 1)
        draws[0] = np.arange(count)
        return draws

    def scores(self, nats: Sequence[float], split: str, seed: int) -> dict[str, evaluate.Scores]:
        """Return each task's loss per token (nats) with its interval."""
        scores = {}
        for task, name in enumerate(self.tasks):
            values = np.asarray(nats, np.float64)[task :: len(self.tasks)]
            tokens = self.tokens[task :: len(self.tasks)]
            clusters = evaluate.cluster_numbers(
                [str(number) for number in self.clusters[task :: len(self.tasks)]]
            )
            scores[name] = evaluate.Scores(
                task=f"{name} loss", version=1, metric="nats per token", higher_is_better=False, chance=math.inf,
                split=split, items_hash=evaluate.split_hash([ids for ids, _ in self.rows[task :: len(self.tasks)]]),
                mean=float(values.sum() / tokens.sum()),
                interval=evaluate.bootstrap_interval(
                    values, tokens, seed=seed_for(seed, "evomerge", name), clusters=clusters
                ),
                values=values.tolist(), weights=tokens.tolist(), clusters=clusters,
            )  # fmt: skip
        return scores


def make_yardstick(
    config: Config, tokenizer: PreTrainedTokenizerFast, split: str, items: int
) -> Yardstick:
    """Return the yardstick over `items` items of `split` per task; fewer where the text is short.

    Raises ConfigError for an unknown task, DataError when the split has no text.
    """
    weights = {name: weight for name, weight in config.fitness.items() if weight > 0}
    by_task = {name: _items(name, config, tokenizer, split, items) for name in weights}
    count = min(map(len, by_task.values()))
    mixed = [by_task[name][i] for i in range(count) for name in by_task]
    rows = [_encoded(item, tokenizer) for item in mixed]
    return Yardstick(
        tasks=list(weights),
        weights=list(weights.values()),
        rows=rows,
        tokens=np.asarray([sum(mask) for _, mask in rows], np.float64),
        forms=[evaluate.canonical_form(item) for item in mixed],
        clusters=np.asarray(evaluate.cluster_numbers([item["cluster"] for item in mixed])),
        floor=config.floor,
        floor_penalty=config.floor_penalty,
        trunk_nats=[],
    )


def require_disjoint(**parts: Yardstick) -> None:
    """Raise DataError when an item is in two parts, however it is worded, or twice in one.

    A winner must be chosen and judged on items that the search never saw. The names of `parts`
    stand in the message.
    """
    seen: dict[str, str] = {}
    for name, part in parts.items():
        for place, form in enumerate(part.forms):
            if form in seen:
                raise DataError(
                    f"item {place // len(part.tasks)} of {part.tasks[place % len(part.tasks)]} is in the {seen[form]} "
                    f"items and in the {name} items; remove repeated text from data.text"
                )
            seen[form] = name


def _items(
    name: str, config: Config, tokenizer: PreTrainedTokenizerFast, split: str, count: int
) -> list[Mapping[str, Any]]:
    """Return distinct items of a task: pieces of text, or rows of a generated task."""
    if name == "text":
        context = evaluate.EvalContext(
            data=config.data, seed=seed_for(config.seed, "evomerge"), tokenizer=tokenizer
        )
        pieces: list[Mapping[str, Any]] = list(text_task.items(split, count, context))
        return pieces
    try:
        task = registry.load("agent_forge.data.synthetic", name, "generated task")
    except ConfigError as error:
        raise ConfigError(f"fitness: {error} (and text)") from None
    rows: list[Mapping[str, Any]] = task.rows(count, split, seed_for(config.seed, "evomerge", name))
    if not rows:
        raise DataError(f"fitness: task '{name}' has no row in the {split} split")
    return rows


def _encoded(item: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> MaskedRow:
    """Return ids and mask.

    Every token of a piece of text is scored; of a conversation, the assistant's tokens are.
    """
    if "text" not in item:
        return encode_chat(tokenizer, item["messages"])
    ids = tokenizer.encode(item["text"], add_special_tokens=False)
    return [text_start(tokenizer), *ids], [False] + [True] * len(ids)


def _smooth(nats: Any, tokens: Any) -> Any:
    return nats / tokens + SMOOTHING_NATS
