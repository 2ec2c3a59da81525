"""Losses that phases share: next-token cross-entropy, distillation, and cross-entropy that never
holds all logits.

Labels follow Hugging Face: not shifted by the caller, -100 is ignored. Losses are float32 means
over trained tokens. Source of distillation: Hinton et al. 2015, arXiv:1503.02531 (KL at a
temperature, times its square).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from agent_forge.anatomy.cross_entropy import IGNORE, weighted_cross_entropy
from agent_forge.anatomy.head import plain_head
from agent_forge.core.errors import DataError
from agent_forge.learn.feed import trained_tokens

# From this share of trained tokens on, giving the other tokens a weight of 0 is cheaper than
# picking the trained ones out. On an accelerator all tokens are always computed, because picking
# would wait for their count.
DENSE_SHARE = 0.75


def lm_loss(model: Any, batch: Mapping[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (loss, metrics) of a causal language model on a batch.

    batch: {"input_ids", "labels"}, (B, T) int64 each.

    A model's own `training_loss` is used when it has one. Raises DataError when no token of the
    batch is trained.
    """
    input_ids, labels = batch["input_ids"], batch["labels"]
    count = trained_tokens(batch)
    if not count:
        raise DataError(
            f"step {step}: no token of this batch is trained (all labels are {IGNORE}); use longer windows"
        )
    if hasattr(model, "training_loss"):
        loss, metrics = model.training_loss(input_ids, labels)
        return loss, dict(metrics)
    without_logits = _loss_without_logits(model, batch, count)
    if without_logits is not None:
        return without_logits, {}
    logits_BTV = model(
        input_ids=input_ids, attention_mask=batch.get("attention_mask"), use_cache=False
    ).logits
    return next_token_loss(logits_BTV, labels), {}


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of labels (B, T), not shifted, under logits (B, T, V).

    The host never waits for an accelerator. At least one label must count: a mean over none is NaN.
    """
    logits, labels = logits[:, :-1], labels[:, 1:]
    if logits.device.type != "cpu":
        return functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE
        )
    counted = labels != IGNORE
    return functional.cross_entropy(logits[counted].float(), labels[counted])


def distill_loss(
    teacher_logits: Tensor, student_logits: Tensor, mask: Tensor, temperature: float
) -> Tensor:
    """Return T² · KL(teacher ‖ student) in nats, the mean over positions where `mask` is true.

    teacher_logits, student_logits: (B, T, V), aligned position by position; mask: (B, T) bool.
    Raises DataError when the mask is empty; on an accelerator, which would have to wait to tell,
    the loss is NaN then.
    """
    if mask.device.type != "cpu":
        teacher = functional.log_softmax(teacher_logits.float() / temperature, -1)
        student = functional.log_softmax(student_logits.float() / temperature, -1)
        each = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
        return temperature**2 * (each.masked_fill(~mask, 0.0).sum() / mask.sum())
    if not bool(mask.any()):
        raise DataError("distillation has no position to learn from: the mask is empty")
    teacher = functional.log_softmax(teacher_logits[mask].float() / temperature, -1)
    student = functional.log_softmax(student_logits[mask].float() / temperature, -1)
    return temperature**2 * functional.kl_div(
        student, teacher, reduction="batchmean", log_target=True
    )


def chunked_cross_entropy(
    hidden: Tensor,
    head: Tensor | Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    chunk_tokens: int = 1024,
) -> Tensor:
    """Return the mean cross-entropy of `labels` without ever holding more than `chunk_tokens` rows
    of logits.

    hidden: (..., D), already aligned with labels (...) int64 (the caller shifts); head: weight (V,
    D), whose gradients are made chunk by chunk in the forward pass, or a function from (n, D) to
    logits (n, V), which are then computed again in the backward pass. Raises DataError without any
    label.
    """
    counted = labels != IGNORE
    count = int(counted.sum())
    if count == 0:
        raise DataError(f"cross-entropy has no label to learn from: all are {IGNORE}")
    if isinstance(head, Tensor):
        return _mean_cross_entropy(hidden, head, labels, counted, count, chunk_tokens)
    rows_ND, targets_N = hidden[counted], labels[counted]

    def chunk_loss(rows: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(head(rows).float(), targets, reduction="sum")

    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, count, chunk_tokens):
        part = slice(start, start + chunk_tokens)
        total = total + checkpoint(chunk_loss, rows_ND[part], targets_N[part], use_reentrant=False)
    return total / count


def _mean_cross_entropy(
    hidden: Tensor, head: Tensor, labels: Tensor, counted: Tensor, count: int, chunk_rows: int
) -> Tensor:
    """Return the mean cross-entropy over the `count` positions where `counted` is true.

    chunk_rows: how many rows of logits exist at once; 0 chooses.
    """
    if hidden.device.type == "cpu" and count < DENSE_SHARE * labels.numel():
        even = torch.full((count,), 1.0 / count, device=hidden.device)
        return weighted_cross_entropy(
            hidden[counted], head, labels[counted], even, chunk_rows=chunk_rows
        )[0]
    targets, weights = labels.flatten().clamp(min=0), counted.flatten() / count
    return weighted_cross_entropy(
        hidden.flatten(0, -2), head, targets, weights, chunk_rows=chunk_rows
    )[0]


def _loss_without_logits(model: Any, batch: Mapping[str, Tensor], count: int) -> Tensor | None:
    """Return the chunked loss of a plain Hugging Face model over its `count` trained tokens, else
    None.

    Only where the head is a bias-free linear layer right after the base model, with nothing done to
    the logits: then head(base(x)) is the model.
    """
    base, head = getattr(model, "base_model", None), plain_head(model)
    if head is None or base is None or base is model:
        return None
    hidden_BTD = base(
        input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), use_cache=False
    ).last_hidden_state
    # Labels move, not the hidden states: those stay one block that needs no copy.
    next_BT = functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE)
    return _mean_cross_entropy(hidden_BTD, head.weight, next_BT, next_BT != IGNORE, count, 0)
