"""Measure trunk and specialists on the same held-out items: text, reasoning, recall over segments,
mixed difficulty.

Each specialist should beat its siblings on its own probe; the table of all against all is in the
report. Losses are nats per trained token of the validation split. An item's answer counts as right
when every token of the reply is the likeliest one given those before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import data, evaluate
from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.data import encode_chat
from agent_forge.data.sources import IGNORE
from agent_forge.data.synthetic import memory, mixed, reasoning
from agent_forge.models.cognate import CognateForCausalLM
from agent_forge.phases.cognate import Config
from agent_forge.phases.cognate.segments import RecallRows

SPLIT = "validation"
BATCH_ROWS = 32
OWN_PROBE = {
    "reasoning": "reasoning",
    "memory_integration": "recall",
    "adaptive_computation": "mixed",
}
EASY, HARD = 1, mixed.USUAL_STEPS


@dataclass(slots=True)
class Items:
    """What a probe measured, one entry per item.

    losses: summed nats of the reply's tokens; tokens: the number of these tokens; right: 1.0 or
    0.0; passes: mean passes of all tokens of the item, question included; answer_passes: mean
    passes of the reply's tokens. For a model without passes both are 1.
    """

    losses: NDArray[np.float64]
    tokens: NDArray[np.float64]
    right: NDArray[np.float64]
    passes: NDArray[np.float64]
    answer_passes: NDArray[np.float64]

    @property
    def loss(self) -> float:
        """Return nats per token."""
        return float(self.losses.sum() / self.tokens.sum())


@torch.no_grad()
def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: Config
) -> dict[str, float]:
    """Return text bits per byte with its interval, and the loss and accuracy of every probe."""
    model.eval()
    context = evaluate.EvalContext(data=config.data, tokenizer=tokenizer, seed=config.seed)
    text = evaluate.score(model, tokenizer, ["text"], SPLIT, config.probe_items, context)["text"]
    figures = {
        "text_bits_per_byte": text.mean,
        "text_low": text.interval[0],
        "text_high": text.interval[1],
    }
    for name in ("reasoning", "mixed"):
        rows = probe_rows(name, config, config.probe_items)
        items = row_items(model, tokenizer, rows)
        figures |= {f"{name}_loss_nats": items.loss, f"{name}_accuracy": items.right.mean()}
        if name == "mixed" and isinstance(model, CognateForCausalLM):
            figures |= passes_by_difficulty(rows, items)
    if isinstance(model, CognateForCausalLM):
        for name, write in (("recall", True), ("recall_writes_off", False)):
            items = recall_items(model, tokenizer, config, config.probe_items, write=write)
            figures |= {f"{name}_loss_nats": items.loss, f"{name}_accuracy": items.right.mean()}
        figures["recall_items"] = len(items.right)
    else:
        figures["recall_loss_nats"] = row_items(
            model, tokenizer, probe_rows("memory", config, config.probe_items)
        ).loss
    return {name: float(value) for name, value in figures.items()}


def probe_rows(name: str, config: Config, count: int) -> list[dict[str, Any]]:
    """Return the validation rows of a probe; mixed is as many easy rows as hard ones."""
    seed = seed_for(config.seed, "cognate", "probe")
    if name != "mixed":
        return {"reasoning": reasoning, "memory": memory}[name].rows(count, SPLIT, seed)
    return [
        row
        for level in (EASY, HARD)
        for row in mixed.rows(-(-count // 2), SPLIT, seed, difficulty=level)
    ]


@torch.no_grad()
def row_items(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict[str, Any]]
) -> Items:
    """Return the figures of a model on the replies of chat rows."""
    encoded = [encode_chat(tokenizer, row["messages"]) for row in rows]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    parts = []
    for start in range(0, len(rows), BATCH_ROWS):
        part = encoded[start : start + BATCH_ROWS]
        length = max(len(ids) for ids, _ in part)
        ids = torch.tensor(
            [row + [pad] * (length - len(row)) for row, _ in part], device=model.device
        )
        real = torch.tensor(
            [[1] * len(row) + [0] * (length - len(row)) for row, _ in part], device=model.device
        )
        mask = torch.tensor(
            [row + [False] * (length - len(row)) for _, row in part], device=model.device
        )
        output = model(input_ids=ids)
        parts.append(_items(output, ids.masked_fill(~mask, IGNORE), real))
    return _joined(parts)


def passes_by_difficulty(rows: Sequence[dict[str, Any]], items: Items) -> dict[str, float]:
    """Return the mean passes over all tokens of easy and of hard rows, and over their answers'
    tokens.
    """
    levels = np.asarray([row["difficulty"] for row in rows])
    figures = {}
    for name, level in (("easy", EASY), ("hard", HARD)):
        figures[f"passes_{name}"] = items.passes[levels == level].mean()
        figures[f"answer_passes_{name}"] = items.answer_passes[levels == level].mean()
    return figures


@torch.no_grad()
def recall_items(
    model: CognateForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    config: Config,
    count: int,
    *,
    write: bool,
) -> Items:
    """Return the figures of a model on questions about facts of an earlier segment, with writes on
    or off.
    """
    rows = memory.rows(count, SPLIT, seed_for(config.seed, "cognate", "probe"))
    source = RecallRows(rows, tokenizer, config.recall.segment_tokens)
    text = data.TextSource(config.data, tokenizer, SPLIT)
    generator = numpy_generator(config.seed, "cognate", "probe-filler")
    length, between = config.recall.segment_tokens, config.recall.filler_segments
    windows = [
        source.window(index, [text.take(generator, length)[0] for _ in range(between)])
        for index in range(len(source.rows))
    ]
    parts = []
    for start in range(0, len(windows), BATCH_ROWS):
        ids, labels = (
            torch.from_numpy(np.stack(part)).to(model.device)
            for part in zip(*windows[start : start + BATCH_ROWS], strict=True)
        )
        state = None
        segments = ids.split(length, 1)
        for segment in segments[:-1]:
            mask = segment.ne(source.pad).long()
            state = model(segment, attention_mask=mask, memory=state, write_memory=write).memory
        mask = segments[-1].ne(source.pad).long()
        output = model(segments[-1], attention_mask=mask, memory=state, write_memory=False)
        parts.append(_items(output, labels[:, -length:], mask))
    return _joined(parts)


def _items(output: Any, labels: Tensor, real: Tensor) -> Items:
    """Return the items of a batch from logits (B, T, V) and labels (B, T), and real (B, T), 0 on
    padding.
    """
    targets, logits = labels[:, 1:], output.logits[:, :-1].float()
    counted = targets.ne(IGNORE)
    losses = (
        functional.cross_entropy(logits.transpose(1, 2), targets.clamp(min=0), reduction="none")
        * counted
    )
    right = (logits.argmax(-1).eq(targets) | ~counted).all(1)
    passes = getattr(output, "passes", None)
    passes = torch.ones_like(labels) if passes is None else passes
    tokens = counted.sum(1)
    over_all = (passes * real).sum(1) / real.sum(1)
    over_counted = (passes[:, :-1] * counted).sum(1) / tokens
    columns = (losses.sum(1), tokens, right, over_all, over_counted)
    return Items(*(value.double().cpu().numpy() for value in columns))


def _joined(parts: Sequence[Items]) -> Items:
    names = ("losses", "tokens", "right", "passes", "answer_passes")
    return Items(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
