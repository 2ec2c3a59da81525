"""Cross-entropy over a large vocabulary, chunk by chunk, without holding all logits.

The loss is sum_n w_n CE_n with weights w that are known beforehand, so the forward pass can compute
the gradients of hidden states and head from each chunk's probabilities. That takes three products
per chunk, the same as without chunks, and nothing is computed twice, not even the exponentials. At
most `chunk_rows` rows of logits exist at any time. Source of the idea: Cut Your Losses,
arXiv:2411.09009.

Shapes: N tokens, d hidden, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agent_forge.anatomy import chunks

IGNORE = -100  # the label of a token that is not trained
# Logits with more entries than this are computed in chunks: they take 64 MiB in float32, several
# times that in training.
LOGITS_IN_MEMORY = 1 << 24
CHUNK_ROWS = 1024  # the most rows per chunk on the CPU, so that small vocabularies stay in cache


def logits_fit(rows: int, vocabulary: int) -> bool:
    """Return whether the logits of `rows` tokens may be held at once."""
    return rows * vocabulary <= LOGITS_IN_MEMORY


def token_losses(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """Return -log p of each target, (n,) float32, from hidden (n, d), with bounded logits."""

    def losses(part: Tensor, goal: Tensor) -> Tensor:
        return F.cross_entropy(head(part).float(), goal, reduction="none")

    rows = max(LOGITS_IN_MEMORY // int(getattr(head, "out_features", 1)), 1)
    if len(targets) <= rows:
        return losses(hidden, targets)
    parts = [
        checkpoint(losses, hidden[i : i + rows], targets[i : i + rows], use_reentrant=False)
        for i in range(0, len(targets), rows)
    ]
    return torch.cat(parts)


def weighted_cross_entropy(
    hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, *, chunk_rows: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the sum over tokens of weight x -log p, (), and each token's -log p, (N,), in float32.

    The second has no gradient. Logits are computed in the autocast dtype where autocast is on, and
    summed up in float32.

    hidden: (N, d).
    head: (V, d).
    targets: (N,) int64.
    weights: (N,), which get their gradient too.
    chunk_rows: rows of logits held at once; 0 chooses by the device.
    """
    if not chunk_rows and hidden.device.type != "cpu":
        chunk_rows = chunks.rows_at_once(max(len(targets), 1), head.shape[0], hidden.device)
    rows = chunk_rows or max(min(chunks.CPU_ENTRIES // head.shape[0], CHUNK_ROWS), 1)
    total, losses = _WeightedCrossEntropy.apply(hidden, head, targets, weights, rows)  # type: ignore[no-untyped-call]
    return total, losses


class _WeightedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, rows: int
    ) -> tuple[Tensor, Tensor]:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        wide, shares = head.to(dtype), weights.float()
        losses = hidden.new_empty(len(targets), dtype=torch.float32)
        wants_hidden, wants_head = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        to_hidden = torch.empty_like(hidden) if wants_hidden else None
        to_head: Tensor | None = None
        fused = slopes.suits(hidden.device, len(targets) * len(head))
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(targets), rows):
                part = slice(start, start + rows)
                inputs, goal = hidden[part].to(dtype), targets[part, None]
                logits = F.linear(inputs, wide)
                if fused:
                    slope, losses[part] = slopes(logits, goal, shares[part, None])
                else:
                    slope, losses[part] = _chances(logits.float(), goal)
                if not wants_hidden and not wants_head:
                    continue
                if not fused:
                    # The gradient of the weighted sum with respect to the logits.
                    slope.scatter_add_(1, goal, slope.new_full(goal.shape, -1.0))
                    slope = slope.mul_(shares[part, None]).to(dtype)
                if to_hidden is not None:
                    to_hidden[part] = (slope @ wide).to(hidden.dtype)
                if wants_head:
                    to_head = _plus_product(to_head, slope, inputs)
        ctx.save_for_backward(to_hidden, to_head, losses)
        ctx.head_dtype, ctx.weights_dtype = head.dtype, weights.dtype
        ctx.mark_non_differentiable(losses)
        return (shares * losses).sum(), losses

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        to_hidden, to_head, losses = ctx.saved_tensors
        # In place, because a copy of the head's gradient would be the largest tensor of all. That
        # is safe: autograd refuses a second backward pass.
        return (
            None if to_hidden is None else to_hidden.mul_(gradient.to(to_hidden.dtype)),
            None if to_head is None else to_head.mul_(gradient).to(ctx.head_dtype),
            None,
            (losses * gradient).to(ctx.weights_dtype) if ctx.needs_input_grad[3] else None,
            None,
        )


def _chances(logits: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax of logits (n, V) float32 and its -log at goal (n, 1): (n, V), (n,).

    The likeliest entry has the probability exp(0) / sum, so log(sum) is minus the log of the
    largest probability, and the exponentials are not computed again.
    """
    chances = logits.softmax(-1)
    norm = logits.amax(-1, keepdim=True) - chances.amax(-1, keepdim=True).log()
    return chances, (norm - logits.gather(1, goal))[:, 0]


def _slopes(logits: Tensor, goal: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient (n, V) of sum(weights x losses) by the logits, and losses (n,) float32.

    The gradient has the dtype of logits (n, V).

    goal, weights: (n, 1).

    This computes the same as `_chances` and the lines that follow its call, for a compiler to fuse.
    """
    wide = logits.float()
    top = wide.amax(-1, keepdim=True)
    norm = top + (wide - top).exp().sum(-1, keepdim=True).log()
    losses = (norm - wide.gather(1, goal))[:, 0]
    slope = ((wide - norm).exp() - chunks.hits(goal, wide.shape[1])) * weights
    return slope.to(logits.dtype), losses


slopes = chunks.Fused(_slopes)


def _plus_product(total: Tensor | None, slope: Tensor, inputs: Tensor) -> Tensor:
    """Return total + slope^T inputs, (V, d) float32, in place of `total` where there is one."""
    if total is None:
        return (slope.T @ inputs).float()
    return (
        total.addmm_(slope.T, inputs)
        if slope.dtype == torch.float32
        else total.add_(slope.T @ inputs)
    )
