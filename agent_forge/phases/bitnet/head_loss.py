"""The distillation losses on logits, computed with the heads inside, one chunk of positions at
a time.

Reads the last hidden states of student and parent and both output embeddings; never holds all
logits. The loss is a sum with weights known beforehand, so each chunk's gradient follows from its
probabilities at once, and the backward pass only scales it. Source of the idea: Cut Your Losses,
arXiv:2411.09009.

Shapes: N positions, d hidden (student), e hidden (parent), V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from agent_forge.anatomy import chunks
from agent_forge.anatomy.cross_entropy import IGNORE


@dataclass(frozen=True, slots=True)
class LossWeights:
    """The weights of the two losses.

    kl: of T² KL(parent || student), a mean over positions. ce: of the cross-entropy, a mean over
    labelled positions.
    """

    kl: float
    ce: float
    temperature: float


def head_loss(
    hidden: Tensor,
    head: Tensor,
    taught: Tensor,
    taught_head: Tensor,
    targets: Tensor,
    weights: LossWeights,
    present: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (kl · T² KL + ce · CE, T² KL, CE), float32 (); the last two carry no gradient.

    hidden: (N, d), N at least 1; head: (V, d); taught: (N, e); taught_head: (V, e); targets: (N,)
    int64 next tokens, -100 where there is none; present: (N,) bool, the positions that count, None
    for all. Logits are made in the autocast dtype where autocast is on; everything after is
    float32.
    """
    total, kl, ce = _HeadLoss.apply(hidden, head, taught, taught_head, targets, weights, present)  # type: ignore[no-untyped-call]
    return total, kl, ce


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        taught: Tensor,
        taught_head: Tensor,
        targets: Tensor,
        weights: LossWeights,
        present: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        wide, wide_taught = head.detach().to(dtype), taught_head.detach().to(dtype)
        rows = _rows(len(targets), head)
        shares = _shares(targets, present)
        fused = fused_chunk.suits(hidden.device, len(targets) * len(head))
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_head = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        # Float64, because a window of thousands of positions adds up to one number.
        sums = torch.zeros(2, dtype=torch.float64, device=hidden.device)
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(targets), rows):
                part = slice(start, start + rows)
                inputs = hidden[part].to(dtype)
                logits = functional.linear(inputs, wide)
                parent_logits = functional.linear(taught[part].to(dtype), wide_taught)
                work = fused_chunk if fused else _chunk
                chunk_losses, slope = work(
                    logits, parent_logits, targets[part], shares[:, part], weights
                )
                sums += chunk_losses
                slope = slope.to(dtype)
                if to_hidden is not None:
                    to_hidden[part] = (slope @ wide).to(hidden.dtype)
                if to_head is not None:
                    to_head.add_((slope.T @ inputs).float())
        ctx.save_for_backward(to_hidden, to_head)
        ctx.head_dtype = head.dtype
        kl, ce = sums.float()
        ctx.mark_non_differentiable(kl, ce)
        return weights.kl * kl + weights.ce * ce, kl, ce

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        to_hidden, to_head = ctx.saved_tensors
        return (
            None if to_hidden is None else to_hidden * gradient.to(to_hidden.dtype),
            None if to_head is None else (to_head * gradient).to(ctx.head_dtype),
            None,
            None,
            None,
            None,
            None,
        )


def _rows(count: int, head: Tensor) -> int:
    """Return how many positions one chunk holds."""
    if head.device.type == "cpu":
        return max(chunks.CPU_ENTRIES // head.shape[0], 1)
    return chunks.rows_at_once(count, head.shape[0], head.device)


def _shares(targets: Tensor, present: Tensor | None) -> Tensor:
    """Return the weight of each position in the means of KL and of CE: (2, N) float32."""
    labelled = targets != IGNORE
    if present is None:
        shares = torch.stack(
            [torch.full_like(labelled, 1 / len(targets), dtype=torch.float32), labelled.float()]
        )
    else:
        labelled = labelled & present
        shares = torch.stack([present.float(), labelled.float()])
        shares[0] /= present.sum().clamp_min(1)
    # Shares are divided beforehand, so chunks can be added up without knowing the whole.
    shares[1] /= labelled.sum().clamp_min(1)
    return shares


def _chunk(
    logits: Tensor, parent_logits: Tensor, targets: Tensor, shares: Tensor, weights: LossWeights
) -> tuple[Tensor, Tensor]:
    """Return (T² KL, CE) of a chunk (2,), and the slope of the weighted loss with respect to its
    logits (n, V).

    logits, parent_logits: (n, V); targets: (n,); shares: (2, n), the weight of each position in the
    means of KL and of CE.
    """
    heat, has_label = weights.temperature, targets != IGNORE
    places = targets.masked_fill(~has_label, 0)[:, None]
    log_q = functional.log_softmax(logits / heat if heat != 1 else logits, -1, dtype=torch.float32)
    log_p = functional.log_softmax(
        parent_logits / heat if heat != 1 else parent_logits, -1, dtype=torch.float32
    )
    # At temperature 1 both losses need the same probabilities of the student, computed once.
    log_q1 = (
        log_q
        if heat == 1 or not weights.ce
        else functional.log_softmax(logits, -1, dtype=torch.float32)
    )
    ce = -(log_q1.gather(1, places)[:, 0] * shares[1]).sum()
    p = log_p.exp()
    kl = heat**2 * (log_p.sub_(log_q).mul_(p).sum(-1) * shares[0]).sum()
    to_kl, to_ce = weights.kl * heat * shares[0, :, None], weights.ce * shares[1, :, None]
    # The gradient of T² KL is T (q - p); the gradient of CE is q1 less one at the label. Both are
    # computed in place, because a chunk of logits is large and log_q is not needed again.
    if log_q1 is log_q:
        slope = log_q.exp_().mul_(to_kl + to_ce)
    else:
        slope = log_q.exp_().mul_(to_kl).add_(log_q1.exp_().mul_(to_ce))
    slope.sub_(p.mul_(to_kl))
    slope.scatter_add_(1, places, -to_ce)
    return torch.stack([kl, ce]).double(), slope


def _written_for_a_compiler(
    logits: Tensor, parent_logits: Tensor, targets: Tensor, shares: Tensor, weights: LossWeights
) -> tuple[Tensor, Tensor]:
    """Return what `_chunk` returns, the slope in the dtype of the logits, without operations in
    place, so that it becomes one kernel.
    """
    heat, places = weights.temperature, targets.clamp_min(0)[:, None]
    log_q = functional.log_softmax(logits.float() / heat, -1)
    log_p = functional.log_softmax(parent_logits.float() / heat, -1)
    log_q1 = log_q if heat == 1 or not weights.ce else functional.log_softmax(logits.float(), -1)
    p = log_p.exp()
    kl = heat**2 * ((p * (log_p - log_q)).sum(-1) * shares[0]).sum()
    ce = -(log_q1.gather(1, places)[:, 0] * shares[1]).sum()
    to_kl, to_ce = weights.kl * heat * shares[0, :, None], weights.ce * shares[1, :, None]
    slope = (log_q.exp() - p) * to_kl + (
        log_q1.exp() - chunks.hits(places, logits.shape[1])
    ) * to_ce
    return torch.stack([kl, ce]).double(), slope.to(logits.dtype)


fused_chunk = chunks.Fused(_written_for_a_compiler)
