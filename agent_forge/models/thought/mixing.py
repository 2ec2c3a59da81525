"""The mixing head, which weighs the prediction after a thought, and the interpolation of logits.

The weight is clamped to [0, 1] with a gradient that still leads back inside (the paper's head is
unbounded). So weight 0 is exact and leaves the base's logits unchanged, and training can still
move away from it. Source: Quiet-STaR, arXiv:2403.09629.
"""

from typing import Any

import torch
from torch import Tensor, nn


class _Unit(torch.autograd.Function):
    """Clamps to [0, 1]; outside, only a gradient that leads back inside passes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(value)
        return value.clamp(0.0, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (value,) = ctx.saved_tensors
        outward = ((value < 0) & (gradient > 0)) | ((value > 1) & (gradient < 0))
        return gradient.masked_fill(outward, 0.0)


class MixingHead(nn.Module):
    """The share of the thought's prediction: [h_base, h_thought] (2H) -> H -> H -> 1, in [0, 1].

    The last layer starts at zero, so the weight starts at exactly 0. The head has plain parameters
    instead of nn.Linear, because quantisers replace every nn.Linear and later phases do not train
    this head.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight_1 = nn.Parameter(torch.empty(width, 2 * width))
        self.bias_1 = nn.Parameter(torch.empty(width))
        self.weight_2 = nn.Parameter(torch.empty(width, width))
        self.bias_2 = nn.Parameter(torch.empty(width))
        self.weight_3 = nn.Parameter(torch.empty(1, width))
        self.bias_3 = nn.Parameter(torch.empty(1))

    def forward(self, h_base: Tensor, h_thought: Tensor) -> Tensor:
        """Return the weights (...) of hidden states (..., H)."""
        hidden = torch.cat([h_base, h_thought], dim=-1).to(self.weight_1.dtype)
        hidden = nn.functional.linear(hidden, self.weight_1, self.bias_1).relu()
        hidden = nn.functional.linear(hidden, self.weight_2, self.bias_2).relu()
        return _Unit.apply(nn.functional.linear(hidden, self.weight_3, self.bias_3).squeeze(-1))


def mix(base_logits: Tensor, thought_logits: Tensor, weights: Tensor) -> Tensor:
    """Return logits (..., V) interpolated by weights (...), exact at both ends."""
    weight = weights.to(base_logits.dtype).unsqueeze(-1)
    return torch.lerp(
        base_logits.expand_as(thought_logits), thought_logits, weight.expand_as(thought_logits)
    )


def entropy_nats(logits: Tensor) -> Tensor:
    """Return the entropy of the distribution of logits (..., V) in nats: (...)."""
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    return -(log_probs.exp() * log_probs).sum(-1)
