"""Moments against a plain product, plain heads and others, and modules that replace others."""

from typing import Any

import pytest
import torch
from torch import nn

from agent_forge.anatomy.head import head_weight, plain_head
from agent_forge.anatomy.moments import SharedMoments, second_moment
from agent_forge.anatomy.swap import (
    keep_from_initialising,
    own_config,
    owner_of,
    put,
    replace_everywhere,
)
from agent_forge.models.ternary import TernarySettings, ternarise
from tests import tiny_families


def test_the_second_moment_is_the_sum_of_outer_products_whatever_the_model_computes_in() -> None:
    x = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = sum(torch.outer(row, row) for row in x.double().flatten(0, -2))
    torch.testing.assert_close(second_moment(x).double(), expected, rtol=1e-5, atol=1e-5)
    half = x.bfloat16()
    exact = sum(torch.outer(row, row) for row in half.double().flatten(0, -2))
    with torch.autocast("cpu", torch.bfloat16):
        actual = second_moment(half)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), exact, rtol=1e-5, atol=1e-5)


def test_rounding_happens_before_the_product() -> None:
    x = torch.tensor([[0.4, 1.6], [2.4, -0.6]])
    assert torch.equal(second_moment(x, torch.round), x.round().T @ x.round())


def test_layers_with_one_input_share_its_product_and_others_do_not() -> None:
    moments, x = SharedMoments(), torch.randn(3, 4)
    first = moments.of(x)
    assert moments.of(x) is first
    assert moments.of(x, torch.round, kind=8) is not first
    assert moments.of(x.clone()) is not first
    held = moments.of(x)
    moments.forget()
    assert moments.of(x) is not held
    assert torch.equal(moments.of(x), held)


def test_a_plain_head_is_a_bare_linear_of_a_model_that_does_nothing_else_to_logits() -> None:
    llama = tiny_families.build("llama")
    assert plain_head(llama) is llama.lm_head
    assert head_weight(llama.lm_head) is llama.lm_head.weight
    # Gemma caps its logits, others scale them, and the last family is not on the list.
    for kind in ("gemma2", "granite", "phi3"):
        assert plain_head(tiny_families.build(kind, **tiny_families.FAMILIES[kind])) is None
    llama.lm_head.bias = nn.Parameter(torch.zeros(400))
    assert plain_head(llama) is None


@pytest.mark.parametrize("bits", [0, 8])
def test_a_rounded_head_counts_only_where_its_rounding_is_asked_for(bits: int) -> None:
    llama: Any = tiny_families.build("llama")
    ternarise(llama, TernarySettings(
        group_size=16, activation_bits=8, packing="two_bit", skip=[], embedding_bits=bits
    ))  # fmt: skip
    assert (plain_head(llama) is None) == bool(bits)
    assert plain_head(llama, rounded=True) is llama.lm_head
    weight, computed = llama.lm_head.weight.detach(), head_weight(llama.lm_head).detach()
    step = weight.abs().amax(1, keepdim=True) / 127
    assert torch.equal(weight, computed) == (bits == 0)
    assert float(((computed - weight).abs() / step).max()) < 0.6


def test_modules_are_put_by_name_and_in_every_place() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.ReLU(), shared)}).eval()
    put(model, "b.0", nn.Tanh())
    assert isinstance(model["b"][0], nn.Tanh)
    assert owner_of(model, "b.1.weight") == (shared, "weight")
    new = nn.Linear(2, 2)
    replace_everywhere(model, shared, new)
    assert model["a"] is model["b"][1] is new
    assert not new.training


def test_a_model_gets_a_config_of_its_own_in_all_its_parts() -> None:
    first, second = tiny_families.build("llama"), tiny_families.build("llama")
    second.config = second.model.config = first.config
    own = own_config(second)
    assert own is second.config is second.model.config
    assert own is not first.config
    assert own.to_dict() == first.config.to_dict()
    keep_from_initialising(second, ["model.layers.0.mlp.up_proj"])
    assert second.model.layers[0].mlp._is_hf_initialized
