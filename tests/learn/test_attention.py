"""Attention written out for bfloat16 training against torch's own kernel in float32."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from agent_forge.learn.attention import WRITTEN_OUT_TOKENS, fast_bfloat16_attention

ORIGINAL = functional.scaled_dot_product_attention


def inputs(heads: int, shared: int, length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, length, count, 8, generator=generator)
        .transpose(1, 2)
        .bfloat16()
        .requires_grad_()
        for count in (heads, shared, shared)
    ]


@pytest.mark.parametrize("length", [1, 7, 33, WRITTEN_OUT_TOKENS + 1])
@pytest.mark.parametrize("shared", [4, 2])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_output_and_gradients_are_those_of_float32_within_bfloat16(
    length: int, shared: int, scale: float | None
) -> None:
    narrow = inputs(4, shared, length)
    keys = {"is_causal": True, "enable_gqa": shared != 4, "scale": scale}
    wide = [part.detach().float().requires_grad_() for part in narrow]
    exact = ORIGINAL(*wide, **keys)
    slope = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
    with fast_bfloat16_attention(True), torch.autocast("cpu", dtype=torch.bfloat16):
        assert functional.scaled_dot_product_attention is not ORIGINAL
        result = functional.scaled_dot_product_attention(*narrow, **keys)
    assert functional.scaled_dot_product_attention is ORIGINAL
    assert result.dtype == torch.bfloat16
    pairs = [(result, exact)]
    pairs += zip(
        torch.autograd.grad(result, narrow, slope.bfloat16()),
        torch.autograd.grad(exact, wide, slope),
        strict=True,
    )
    for rounded, target in pairs:
        # With one token the gradients of queries and keys are exactly 0: compare with the size of
        # the slope.
        assert float((rounded - target).detach().norm()) <= 0.015 * max(
            float(target.detach().norm()), 0.1 * float(slope.norm())
        )


def test_a_mask_is_obeyed() -> None:
    narrow = inputs(4, 4, 9)
    mask = torch.zeros(9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf).bfloat16()
    with fast_bfloat16_attention(True), torch.autocast("cpu", dtype=torch.bfloat16):
        result = functional.scaled_dot_product_attention(*narrow, attn_mask=mask)
        causal = functional.scaled_dot_product_attention(*narrow, is_causal=True)
    torch.testing.assert_close(result, causal, atol=0.02, rtol=0.02)


def test_queries_that_rotary_positions_widened_are_rounded_as_autocast_does() -> None:
    mixed = inputs(4, 4, 9)
    wide = [mixed[0].detach().float().requires_grad_(), mixed[1].float(), mixed[2]]
    with fast_bfloat16_attention(True), torch.autocast("cpu", dtype=torch.bfloat16):
        result = functional.scaled_dot_product_attention(*wide, is_causal=True)
        assert torch.equal(result, functional.scaled_dot_product_attention(*mixed, is_causal=True))
    assert result.grad_fn is not None
    assert "WrittenOut" in result.grad_fn.name()


def test_nothing_but_bfloat16_training_is_computed_another_way() -> None:
    wide = [part.detach().float().requires_grad_() for part in inputs(4, 4, 9)]
    still = [part.detach() for part in inputs(4, 4, 9)]
    expected = ORIGINAL(*wide, is_causal=True), ORIGINAL(*still, is_causal=True)
    with fast_bfloat16_attention(True):
        assert torch.equal(
            functional.scaled_dot_product_attention(*wide, is_causal=True), expected[0]
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(
                functional.scaled_dot_product_attention(*still, is_causal=True), expected[1]
            )
