"""Losses that phases share: next-token cross-entropy, distillation, and cross-entropy that never holds all logits.

Labels follow Hugging Face: not shifted by the caller, -100 is ignored. Losses are float32 means over trained tokens.
Source of distillation: Hinton et al. 2015, arXiv:1503.02531 (KL at a temperature, times its square).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from agent_forge.core.errors import DataError
from agent_forge.models.cross_entropy import CHUNK_ENTRIES, weighted_cross_entropy

IGNORE = -100
# Logits of more entries than this are never held whole: 64 MiB in float32, and training holds several such tensors.
LOGITS_IN_MEMORY = 1 << 24
# Models of transformers whose logits are lm_head(base(x)) and nothing else (no scale, no soft cap).
PLAIN_HEADS = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})


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
    chunked = _large_vocabulary_loss(model, batch)
    if chunked is not None:
        return chunked, {}
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

    hidden: (..., D), already aligned with labels (...) int64 (the caller shifts); head: weight (V, D), whose gradients
    are made chunk by chunk in the forward pass, or a function from (n, D) to logits (n, V), which are then computed
    again in the backward pass. Raises DataError without any label.
    """
    wanted = labels != IGNORE
    count = int(wanted.sum())
    if count == 0:
        raise DataError(f"cross-entropy has no label to learn from: all are {IGNORE}")
    rows_ND, targets_N = hidden[wanted], labels[wanted]
    if isinstance(head, Tensor):
        even = torch.full((count,), 1.0 / count, device=hidden.device)
        return weighted_cross_entropy(rows_ND, head, targets_N, even, chunk_rows=chunk_tokens)[0]

    def chunk_loss(rows: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(head(rows).float(), targets, reduction="sum")

    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, count, chunk_tokens):
        part = slice(start, start + chunk_tokens)
        total = total + checkpoint(chunk_loss, rows_ND[part], targets_N[part], use_reentrant=False)
    return total / count


def _large_vocabulary_loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor | None:
    """Return the chunked loss of a plain Hugging Face model whose logits would be large, else None.

    Only where the head is a bias-free linear layer right after the base model, with nothing done to the logits: then
    head(base(x)) is the model.
    """
    base, head = getattr(model, "base_model", None), _plain_head(model)
    labels = batch["labels"][:, 1:]
    if head is None or base is None or base is model or labels.numel() * head.weight.shape[0] <= LOGITS_IN_MEMORY:
        return None
    hidden_BTD = base(
        input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), use_cache=False
    ).last_hidden_state
    return chunked_cross_entropy(
        hidden_BTD[:, :-1], head.weight, labels, chunk_tokens=max(CHUNK_ENTRIES // head.weight.shape[0], 1)
    )


def _plain_head(model: Any) -> nn.Linear | None:
    """Return the output layer of a model known to apply it alone, or None."""
    if type(model).__name__ not in PLAIN_HEADS or not type(model).__module__.startswith("transformers."):
        return None
    head = model.get_output_embeddings()
    # A subclass (ternary, adapted) computes something else than weight @ x.
    return head if type(head) is nn.Linear and head.bias is None else None
