"""The compensated start of the bitnet phase, piece by piece: what each layer is aimed at, and each
sweep by hand.
"""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from agent_forge.codecs.compensate import upper_from
from agent_forge.models.ternary import ROW, TernarySettings, multiply_out, ternarise, ternary_codes
from agent_forge.phases.bitnet import follow
from agent_forge.phases.bitnet.compensate import (
    SCALES,
    CalibrationRun,
    Rounding,
    _round_in_order,
    best_scale,
)
from agent_forge.phases.bitnet.refine import _sweep, refined

Streams = dict[str, Tensor]


@torch.no_grad()
def streams(model: nn.Module, windows: list[Tensor]) -> Streams:
    """Return what enters and what leaves the named layers, (N, width) float32, "in"/"out" before
    the name.
    """
    parts: dict[str, list[Tensor]] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            if inputs:
                parts.setdefault(f"in {name}", []).append(inputs[0].flatten(0, -2))
            if isinstance(output, Tensor):
                parts.setdefault(f"out {name}", []).append(output.flatten(0, -2))

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if "layers." in name
    ]
    for ids in windows:
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in parts.items()}


def test_what_writes_into_the_stream_is_aimed_at_the_parents_stream(
    llama_config: LlamaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal of o_proj and down_proj: the parent's output, and what the student's stream lacks before
    it.
    """
    torch.manual_seed(0)
    shape = copy.deepcopy(llama_config)  # the session's own stays as it is
    shape.initializer_range = 0.1
    parent, model = LlamaForCausalLM(shape).eval(), LlamaForCausalLM(shape).eval()
    model.load_state_dict(parent.state_dict())
    ternarise(
        model, TernarySettings(group_size=16, activation_bits=0, packing="five_trits", skip=[])
    )
    windows = [
        torch.randint(0, 100, (4, 12), generator=torch.Generator().manual_seed(i)) for i in range(2)
    ]
    goals: Streams = {}
    original = follow.BlockwiseCompensator._compensate

    def record(
        self: Any, group: list[str], x: Tensor, goal: Tensor, token_weights: Tensor | None
    ) -> None:
        goals[group[0]] = goal.clone()
        original(self, group, x, goal, token_weights)

    monkeypatch.setattr(follow.BlockwiseCompensator, "_compensate", record)
    follow.compensated(parent, model, CalibrationRun(windows=windows), 1, Rounding(0.05))
    ours, theirs = streams(model, windows), streams(parent, windows)
    for number in (0, 1):
        layer = f"model.layers.{number}"
        for writer, before in (
            ("self_attn.o_proj", layer),
            ("mlp.down_proj", f"{layer}.post_attention_layernorm"),
        ):
            name = f"{layer}.{writer}"
            gap = theirs[f"in {before}"] - ours[f"in {before}"]
            assert torch.allclose(goals[name], theirs[f"out {name}"] + gap, atol=1e-4)
            if name != "model.layers.0.self_attn.o_proj":
                assert float(gap.norm()) > 0.05 * float(theirs[f"out {name}"].norm())
        reader = f"{layer}.mlp.gate_proj"
        width = theirs[f"out {reader}"].shape[1]
        assert torch.allclose(goals[reader][:, :width], theirs[f"out {reader}"], atol=1e-4)


def test_a_tokens_error_counts_as_one_over_its_squared_size_up_to_four() -> None:
    stream = torch.tensor([1.0, 1.0, 1.0, 0.8, 0.01, 0.0, 10.0])[:, None] * torch.tensor(
        [[0.6, 0.8]]
    )
    expected = (
        torch.tensor([1.0, 1.0, 1.0, 1 / 0.64, 4.0, 4.0, 0.01])
        * float(stream.norm(dim=1).median()) ** 2
    )
    assert torch.allclose(follow._token_weights(stream)[:, 0], expected.clamp_max(4.0))


def problem(
    group_size: int, columns: int = 40
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    goal = torch.randn(6, columns, generator=generator)
    x = torch.randn(200, columns, generator=generator) @ torch.randn(
        columns, columns, generator=generator
    )
    codes, scales = ternary_codes(goal, group_size)
    return goal, x.T @ x / 200, (codes, scales.expand(len(goal), -1), goal)


def swept_by_hand(
    goal: Tensor, hessian: Tensor, codes: Tensor, scales: Tensor, group_size: int
) -> Tensor:
    """Return the codes after one pass over the columns, the slope computed anew before each."""
    codes = codes.clone()
    wide = multiply_out(torch.ones_like(codes), scales, group_size)
    for j in range(codes.shape[1]):
        slope = (goal - codes * wide) @ hessian[:, j]
        wish = codes[:, j] * wide[:, j] + slope / hessian[j, j]
        codes[:, j] = wish.sign() * (wish.abs() > wide[:, j] / 2)
    return codes


@pytest.mark.parametrize(("group_size", "columns"), [(16, 40), (ROW, 200)])
def test_a_sweep_is_coordinate_descent_with_fresh_slopes(group_size: int, columns: int) -> None:
    goal, hessian, start = problem(group_size, columns)
    fixed = lambda codes, scales: scales  # noqa: ARG005, E731
    once = refined(goal, hessian, start, group_size, fixed, 1)
    assert torch.equal(
        once[0], swept_by_hand(goal, hessian, start[0], start[1], group_size).to(torch.int8)
    )
    twice = refined(goal, hessian, start, group_size, fixed, 2)
    assert torch.equal(
        twice[0], swept_by_hand(goal, hessian, once[0], start[1], group_size).to(torch.int8)
    )
    assert not torch.equal(once[0], twice[0])


@pytest.mark.parametrize(("group_size", "columns"), [(16, 40), (ROW, 200)])
def test_a_wish_is_the_best_weight_of_its_column_and_rounds_to_its_code(
    group_size: int, columns: int
) -> None:
    goal, hessian, (codes, scales, _) = problem(group_size, columns)
    wide = multiply_out(torch.ones_like(codes), scales, group_size)
    slope = (goal - codes * wide) @ hessian
    new_codes, wishes = _sweep(hessian, slope, codes, scales, group_size)
    assert torch.equal(new_codes, (wishes.sign() * (wishes.abs() > wide / 2)).to(torch.int8))
    # The first column has its wish before any other has moved, the last one after all have.
    first = codes[:, 0] * wide[:, 0] + slope[:, 0] / hessian[0, 0]
    others = torch.cat([new_codes[:, :-1], codes[:, -1:]], dim=1) * wide
    last = others[:, -1] + ((goal - others) @ hessian[:, -1]) / hessian[-1, -1]
    torch.testing.assert_close(wishes[:, 0], first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(wishes[:, -1], last, rtol=1e-3, atol=1e-3)


def test_scales_are_tried_in_steps_that_miss_the_best_one_by_little() -> None:
    """For normal weights the error at the middle between two tried scales is within 1% of that at
    the nearer one: .15 apart is fine enough. From the plain mean on, and past what heavy tails need.
    """
    assert sorted(set(SCALES)) == list(SCALES)
    assert SCALES[0] == 1.0
    assert SCALES[-1] >= 1.9
    steps = [b - a for a, b in itertools.pairwise(SCALES)]
    assert max(steps) == pytest.approx(0.15)
    weights = torch.randn(200_000, generator=torch.Generator().manual_seed(0))

    def error(multiple: float) -> float:
        scale = multiple * weights.abs().mean()
        return float(
            (weights - scale * weights.sign() * (weights.abs() > scale / 2)).square().mean()
        )

    best = min(error(1 + i / 100) for i in range(100))
    assert min(map(error, SCALES)) <= 1.01 * best


def test_a_sweep_that_errs_more_is_not_kept() -> None:
    goal, hessian, start = problem(16)
    worse = lambda codes, scales: scales * 8  # noqa: ARG005, E731
    codes, scales, wishes = refined(goal, hessian, start, 16, worse, 3)
    assert torch.equal(codes, start[0])
    assert torch.equal(scales, start[1])
    assert torch.equal(wishes, start[2])


def test_the_scale_search_weighs_each_column_by_what_its_error_costs() -> None:
    block = torch.randn(7, 16, generator=torch.Generator().manual_seed(1))
    cost = torch.logspace(-3, 3, 16)
    chosen = best_scale(block, cost)
    for row, scale in zip(block, chosen, strict=True):
        tried = [float(row.abs().mean()) * multiple for multiple in SCALES]
        errors = [
            float(((row - s * row.sign() * (row.abs() > s / 2)).square() * cost).sum())
            for s in tried
        ]
        assert float(scale) == pytest.approx(tried[errors.index(min(errors))], rel=1e-6)
    assert not torch.allclose(chosen, best_scale(block, 1 / cost))


def test_columns_without_correlation_cost_their_own_power() -> None:
    original, power = (
        torch.randn(5, 24, generator=torch.Generator().manual_seed(2)),
        torch.logspace(-2, 2, 24),
    )
    codes, _ = _round_in_order(original, upper_from(torch.diag(power.sqrt()).double()), 8)
    for start in range(0, 24, 8):
        block = original[:, start : start + 8]
        scale = best_scale(block, power[start : start + 8])[:, None]
        expected = block.sign() * (block.abs() > scale / 2)
        assert torch.equal(codes[:, start : start + 8], expected.to(torch.int8))
