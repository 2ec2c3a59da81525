"""Recall over segments: facts, then text, then questions, each in a segment that sees no other.

Only written memory can carry an answer across: every segment is a forward pass of its own, without
the keys and values of those before; memory is written after each segment but the last, and read in
the ones that follow. The gradient of the answers' loss flows through the reads into what was
written and how it was written. Batches of such rows are spread between a mixture's batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agent_forge.core.errors import DataError
from agent_forge.core.seeds import numpy_generator
from agent_forge.data import Mixture, TextSource, encode_chat
from agent_forge.data.sources import IGNORE
from agent_forge.data.synthetic.memory import question_text
from agent_forge.models.cognate import loss as cognate_loss
from agent_forge.phases.cognate import RecallConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from agent_forge.models.cognate import CognateForCausalLM
    from agent_forge.models.cognate.memory import MemoryState

# The name of this kind of data in a mix.
KIND = "recall"
# The share of answers that a guess among the ninety two-digit codes gets right.
CHANCE = 1 / 90


class RecallRows:
    """Rows of facts (data/synthetic/memory), encoded as segments of `segment_tokens`."""

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: "PreTrainedTokenizerFast",
        segment_tokens: int,
    ) -> None:
        self.pad = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        )
        self.segment_tokens = segment_tokens
        encoded = [self._encoded(row, tokenizer) for row in rows]
        self.rows = [row for row in encoded if row is not None]
        if not self.rows:
            raise DataError(
                f"none of {len(rows)} memory rows fits segments of {segment_tokens} tokens; raise recall.segment_tokens"
            )

    def _encoded(
        self, row: Mapping[str, Any], tokenizer: "PreTrainedTokenizerFast"
    ) -> "tuple[list[int], list[tuple[list[int], list[bool]]]] | None":
        """Return (facts, one encoded exchange per fact, the row's own question first), or None when
        one is too long.
        """
        facts, _ = encode_chat(tokenizer, [{"role": "user", "content": row["facts"]}])
        exchanges = []
        for key, code in sorted(
            row["pairs"], key=lambda pair: question_text(pair[0]) != row["question"]
        ):
            turn = [
                {"role": "user", "content": question_text(key)},
                {"role": "assistant", "content": code},
            ]
            exchanges.append(encode_chat(tokenizer, turn))
        if len(facts) > self.segment_tokens or len(exchanges[0][0]) > self.segment_tokens:
            return None
        return facts, exchanges

    def window(
        self,
        index: int,
        filler: "Sequence[NDArray[np.int64]]",
        generator: np.random.Generator | None = None,
    ) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return (ids, labels) of row `index` with segments of text between: ((2 + len(filler)) ·
        segment_tokens,).

        Every token of facts and text has a label; in the segment of questions only the answers do.
        With a generator this segment asks for as many facts as fit, in random order; without one it
        asks only the row's own question.
        """
        facts, exchanges = self.rows[index]
        length = self.segment_tokens
        # One row per segment: facts, fillers, questions. Rows are joined only at the end.
        ids = np.full((2 + len(filler), length), self.pad, np.int64)
        labels = np.full_like(ids, IGNORE)
        ids[0, : len(facts)] = labels[0, : len(facts)] = facts
        for place, text in enumerate(filler, start=1):
            ids[place] = labels[place] = text
        used = 0
        for number in [0] if generator is None else generator.permutation(len(exchanges)):
            turn, mask = exchanges[number]
            if used + len(turn) > length:
                break
            ids[-1, used : used + len(turn)] = turn
            # The questions cannot be predicted from anything, so only the answers teach.
            labels[-1, used : used + len(turn)] = np.where(mask, turn, IGNORE)
            used += len(turn)
        return ids.flatten(), labels.flatten()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """How many batches a stage takes, of what size, and what their draws hang on."""

    name: str
    steps: int
    rows: int
    length_tokens: int
    seed: int


class WithRecall:
    """The batches of a mixture, with batches of recall in a share of the steps; a pure function of
    the step.

    A batch of recall has about as many tokens as one of the mixture. In the first
    `filler_from` share of the steps the questions follow the facts directly; after that, segments
    of text come between.
    """

    pure = True

    def __init__(
        self,
        mixture: Mixture | None,
        share: float,
        rows: RecallRows,
        text: TextSource,
        config: RecallConfig,
        plan: BatchPlan,
    ) -> None:
        self.mixture, self.share, self.source, self.text = mixture, share, rows, text
        self.config, self.plan = config, plan

    def fingerprint(self) -> str:
        """Return a string that identifies the data."""
        inner = self.mixture.fingerprint() if self.mixture is not None else ""
        return f"{inner}-recall-{self.share}-{len(self.source.rows)}-{self.text.fingerprint()}"

    def recalls(self, step: int) -> bool:
        """Return whether `step` is one of recall; these steps are spread evenly."""
        # The whole part of step * share rises by one in exactly this share of the steps.
        return int((step + 1) * self.share) > int(step * self.share)

    def batch(self, step: int) -> "dict[str, Tensor]":
        """Return {"input_ids", "labels"}, (rows, tokens) int64 each."""
        if not self.recalls(step):
            assert self.mixture is not None, "a share of 1 makes every step one of recall"
            return self.mixture.batch(step)
        generator = numpy_generator(self.plan.seed, "recall", self.plan.name, step)
        begins = self.config.filler_from * self.plan.steps
        segments = self.config.filler_segments if step >= begins else 0
        length, batch_tokens = self.source.segment_tokens, self.plan.rows * self.plan.length_tokens
        windows = []
        # As many windows as have the tokens of a batch of the mixture, so that a step costs the
        # same.
        for _ in range(max(batch_tokens // ((2 + segments) * length), 1)):
            filler = [self.text.take(generator, length)[0] for _ in range(segments)]
            windows.append(
                self.source.window(
                    int(generator.integers(len(self.source.rows))), filler, generator
                )
            )
        ids, labels = (torch.from_numpy(np.stack(part)) for part in zip(*windows, strict=True))
        return {"input_ids": ids, "labels": labels}


def segment_loss(
    model: "CognateForCausalLM",
    input_ids: "Tensor",
    labels: "Tensor",
    config: RecallConfig,
    pad: int,
    *,
    loops: int | None = None,
    write: bool = True,
) -> "tuple[Tensor, dict[str, Tensor]]":
    """Return the loss of the last segment plus `context_weight` times the mean over the
    others, and the metrics of the last segment.

    input_ids, labels: (rows, segments · segment_tokens). Memory is carried over when `write`.
    """
    parts = list(
        zip(
            input_ids.split(config.segment_tokens, 1),
            labels.split(config.segment_tokens, 1),
            strict=True,
        )
    )
    memory: MemoryState | None = None
    losses: list[Tensor] = []
    metrics: dict[str, Tensor] = {}
    for number, (ids, targets) in enumerate(parts, start=1):
        loss, metrics, memory = cognate_loss.expected_loss(
            model, ids, targets, attention_mask=ids.ne(pad).long(), memory=memory, loops=loops,
            write_memory=write and number < len(parts),
        )  # fmt: skip
        losses.append(loss)
    # The answers count once whatever the number of segments before them.
    context = torch.stack(losses[:-1]).mean()
    return losses[-1] + config.context_weight * context, {
        f"recall_{name}": value for name, value in metrics.items()
    }
