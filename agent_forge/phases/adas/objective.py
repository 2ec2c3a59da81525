"""What the search improves: loss in nats per token on held-out rows of several kinds, compared in
pairs.

The gain of one model over another is the weighted mean over kinds of (loss before - loss after),
both on the same rows. Its lower bound resamples clusters of rows within each kind. A sign-flip test
decides whether it is beyond chance: where nothing helps, the sign of each cluster's gain is a coin
flip, so the test keeps its level at any number of rows. Source: Fisher 1935, The Design of
Experiments, section 21. Drift is KL(input || candidate) on neutral text, a hard limit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import data, evaluate
from agent_forge.core import registry
from agent_forge.core.errors import DataError
from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.data.windows import begin_ids, cut_left, positions
from agent_forge.evaluate.engine import MaskedRow

Losses = dict[str, NDArray[np.float64]]  # kind -> (n, 2): nats, tokens
Picks = dict[str, NDArray[np.int64]]  # kind -> row numbers


@dataclass(slots=True, kw_only=True)
class Objective:
    """Rows of each kind, already encoded, and the weight of each kind. `scored` counts the rows
    that were run.

    clusters: the cluster of each row; in a kind without clusters each row is its own. pool: how
    many rows of each kind, counted from the first, are drawn from again and again (0: all); the
    other rows are fresh ones, and each is used only once.
    """

    rows: dict[str, list[MaskedRow]]
    weights: dict[str, float]
    items_hash: str
    seed: int
    samples: int
    confidence: float
    clusters: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    pool: int = 0
    scored: int = 0

    def losses(self, model: PreTrainedModel, picks: Picks) -> Losses:
        """Return each picked row's loss. All kinds go through the model together."""
        chosen = [(kind, i) for kind, numbers in picks.items() for i in numbers.tolist()]
        row_losses = evaluate.row_nll(model, [self.rows[kind][i] for kind, i in chosen])
        self.scored += len(chosen)
        where = np.asarray([kind for kind, _ in chosen])
        return {kind: row_losses[where == kind] for kind in picks}

    def draw(self, sizes: Sequence[int], *names: str | int) -> list[Picks]:
        """Return disjoint picks of `sizes` rows per kind out of the pool, fixed by `names`."""
        rounds: list[Picks] = [{} for _ in sizes]
        for kind, rows in self.rows.items():
            order = numpy_generator(self.seed, "adas", "draw", kind, *names).permutation(
                self.pool or len(rows)
            )
            for number, part in enumerate(np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])):
                rounds[number][kind] = part
        return rounds

    def fresh(self, number: int, size: int) -> Picks:
        """Return the rows that iteration `number` alone is judged on: `size` per kind, none of them
        in the pool.
        """
        start = self.pool + number * size
        picks = {
            kind: np.arange(start, min(start + size, len(rows))) for kind, rows in self.rows.items()
        }
        short = [kind for kind, part in picks.items() if len(part) < size]
        if short:
            raise DataError(
                f"iteration {number + 1} has no {size} fresh rows of {', '.join(short)} in the search split; use fewer "
                "search.accept_items, search.pool_items or search.iterations, or more text"
            )
        return picks

    def everything(self) -> Picks:
        """Return picks of every row."""
        return {kind: np.arange(len(rows)) for kind, rows in self.rows.items()}

    def only(self, kind: str) -> "Objective":
        """Return the same rows with all weight on one kind."""
        return replace(self, weights={kind: 1.0})

    def gain(self, before: Losses, after: Losses) -> float:
        """Return the weighted mean gain in nats per token; positive is better."""
        total = sum(self.weights.values())
        return float(
            sum(
                w * (_mean(before[kind]) - _mean(after[kind]))
                for kind, w in self.weights.items()
                if w > 0
            )
            / total
        )

    def bounds(
        self, before: Losses, after: Losses, picks: Picks, *names: str | int
    ) -> tuple[float, float]:
        """Return one-sided lower and upper bounds of the gain: paired bootstrap of the clusters of
        each kind.
        """
        total, gains = sum(self.weights.values()), np.zeros(self.samples)
        for kind, weight in self.weights.items():
            generator = numpy_generator(self.seed, "adas", "bootstrap", kind, *names)
            sums = [self._sums(losses, kind, picks) for losses in (before, after)]
            n = len(sums[0][0])
            draws = evaluate.draw_from(generator, n, self.samples)
            for (nats, tokens), sign in zip(sums, (1.0, -1.0), strict=True):
                gains += sign * weight / total * nats[draws].sum(1) / tokens[draws].sum(1)
        gains.sort()
        tail = int(self.samples * (1 - self.confidence))
        return float(gains[tail]), float(gains[-1 - tail])

    def chance(self, before: Losses, after: Losses, picks: Picks, *names: str | int) -> float:
        """Return how likely a gain as large as this is where nothing helps: the one-sided p of the
        sign-flip test.

        Where the gains of clusters are symmetric, it falls below any level no more often than that
        level says, whatever the number of rows.
        """
        total, pulls = sum(self.weights.values()), []
        for kind, weight in self.weights.items():
            (nats_before, tokens), (nats_after, _) = (
                self._sums(losses, kind, picks) for losses in (before, after)
            )
            pulls.append(weight / total * (nats_before - nats_after) / tokens.sum())
        pull = np.concatenate(pulls)
        generator = numpy_generator(self.seed, "adas", "flips", *names)
        flipped = generator.choice((-1.0, 1.0), (self.samples, len(pull))) @ pull
        return float((1 + (flipped >= pull.sum() - 1e-12).sum()) / (self.samples + 1))

    def _sums(
        self, losses: Losses, kind: str, picks: Picks
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return nats and tokens of one kind, summed over each cluster."""
        numbers = self.clusters[kind][picks[kind]] if kind in self.clusters else ()
        return evaluate.cluster_sums(losses[kind][:, 0], losses[kind][:, 1], numbers)


def _mean(losses: NDArray[np.float64]) -> float:
    return float(losses[:, 0].sum() / losses[:, 1].sum())


def make_objective(
    fitness: Mapping[str, float],
    tokenizer: PreTrainedTokenizerFast,
    split: str,
    count: int,
    context: evaluate.EvalContext,
    *,
    samples: int,
    confidence: float,
    pool: int = 0,
) -> Objective:
    """Return an objective over up to `count` distinct rows of each kind with a positive weight, of
    one split.
    """
    weights = {kind: weight for kind, weight in fitness.items() if weight > 0}
    raw = {kind: rows_of(kind, split, count, context) for kind in weights}
    numbers = {
        kind: evaluate.cluster_numbers([item["cluster"] for item in items])
        for kind, items in raw.items()
    }
    return Objective(
        rows={kind: [encode(tokenizer, item) for item in items] for kind, items in raw.items()},
        weights=weights,
        items_hash=evaluate.split_hash([raw]),
        seed=context.seed,
        samples=samples,
        confidence=confidence,
        clusters={kind: np.asarray(cluster_of_row) for kind, cluster_of_row in numbers.items()},
        pool=pool,
    )


def rows_of(kind: str, split: str, count: int, context: evaluate.EvalContext) -> list[Any]:
    """Return up to `count` distinct pieces of text, or rows of a generated task."""
    if kind == "text":
        return evaluate.task_items("text", split, count, context)
    task = registry.load("agent_forge.data.synthetic", kind, "generated task")
    rows: list[Any] = task.rows(count, split, seed_for(context.seed, "adas", "objective", kind))
    return rows


def encode(tokenizer: PreTrainedTokenizerFast, item: Any) -> MaskedRow:
    """Return ids and mask of an item: every token of text, the assistant's tokens of a
    conversation.
    """
    if "text" in item:
        ids = tokenizer.encode(item["text"], add_special_tokens=False)
        return [data.text_start(tokenizer), *ids], [False] + [True] * len(ids)
    return data.encode_chat(tokenizer, item["messages"])


class Drift:
    """KL(input || candidate) in nats per token on neutral text.

    The input's log-probabilities are computed once and held in memory.
    """

    def __init__(self, model: PreTrainedModel, rows: Sequence[MaskedRow]) -> None:
        limit = positions(model.config)
        begin = begin_ids(model.config)
        cut = [cut_left(ids, limit or len(ids), begin) for ids, _ in rows]
        self._ids = [torch.tensor([ids], device=model.device) for ids in cut]
        self._before = [self._log_probabilities(model, ids) for ids in self._ids]

    def __call__(self, model: PreTrainedModel) -> float:
        """Return the mean over all positions."""
        total, count = 0.0, 0
        for ids, before in zip(self._ids, self._before, strict=True):
            after = self._log_probabilities(model, ids)
            total += float((before.exp() * (before - after)).sum(dtype=torch.float64))
            count += before.shape[0]
        return total / max(1, count)

    @torch.no_grad()
    def _log_probabilities(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        return model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
