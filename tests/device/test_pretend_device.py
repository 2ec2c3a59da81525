"""The pretend accelerator computes as the CPU does and refuses what CUDA refuses."""

import copy

import pytest
import torch
from torch import nn

from tests.pretend import KIND, Pretend, pretend_accelerator


def test_pretend_operations_agree_with_the_cpu_to_the_bit() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3), torch.randn(4, 5)
    expected = layer(x).square().sum()
    expected.backward()
    assert layer.weight.grad is not None
    gradient = layer.weight.grad.clone()
    layer.zero_grad()
    with pretend_accelerator() as device:
        there = layer.to(device)
        loss = there(x.to(device)).square().sum()
        loss.backward()
        torch.optim.AdamW(there.parameters(), lr=0.0).step()
        assert loss.device.type == there.weight.device.type == KIND
        assert isinstance(there.weight.grad, Pretend)
        assert torch.equal(loss.cpu(), expected)
        assert torch.equal(there.weight.grad.cpu(), gradient)


def test_pretend_random_numbers_are_those_of_the_cpu() -> None:
    torch.manual_seed(3)
    expected = torch.rand(7)
    with pretend_accelerator() as device:
        torch.manual_seed(3)
        assert torch.equal(torch.rand(7, device=device).cpu(), expected)


def test_pretend_accelerator_is_what_torch_finds_and_only_inside() -> None:
    from agent_forge.core.device import pick_device

    with pretend_accelerator() as device:
        assert pick_device("auto") == device == pick_device(KIND)
    assert not torch.accelerator.is_available() or pick_device("auto").type != KIND


def test_pretend_tied_weights_and_copies_stay_tied_parameters() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    with pretend_accelerator() as device:
        moved = nn.ModuleList([first, second]).to(device)
        for model in (moved, copy.deepcopy(moved)):
            assert model[0].weight is model[1].weight
            assert isinstance(model[0].weight, nn.Parameter)
            assert model[0].weight.requires_grad
        moved[0].weight.data = torch.ones(3, 3, device=device)
        assert moved[1].weight.tolist() == [[1.0] * 3] * 3
        back = moved.to("cpu")
        assert type(back[0].weight) is nn.Parameter
        assert back[0].weight is back[1].weight


def test_pretend_autocast_casts_products_alone() -> None:
    with pretend_accelerator() as device:
        x = torch.ones(2, 2, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            assert torch.is_autocast_enabled(KIND)
            assert torch.get_autocast_dtype(KIND) == (x @ x).dtype == torch.bfloat16
            assert (x + x).dtype == torch.float32
            with torch.autocast(device.type, enabled=False):
                assert (x @ x).dtype == torch.float32
        assert not torch.is_autocast_enabled(KIND)


@pytest.mark.parametrize(
    "mix",
    [
        lambda there, here: there + here,
        lambda there, here: here @ there,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: torch.where(here > 0, there, 0.0),
        lambda there, here: here[there.argmax(1)],
        lambda there, here: there.index_put_((torch.tensor([0, 1]),), here),
        lambda there, here: there.addmm_(here, here),
        lambda there, here: nn.functional.linear(there, here),
    ],
)
def test_pretend_refuses_two_devices(mix) -> None:  # type: ignore[no-untyped-def]
    with pretend_accelerator() as device, pytest.raises(RuntimeError, match="two devices"):
        mix(torch.ones(2, 2, device=device), torch.ones(2, 2))


def test_pretend_refuses_a_generator_of_the_cpu_and_numpy() -> None:
    with pretend_accelerator() as device:
        with pytest.raises(RuntimeError, match="two devices"):
            torch.rand(3, device=device, generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            torch.ones(3, device=device).numpy()


def test_pretend_allows_what_cuda_allows() -> None:
    with pretend_accelerator() as device:
        there, here = torch.tensor([1.0, 2.0, 3.0], device=device), torch.tensor([4.0, 5.0, 6.0])
        assert (there + torch.tensor(1.0)).tolist() == [2.0, 3.0, 4.0]
        assert there[torch.tensor([2, 0])].tolist() == [3.0, 1.0]
        assert there.copy_(here).device.type == KIND
        assert here.copy_(there * 2).tolist() == [8.0, 10.0, 12.0]
        there[torch.tensor([0])] = 7.0
        assert there.to("cpu", torch.float64).tolist() == [7.0, 5.0, 6.0]
