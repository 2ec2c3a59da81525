"""Learn from the user's own pairs of a chosen and a rejected answer, by DPO (`learn.preference`).

The parent's log-probabilities of both answers are the reference, and are computed once. Measured on
held-out pairs: how often the chosen answer is the likelier one, in the parent and in the model.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agent_forge.core.errors import DataError
from agent_forge.data import preferences
from agent_forge.data.chat import encode_chats
from agent_forge.data.sources import IGNORE
from agent_forge.data.windows import positions
from agent_forge.learn import preference
from agent_forge.phases import PhaseRun
from agent_forge.phases.bake import Config, measure

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Lesson = Mapping[str, Tensor]


class Preferences:
    """The pairs to learn from, and those to measure on; None where there are none."""

    def __init__(self, phase: PhaseRun[Config], parent: "PreTrainedModel") -> None:
        self.phase, self.parent = phase, parent
        self.lesson: Lesson | None = None
        self.heldout: Lesson | None = None
        if phase.config.preferences.rows:
            self.lesson, self.heldout = self._taught("train"), self._taught("validation")

    def _taught(self, split: str) -> Lesson:
        """Return {"ids", "labels", "reference"} of a split: row 2i is chosen, row 2i + 1 not."""

        def compute() -> dict[str, Tensor]:
            tensors = encoded(self.phase, split, positions(self.parent.config))
            reference = preference.reference_log_probs(
                self.parent, tensors["ids"], tensors["labels"]
            )
            return {**tensors, "reference": reference}

        return self.phase.out.remember_tensors(f"preferences-{split}", compute)

    def measure(self, model: "PreTrainedModel") -> dict[str, Any] | None:
        """Return how often the chosen answer is likelier on held-out pairs; None where off.

        "before": in the parent. "margin": mean log-probability that the model moved towards the
        chosen answers, in nats per pair.
        """
        if self.heldout is None:
            return None
        after = preference.reference_log_probs(model, self.heldout["ids"], self.heldout["labels"])
        gaps = [part[0::2] - part[1::2] for part in (self.heldout["reference"], after)]
        before, right = (int((gap > 0).sum()) for gap in gaps)
        count = len(gaps[0])
        low, high = measure.wilson(right, count)
        return {
            "value": right / count, "low": low, "high": high, "n": count, "before": before / count,
            "margin": float((gaps[1] - gaps[0]).mean()),
        }  # fmt: skip


def encoded(phase: PhaseRun[Config], split: str, limit: int | None) -> dict[str, Tensor]:
    """Return the pairs of a split as {"ids", "labels"}: (2 * pairs, T) int64, zero-padded.

    A pair with an answer that does not fit the longest conversation is left out, with a warning.
    Raises DataError where none is left.
    """
    config = phase.config
    longest = min(config.preferences.length_tokens, limit or config.preferences.length_tokens)
    pairs = preferences.read(
        config.preferences.rows, split, encoding=config.data.encoding,
        ignored=config.data.ignore_keys,
    )  # fmt: skip
    talks = [
        _answers_alone(turns, pair.prompt_turns)
        for pair in pairs
        for turns in (pair.chosen, pair.rejected)
    ]
    rows = encode_chats(phase.tokenizer, talks)
    lengths = [len(ids) for ids, _ in rows]
    # A pair is two neighbouring rows: what is preferred, then the other.
    fitting = [i for i in range(0, len(rows), 2) if max(lengths[i : i + 2]) <= longest]
    if len(fitting) < len(pairs):
        phase.events.warning(
            f"preferences: {len(pairs) - len(fitting)} of {len(pairs)} pairs ({split}) are longer "
            f"than {longest} tokens and are left out (preferences.length_tokens)"
        )
    if not fitting:
        raise DataError(
            f"preferences.rows: no pair of the {split} split fits {longest} tokens; raise "
            "preferences.length_tokens"
        )
    rows = [rows[k] for i in fitting for k in (i, i + 1)]
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    labels = torch.full((len(rows), length), IGNORE, dtype=torch.int64)
    for place, (row, mask) in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        learned = torch.tensor(mask)
        labels[place, : len(row)][learned] = torch.tensor(row)[learned]
    return {"ids": ids, "labels": labels}


def _answers_alone(turns: list[dict[str, Any]], prompt: int) -> list[dict[str, Any]]:
    """Return the turns with marks: the shared ones are not learned."""
    return [
        {**turn, "learn": place >= prompt and turn["role"] == "assistant"}
        for place, turn in enumerate(turns)
    ]


def lesson_loss(
    model: "PreTrainedModel", lesson: Lesson, pairs: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Return the mean DPO loss (nats) of some pairs, and their mean margin."""
    places = torch.stack([2 * pairs, 2 * pairs + 1], 1).flatten()
    labels = lesson["labels"][places]
    length = int((labels != IGNORE).any(0).nonzero().max()) + 1
    ids, labels = (part[:, :length].to(model.device) for part in (lesson["ids"][places], labels))
    now = preference.answer_log_probs(model, ids, labels)
    then = lesson["reference"][places].to(model.device)
    loss, margins = preference.dpo_loss(now[0::2], now[1::2], then[0::2], then[1::2], beta)
    return loss, margins.detach().mean()
