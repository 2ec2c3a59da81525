"""Attention in bfloat16 on the CPU, as fast as its products: what a training step uses instead of
torch's kernel there.

torch's fused kernel does its bfloat16 backward pass on the CPU slower than in float32 (at 16 x 4
heads of 128 tokens, width 32: 21.5 ms forward and backward, in float32 8.9; written out as below
6.4). Short sequences hold their weights, T x T a head; long ones take the fused kernel in float32,
which never does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Above this the weights written out (2 bytes x heads x T^2) cost more time in memory than the
# float32 kernel saves.
WRITTEN_OUT_TOKENS = 512

Attention = Callable[..., Tensor]


@contextmanager
def fast_bfloat16_attention(enabled: bool) -> Iterator[None]:
    """Put `attend` in the place of scaled_dot_product_attention while the context lasts.

    Models call torch's function by its name, whatever library they come from; nothing but bfloat16
    under autocast on the CPU is computed another way.
    """
    original: Any = functional.scaled_dot_product_attention

    def scaled_dot_product_attention(
        query: Tensor, key: Tensor, value: Tensor, *args: Any, **keys: Any
    ) -> Tensor:
        return attend(original, query, key, value, *args, **keys)

    if enabled:
        # torch.compile makes its list of torch's functions once: with torch's own in it.
        torch.overrides.get_overridable_functions()
        functional.scaled_dot_product_attention = scaled_dot_product_attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def attend(
    original: Attention, query: Tensor, key: Tensor, value: Tensor, *args: Any, **keys: Any
) -> Tensor:
    """Return scaled_dot_product_attention(query, key, value, ...), (B, H, T, D), by the fastest way
    for training.
    """
    reduced = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if not reduced or query.device.type != "cpu" or not query.requires_grad:
        return original(query, key, value, *args, **keys)
    # Rotary positions may have widened queries and keys: autocast itself would round them here.
    query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
    if _is_plain(query, key, args, keys):
        scale = keys.get("scale")
        return _WrittenOut.apply(  # type: ignore[no-any-return,no-untyped-call]
            query, _for_each_query(key, query), _for_each_query(value, query),
            query.shape[-1] ** -0.5 if scale is None else scale,
        )  # fmt: skip
    with torch.autocast("cpu", enabled=False):
        wide = [part.float() for part in (query, key, value)]
        mask = keys.get("attn_mask")
        if mask is not None and mask.is_floating_point():
            keys["attn_mask"] = mask.float()
        return original(*wide, *args, **keys).to(query.dtype)


def _is_plain(query: Tensor, key: Tensor, args: tuple[Any, ...], keys: dict[str, Any]) -> bool:
    """Return whether this is causal self-attention without mask and dropout over a short
    sequence.
    """
    if (
        args
        or keys.get("attn_mask") is not None
        or keys.get("dropout_p")
        or not keys.get("is_causal")
    ):
        return False
    return query.ndim == 4 and query.shape[2] == key.shape[2] <= WRITTEN_OUT_TOKENS


def _for_each_query(part: Tensor, query: Tensor) -> Tensor:
    """Return keys or values with each head repeated for the queries that share it."""
    return (
        part.repeat_interleave(query.shape[1] // part.shape[1], dim=1)
        if part.shape[1] != query.shape[1]
        else part
    )


class _WrittenOut(torch.autograd.Function):
    """Causal attention with its weights held for the backward pass. Softmax is computed in float32,
    rounded once.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        heads, length = query.shape[0] * query.shape[1], query.shape[2]
        q_NTD, k_NTD, v_NTD = (part.reshape(heads, length, -1) for part in (query, key, value))
        future_TT = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1)
        weights_NTT = torch.baddbmm(future_TT, q_NTD, k_NTD.mT, alpha=scale).softmax(-1)
        ctx.save_for_backward(q_NTD, k_NTD, v_NTD, weights_NTT)
        ctx.scale, ctx.shape = scale, query.shape
        return (weights_NTT @ v_NTD).view(*query.shape[:3], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q_NTD, k_NTD, v_NTD, weights_NTT = ctx.saved_tensors
        batch, heads, length, _ = ctx.shape
        g_NTD = gradient.reshape(batch * heads, length, -1)
        to_value = (weights_NTT.mT @ g_NTD).view(batch, heads, length, -1)
        to_weights = g_NTD @ v_NTD.mT
        to_scores = torch._softmax_backward_data(
            to_weights, weights_NTT, -1, weights_NTT.dtype
        ).mul_(ctx.scale)
        return (
            (to_scores @ k_NTD).view(ctx.shape),
            (to_scores.mT @ q_NTD).view(ctx.shape),
            to_value,
            None,
        )
