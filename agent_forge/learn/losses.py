"""Losses that phases share: next-token cross-entropy, distillation, and cross-entropy that never holds all logits.

Labels follow Hugging Face: not shifted by the caller, -100 is ignored. Losses are float32 means over trained tokens.
Source of distillation: Hinton et al. 2015, arXiv:1503.02531 (KL at a temperature, times its square).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from agent_forge.core.errors import DataError

IGNORE = -100


def lm_loss(model: Any, batch: Mapping[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (loss, metrics) of a causal language model on a batch of {"input_ids", "labels"}: (B, T) int64 each.

    A model's own `training_loss` is used when it has one. Raises DataError when no token of the batch is trained.
    """
    input_ids, labels = batch["input_ids"], batch["labels"]
    wanted = labels[:, 1:] != IGNORE
    if not bool(wanted.any()):
        raise DataError(f"step {step}: no token of this batch is trained (all labels are {IGNORE}); use longer windows")
    if hasattr(model, "training_loss"):
        loss, metrics = model.training_loss(input_ids, labels)
        return loss, dict(metrics)
    logits_BTV = model(input_ids=input_ids, attention_mask=batch.get("attention_mask"), use_cache=False).logits
    loss = functional.cross_entropy(logits_BTV[:, :-1][wanted].float(), labels[:, 1:][wanted])
    return loss, {}


def distill_loss(teacher_logits: Tensor, student_logits: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) in nats, the mean over positions where `mask` is true.

    teacher_logits, student_logits: (B, T, V), aligned position by position; mask: (B, T) bool.
    Raises DataError when the mask is empty.
    """
    if not bool(mask.any()):
        raise DataError("distillation has no position to learn from: the mask is empty")
    teacher = functional.log_softmax(teacher_logits[mask].float() / temperature, -1)
    student = functional.log_softmax(student_logits[mask].float() / temperature, -1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def chunked_cross_entropy(
    hidden: Tensor, head: Tensor | Callable[[Tensor], Tensor], labels: Tensor, *, chunk_tokens: int = 1024
) -> Tensor:
    """Return the mean cross-entropy of `labels` without ever holding more than `chunk_tokens` rows of logits.

    hidden: (..., D), already aligned with labels (...) int64 (the caller shifts); head: weight (V, D), or a function
    from (n, D) to logits (n, V). Logits are computed again in the backward pass. Raises DataError without any label.
    """
    wanted = labels != IGNORE
    count = int(wanted.sum())
    if count == 0:
        raise DataError(f"cross-entropy has no label to learn from: all are {IGNORE}")
    rows_ND, targets_N = hidden[wanted], labels[wanted]

    def chunk_loss(rows: Tensor, targets: Tensor) -> Tensor:
        logits = functional.linear(rows, head) if isinstance(head, Tensor) else head(rows)
        return functional.cross_entropy(logits.float(), targets, reduction="sum")

    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, count, chunk_tokens):
        part = slice(start, start + chunk_tokens)
        total = total + checkpoint(chunk_loss, rows_ND[part], targets_N[part], use_reentrant=False)
    return total / count
