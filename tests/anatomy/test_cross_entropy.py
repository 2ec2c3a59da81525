"""Cross-entropy in chunks against its definition."""

import pytest
import torch
from torch import nn

from agent_forge.anatomy.cross_entropy import weighted_cross_entropy


@pytest.mark.parametrize("chunk_rows", [1, 3, 50])
def test_weighted_cross_entropy_has_the_gradients_of_its_definition(chunk_rows: int) -> None:
    torch.manual_seed(0)
    hidden, head, weights = (
        torch.randn(*s, dtype=torch.float64).requires_grad_() for s in ((7, 4), (9, 4), (7,))
    )
    targets = torch.randint(9, (7,))
    each = nn.functional.cross_entropy(hidden @ head.T, targets, reduction="none")
    expected = torch.autograd.grad(3 * (weights * each).sum(), (hidden, head, weights))
    total, losses = weighted_cross_entropy(hidden, head, targets, weights, chunk_rows=chunk_rows)
    torch.testing.assert_close(losses.double(), each.detach(), rtol=1e-6, atol=1e-6)
    for gradient, reference in zip(
        torch.autograd.grad(3 * total, (hidden, head, weights)), expected, strict=True
    ):
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-6)


def test_weighted_cross_entropy_follows_autocast_within_its_precision() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(64, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    targets, weights = torch.randint(50, (64,)), torch.full((64,), 1 / 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, _ = weighted_cross_entropy(hidden, head, targets, weights)
    exact, _ = weighted_cross_entropy(hidden, head, targets, weights)
    assert rounded.dtype == torch.float32
    assert 0 < abs((rounded - exact).item()) < 0.02 * exact.item()
    for gradient, reference in zip(
        torch.autograd.grad(rounded, (hidden, head)),
        torch.autograd.grad(exact, (hidden, head)),
        strict=True,
    ):
        assert float((gradient - reference).norm()) < 0.02 * float(reference.norm())
