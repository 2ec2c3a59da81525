"""Muon against torch's own, bit for bit, and against what it promises: singular values near one."""

import pytest
import torch
from torch import nn

from agent_forge.learn import muon
from agent_forge.learn.muon import Muon, orthogonalised

SHAPES = ((8, 8), (24, 8), (8, 24), (8, 8), (24, 8), (5, 3))


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_batched_updates_are_torchs_muon_bit_for_bit_where_both_iterate_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(muon, "iteration_dtype", lambda _: torch.bfloat16)
    ours, theirs = matrices(), matrices()
    one = Muon(ours, lr=0.02, weight_decay=0.1, momentum=0.9)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        if step == 2:
            ours[1].grad = theirs[1].grad = (
                None  # a matrix outside this step's graph stays as it is
            )
        one.step()
        other.step()
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(one.state[a]["momentum_buffer"], other.state[b]["momentum_buffer"])


@pytest.mark.parametrize(
    ("device", "has_instructions", "dtype"),
    [("cpu", False, torch.float32), ("cpu", True, torch.bfloat16), ("cuda", False, torch.bfloat16)],
)
def test_a_processor_without_bfloat16_iterates_in_float32(
    monkeypatch: pytest.MonkeyPatch, device: str, has_instructions: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    assert muon.iteration_dtype(torch.device(device)) == dtype
    if device == "cpu":
        assert orthogonalised(matrices()[:1])[0].dtype == dtype


def test_both_dtypes_turn_a_matrix_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    update = torch.randn(24, 8, generator=torch.Generator().manual_seed(3))
    turned = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(muon, "iteration_dtype", lambda _, dtype=dtype: dtype)
        turned.append(orthogonalised([update])[0].float())
    torch.testing.assert_close(*turned, atol=0.03, rtol=0)


def test_an_update_has_singular_values_near_one_and_its_own_singular_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    update = torch.randn(32, 16, generator=generator)
    (turned,) = orthogonalised([update])
    values = torch.linalg.svdvals(turned.float())
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.25
    u, _, v = torch.linalg.svd(update, full_matrices=False)
    inside = u.T @ turned.float() @ v.T
    assert float((inside - inside.diag().diag()).abs().max()) < 0.05


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_size_of_a_gradient_does_not_matter(scale: float) -> None:
    update = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        orthogonalised([update * scale])[0], orthogonalised([update])[0], atol=0.05, rtol=0
    )


def test_a_stack_of_matrices_takes_at_most_32_mib_in_bfloat16() -> None:
    """A matrix of 2048 x 2048 takes 8 MiB; one that is larger than the limit goes alone."""
    matrices = [torch.empty(2048, 2048, device="meta") for _ in range(5)]
    assert [len(stack) for stack in muon._by_shape(matrices)] == [4, 1]
    large = [torch.empty(8192, 4096, device="meta") for _ in range(2)]
    assert [len(stack) for stack in muon._by_shape(large)] == [1, 1]
