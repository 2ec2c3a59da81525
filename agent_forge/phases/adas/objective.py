"""What the search improves: loss in nats a token on held-out rows of several kinds, compared in pairs.

The gain of one model over another is the weighted mean over kinds of (loss before - loss after), both on the same rows.
Its lower bound resamples rows within each kind. Drift is KL(input || candidate) on neutral text, a hard limit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import data, evaluate
from agent_forge.core import registry
from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.evaluate.engine import MaskedRow

Losses = dict[str, NDArray[np.float64]]  # kind -> (n, 2): nats, tokens
Picks = dict[str, NDArray[np.int64]]  # kind -> row numbers


@dataclass(slots=True, kw_only=True)
class Objective:
    """Rows of each kind, already encoded, and the weight of each kind. `scored` counts the rows that were run."""

    rows: dict[str, list[MaskedRow]]
    weights: dict[str, float]
    items_hash: str
    seed: int
    samples: int
    confidence: float
    scored: int = 0

    def losses(self, model: PreTrainedModel, picks: Picks) -> Losses:
        """Return each picked row's loss. All kinds go through the model together."""
        chosen = [(kind, i) for kind, numbers in picks.items() for i in numbers.tolist()]
        found = evaluate.row_nll(model, [self.rows[kind][i] for kind, i in chosen])
        self.scored += len(chosen)
        where = np.asarray([kind for kind, _ in chosen])
        return {kind: found[where == kind] for kind in picks}

    def draw(self, sizes: Sequence[int], *names: str | int) -> list[Picks]:
        """Return disjoint picks of `sizes` rows a kind, fixed by `names`."""
        rounds: list[Picks] = [{} for _ in sizes]
        for kind, rows in self.rows.items():
            order = numpy_generator(self.seed, "adas", "draw", kind, *names).permutation(len(rows))
            for number, part in enumerate(np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])):
                rounds[number][kind] = part
        return rounds

    def everything(self) -> Picks:
        """Return picks of every row."""
        return {kind: np.arange(len(rows)) for kind, rows in self.rows.items()}

    def gain(self, before: Losses, after: Losses) -> float:
        """Return the weighted mean gain in nats a token; positive is better."""
        total = sum(self.weights.values())
        return float(
            sum(w * (_mean(before[kind]) - _mean(after[kind])) for kind, w in self.weights.items() if w > 0) / total
        )

    def bounds(self, before: Losses, after: Losses, *names: str | int) -> tuple[float, float]:
        """Return one-sided lower and upper bounds of the gain: paired bootstrap, rows resampled within each kind."""
        total, gains = sum(self.weights.values()), np.zeros(self.samples)
        for kind, weight in self.weights.items():
            generator = numpy_generator(self.seed, "adas", "bootstrap", kind, *names)
            n = len(before[kind])
            draws = generator.integers(0, n, (self.samples, n))
            for losses, sign in ((before[kind], 1.0), (after[kind], -1.0)):
                gains += sign * weight / total * losses[draws, 0].sum(1) / losses[draws, 1].sum(1)
        gains.sort()
        tail = int(self.samples * (1 - self.confidence))
        return float(gains[tail]), float(gains[-1 - tail])


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
) -> Objective:
    """Return an objective over `count` rows of each kind with a positive weight, of one split."""
    weights = {kind: weight for kind, weight in fitness.items() if weight > 0}
    raw = {kind: rows_of(kind, split, count, context) for kind in weights}
    return Objective(
        rows={kind: [encode(tokenizer, item) for item in items] for kind, items in raw.items()},
        weights=weights,
        items_hash=evaluate.split_hash([raw]),
        seed=context.seed,
        samples=samples,
        confidence=confidence,
    )


def rows_of(kind: str, split: str, count: int, context: evaluate.EvalContext) -> list[Any]:
    """Return `count` pieces of text, or rows of a generated task."""
    if kind == "text":
        return evaluate.task_items("text", split, count, context)
    task = registry.load("agent_forge.data.synthetic", kind, "generated task")
    rows: list[Any] = task.rows(count, split, seed_for(context.seed, "adas", "objective", kind))
    return rows


def encode(tokenizer: PreTrainedTokenizerFast, item: Any) -> MaskedRow:
    """Return ids and mask of an item: every token of text, the assistant's tokens of a conversation."""
    if "text" in item:
        ids = tokenizer.encode(item["text"], add_special_tokens=False)
        return [data.text_start(tokenizer), *ids], [False] + [True] * len(ids)
    return data.encode_chat(tokenizer, item["messages"])


class Drift:
    """KL(input || candidate) in nats a token on neutral text; the input's log-probabilities are kept.

    Large vocabularies keep few pieces: 64 M numbers at most.
    """

    def __init__(self, model: PreTrainedModel, rows: Sequence[MaskedRow]) -> None:
        self._ids = [torch.tensor([list(ids)], device=model.device) for ids, _ in rows]
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
