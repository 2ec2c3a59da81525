"""Hooks that leave with their context, calls replayed to the bit, and passes that stop early."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agent_forge.anatomy.stack import blocks, stream_out
from agent_forge.anatomy.watch import StopForward, recorded_calls, run_until_stop, watching
from agent_forge.models.cognate import CognateConfig, CognateForCausalLM
from tests import tiny_families

IDS = torch.arange(5, 17)[None]


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def test_hooks_see_every_call_and_are_gone_afterwards_also_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    seen: list[str] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(f"before {tuple(args[0].shape)} {kwargs}")

    def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        seen.append(f"after {tuple(output.shape)}")

    with watching(before=[(model[0], before)], after=[(model[1], after)]):
        model(torch.ones(4, 2))
    assert seen == ["before (4, 2) {}", "after (4, 3)"]
    assert hooks_of(model) == 0
    with pytest.raises(ZeroDivisionError), watching(after=[(model[0], after)]):
        raise ZeroDivisionError
    assert hooks_of(model) == 0


def test_hooks_that_were_added_leave_when_a_later_one_cannot_be() -> None:
    layer = nn.Linear(2, 2)
    broken: Any = object()
    with (
        pytest.raises(AttributeError),
        watching(after=[(layer, lambda *_: None), (broken, lambda *_: None)]),
    ):
        pass
    assert hooks_of(layer) == 0


def test_a_hook_may_put_other_arguments_or_another_output_in_place() -> None:
    layer = nn.Identity()
    with watching(before=[(layer, lambda _, args, kwargs: ((args[0] + 1,), kwargs))]):
        assert float(layer(torch.tensor(1.0))) == 2
    with watching(after=[(layer, lambda _, __, output: output * 5)]):
        assert float(layer(torch.tensor(1.0))) == 5


def test_a_pass_stops_where_a_hook_says_and_other_errors_go_through() -> None:
    model, ran = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), []

    def stop(*_: Any) -> None:
        raise StopForward

    with watching(
        before=[(model[1], stop)], after=[(model[0], lambda *_: ran.append(0)), (model[1], stop)]
    ):
        run_until_stop(model, torch.ones(1, 2))
    assert ran == [0]
    with pytest.raises(RuntimeError, match="mat1"):
        run_until_stop(model, torch.ones(1, 3))


@torch.no_grad()
def test_recorded_calls_of_a_block_give_its_stream_again_to_the_bit() -> None:
    model = tiny_families.build("llama")
    block = blocks(model)[1]
    calls, streams = recorded_calls(model, block, once=False, input_ids=IDS, use_cache=False)
    assert len(calls) == len(streams) == 1
    args, kwargs = calls[0]
    assert torch.equal(stream_out(block(*args, **kwargs)), streams[0])
    assert hooks_of(model) == 0


@torch.no_grad()
def test_a_looped_stack_calls_a_block_once_per_pass_unless_one_call_is_enough() -> None:
    config = CognateConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_loops=3, memory_slots=8, written_slots=4, halting_threshold=1.1,
    )  # fmt: skip
    model = CognateForCausalLM(config).eval()
    first, last = blocks(model)[0], blocks(model)[-1]
    ran: list[int] = []
    with watching(after=[(last, lambda *_: ran.append(1))]):
        assert len(recorded_calls(model, first, once=False, input_ids=IDS)[0]) == len(ran) == 3
        assert len(recorded_calls(model, first, once=True, input_ids=IDS)[0]) == 1
    assert len(ran) == 3
