"""Measure trunk and specialists on the same held-out items: text, reasoning, recall over segments, mixed difficulty.

Each specialist should beat its siblings on its own probe; the table of all against all is in the report. Losses are
nats per trained token of the validation split.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import evaluate
from agent_forge.core.seeds import seed_for
from agent_forge.data import encode_chat
from agent_forge.data.sources import IGNORE
from agent_forge.data.synthetic import memory, mixed, reasoning
from agent_forge.models.cognate import CognateForCausalLM
from agent_forge.phases.cognate import Config
from agent_forge.phases.cognate.segments import SegmentRows

SPLIT = "validation"
BATCH_ROWS = 32
OWN_PROBE = {"reasoning": "reasoning", "memory_integration": "recall", "adaptive_computation": "mixed"}


@torch.no_grad()
def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: Config) -> dict[str, float]:
    """Return text bits per byte with its interval, and the loss of every probe."""
    model.eval()
    context = evaluate.EvalContext(data=config.data, tokenizer=tokenizer, seed=config.seed)
    text = evaluate.score(model, tokenizer, ["text"], SPLIT, config.probe_items, context)["text"]
    found = {"text_bits_per_byte": text.mean, "text_low": text.interval[0], "text_high": text.interval[1]}
    for name, task in (("reasoning", reasoning), ("mixed", mixed)):
        rows = task.rows(config.probe_items, SPLIT, seed_for(config.seed, "cognate", "probe"))
        loss, passes = row_loss(model, tokenizer, rows)
        found[f"{name}_loss_nats"] = loss
        if name == "mixed" and isinstance(model, CognateForCausalLM):
            found |= passes_by_difficulty(rows, passes)
    rows = memory.rows(config.probe_items, SPLIT, seed_for(config.seed, "cognate", "probe"))
    if isinstance(model, CognateForCausalLM):
        found |= recall(model, SegmentRows(rows, tokenizer), config.branch.length_tokens)
    else:
        found["recall_loss_nats"] = row_loss(model, tokenizer, rows)[0]
    return {name: float(value) for name, value in found.items()}


def row_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict[str, Any]]
) -> tuple[float, list[float]]:
    """Return the loss of the replies (mean nats a token), and for each row the mean passes of its reply's tokens."""
    total = count = 0.0
    passes: list[float] = []
    encoded = [encode_chat(tokenizer, row["messages"]) for row in rows]
    for start in range(0, len(rows), BATCH_ROWS):
        part = encoded[start : start + BATCH_ROWS]
        length = max(len(ids) for ids, _ in part)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        ids = torch.tensor([row + [pad] * (length - len(row)) for row, _ in part], device=model.device)
        mask = torch.tensor([row + [False] * (length - len(row)) for _, row in part], device=model.device)
        output = model(input_ids=ids)
        losses = functional.cross_entropy(output.logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
        total += float((losses * mask[:, 1:]).sum())
        count += float(mask[:, 1:].sum())
        if getattr(output, "passes", None) is not None:
            used = (output.passes[:, :-1] * mask[:, 1:]).sum(1) / mask[:, 1:].sum(1)
            passes += used.tolist()
    return total / count, passes


def passes_by_difficulty(rows: Sequence[dict[str, Any]], passes: Sequence[float]) -> dict[str, float]:
    """Return the mean passes of easy (level 1) and hard (level 5) rows."""
    levels = np.asarray([row["difficulty"] for row in rows])
    used = np.asarray(passes)
    return {"passes_easy": used[levels == 1].mean(), "passes_hard": used[levels == 5].mean()}


def recall(model: CognateForCausalLM, source: SegmentRows, length: int) -> dict[str, float]:
    """Return loss and accuracy of answers whose facts lie in the segment before, with writes on and off."""
    windows = [window for i in range(len(source.rows)) if (window := source.window(i, length)) is not None]
    found: dict[str, float] = {"recall_items": len(windows)}
    for name, write in (("recall", True), ("recall_writes_off", False)):
        total = count = right = 0.0
        for start in range(0, len(windows), BATCH_ROWS):
            part = windows[start : start + BATCH_ROWS]
            ids, labels = (torch.from_numpy(np.stack(values)).to(model.device) for values in zip(*part, strict=True))
            losses, hits, wanted = _answer_losses(model, ids, labels, source.pad, write)
            total += float(losses[wanted].sum())
            count += float(wanted.sum())
            right += float((hits | ~wanted).all(1).sum())
        found |= {f"{name}_loss_nats": total / count, f"{name}_accuracy": right / len(windows)}
    return found


def _answer_losses(
    model: CognateForCausalLM, ids: Tensor, labels: Tensor, pad: int, write: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for the second segment, each token's loss, whether it is the likeliest token, and whether it counts."""
    half = ids.shape[1] // 2
    first, second, wanted = ids[:, :half], ids[:, half:], labels[:, half + 1 :]
    memory = model(first, attention_mask=first.ne(pad).long(), write_memory=write).memory
    logits = model(second, attention_mask=second.ne(pad).long(), memory=memory, write_memory=False).logits[:, :-1]
    losses = functional.cross_entropy(logits.transpose(1, 2), wanted.clamp(min=0), reduction="none")
    return losses, logits.argmax(-1).eq(wanted), wanted.ne(IGNORE)
