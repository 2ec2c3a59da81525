"""Cross-entropy in chunks against its definition."""

import pytest
import torch
from torch import nn

from agent_forge.anatomy import chunks, cross_entropy
from agent_forge.anatomy.cross_entropy import logits_fit, token_losses, weighted_cross_entropy


class CountedHead(nn.Linear):
    """A head that notes how many rows each of its calls has."""

    def __init__(self) -> None:
        super().__init__(4, 9)
        self.rows: list[int] = []

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(hidden))
        return super().forward(hidden)


@pytest.mark.parametrize(
    ("count", "calls"),
    [
        (5, [5]),  # what fits is computed once: the backward pass needs no logits again
        (6, [5, 1, 1, 5]),
        (11, [5, 5, 1, 1, 5, 5]),
    ],
)
def test_token_losses_hold_no_more_rows_of_logits_than_memory_allows(
    monkeypatch: pytest.MonkeyPatch, count: int, calls: list[int]
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(cross_entropy, "LOGITS_IN_MEMORY", 5 * 9 + 8)
    head, targets = CountedHead(), torch.randint(9, (count,))
    hidden, weights = torch.randn(count, 4, requires_grad=True), torch.randn(count)
    losses = token_losses(hidden, head, targets)
    gradients = torch.autograd.grad((losses * weights).sum(), (hidden, head.weight))
    assert head.rows == calls
    expected = -(hidden @ head.weight.T + head.bias).log_softmax(-1)[range(count), targets]
    torch.testing.assert_close(losses, expected)
    truth = torch.autograd.grad((expected * weights).sum(), (hidden, head.weight))
    torch.testing.assert_close(gradients, truth)


def test_logits_are_held_whole_up_to_64_mib_in_float32() -> None:
    assert logits_fit((64 << 20) // 4, 1)
    assert not logits_fit((64 << 20) // 4 + 1, 1)
    assert logits_fit(1024, 16384)
    assert not logits_fit(1024, 16385)


def test_the_cpu_takes_chunks_that_stay_in_cache_whatever_memory_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(*_: object) -> int:
        raise AssertionError("free memory decides on an accelerator alone")

    monkeypatch.setattr(chunks, "rows_at_once", asked)
    monkeypatch.setattr(chunks, "CPU_ENTRIES", 20)
    shapes: list[int] = []
    plain = cross_entropy._chances

    def noted(logits: torch.Tensor, goal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shapes.append(len(logits))
        return plain(logits, goal)

    monkeypatch.setattr(cross_entropy, "_chances", noted)
    weighted_cross_entropy(
        torch.randn(7, 4), torch.randn(9, 4), torch.randint(9, (7,)), torch.ones(7)
    )
    assert shapes == [2, 2, 2, 1]


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


def test_an_accelerator_is_asked_how_many_rows_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[int, int, str]] = []
    chosen: list[int] = []

    def fit(rows: int, vocabulary: int, device: torch.device) -> int:
        requests.append((rows, vocabulary, device.type))
        return 4

    def apply(*arguments: object) -> tuple[None, None]:
        chosen.append(arguments[-1])
        return None, None

    monkeypatch.setattr(cross_entropy.chunks, "rows_at_once", fit)
    monkeypatch.setattr(cross_entropy._WeightedCrossEntropy, "apply", apply)
    hidden, head = torch.empty(7, 3, device="meta"), torch.empty(11, 3, device="meta")
    targets, weights = torch.empty(7, device="meta"), torch.empty(7, device="meta")
    cross_entropy.weighted_cross_entropy(hidden, head, targets, weights)
    assert (requests, chosen) == ([(7, 11, "meta")], [4])
    cross_entropy.weighted_cross_entropy(hidden, head, targets, weights, chunk_rows=5)
    assert (len(requests), chosen) == (1, [4, 5])
