"""One rule for blocks and matrices, against transformers and over our own kinds of models."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from agent_forge import codecs
from agent_forge.anatomy.stack import (
    Matrix,
    blocks,
    matrices,
    named_blocks,
    required_blocks,
    stream_in,
    stream_out,
    with_stream_in,
    with_stream_out,
)
from agent_forge.core.errors import PhaseError
from agent_forge.models import compressed
from agent_forge.models.cognate import CognateConfig, CognateForCausalLM
from agent_forge.models.ternary import TernarySettings, ternarise
from agent_forge.models.thought import ThoughtForCausalLM
from tests import tiny_families

FAMILIES = [
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt2",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
]
SETTINGS = TernarySettings(group_size=16, activation_bits=8, packing="two_bit", skip=[])


def family(kind: str) -> Any:
    return tiny_families.build(kind, **tiny_families.FAMILIES[kind])


def cognate() -> CognateForCausalLM:
    return CognateForCausalLM(
        CognateConfig(
            vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
            num_attention_heads=2, max_loops=2, memory_slots=512, written_slots=4,
        )
    )  # fmt: skip


def thinking() -> ThoughtForCausalLM:
    return ThoughtForCausalLM.wrap(family("llama"), start_ids=[1], end_ids=[2])


def coded(model: Any) -> Any:
    payloads = {
        name: codecs.encode("intk", tensor, {})
        for name, tensor in compressed.coded_tensors(model).items()
    }
    return compressed.compress(model, payloads)


def unsplit(model: nn.Module) -> list[nn.Module]:
    """Return the modules that transformers says must not be split over devices: its own list of
    layers.
    """
    names = {
        name
        for module in model.modules()
        for name in getattr(module, "_no_split_modules", None) or ()
    }
    return [module for module in model.modules() if type(module).__name__ in names]


@pytest.mark.parametrize("kind", FAMILIES)
def test_blocks_of_a_family_are_the_layers_that_transformers_names(kind: str) -> None:
    model = family(kind)
    assert blocks(model) == unsplit(model)
    assert len(blocks(model)) == model.config.num_hidden_layers
    for name, block in named_blocks(model).items():
        assert model.get_submodule(name) is block


@pytest.mark.parametrize("make", [cognate, thinking], ids=["cognate", "thought"])
def test_blocks_of_our_own_models_are_their_layers(make: Callable[[], Any]) -> None:
    model = make()
    assert blocks(model) == unsplit(model)
    prefix = "model.layers" if isinstance(model, CognateForCausalLM) else "base.model.layers"
    assert list(named_blocks(model)) == [f"{prefix}.{index}" for index in range(len(blocks(model)))]


@pytest.mark.parametrize("make", [lambda: family("llama"), lambda: family("qwen3"), cognate])
def test_blocks_stay_where_they_are_when_a_model_becomes_ternary_or_codes(
    make: Callable[[], Any],
) -> None:
    expected = list(named_blocks(make()))
    ternary = make()
    ternarise(ternary, SETTINGS)
    assert list(named_blocks(ternary)) == expected
    assert list(named_blocks(coded(ternary))) == expected
    assert list(named_blocks(coded(make()))) == expected


def test_codes_weigh_as_much_as_parameters() -> None:
    model = nn.Module()
    model.coded = nn.ModuleList([nn.Module() for _ in range(2)])
    for block in model.coded:
        block.register_buffer("payload", torch.zeros(100, dtype=torch.uint8), persistent=False)
    model.dense = nn.ModuleList([nn.Linear(5, 5) for _ in range(4)])
    assert list(named_blocks(model)) == ["coded.0", "coded.1"]


def test_experts_inside_a_block_are_no_blocks_even_where_the_block_is_nothing_else() -> None:
    experts = [nn.ModuleList([nn.Linear(4, 4) for _ in range(8)]) for _ in range(2)]
    model = nn.ModuleDict({"layers": nn.ModuleList(experts[:1])})
    assert list(named_blocks(model)) == ["layers.0"]
    assert list(named_blocks(nn.ModuleList(experts))) == ["0", "1"]


def test_a_model_without_a_list_has_no_blocks_and_whoever_needs_them_is_told() -> None:
    assert blocks(nn.Linear(2, 2)) == []
    assert blocks(nn.ModuleList()) == []
    assert matrices(nn.Sequential(nn.Linear(2, 2))) == []
    with pytest.raises(PhaseError, match="Linear has no list of blocks, which the test needs"):
        required_blocks(nn.Linear(2, 2), "the test")


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "gpt2"])
def test_matrices_are_the_linears_of_numbered_layers(kind: str) -> None:
    model = family(kind)
    numbered = re.compile(r"\.layers\.(\d+)\.")
    expected = [
        (f"{name}.weight", int(place.group(1)))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (place := numbered.search(name))
    ]
    assert [(matrix.name, matrix.layer) for matrix in matrices(model)] == expected
    assert all(
        model.get_parameter(matrix.name).numel() == matrix.numel for matrix in matrices(model)
    )


def test_roles_of_llama_neox_cognate_and_a_mixture() -> None:
    def roles(model: nn.Module) -> dict[str, str]:
        return {
            matrix.name.split(".", 3)[3]: matrix.role
            for matrix in matrices(model)
            if matrix.layer == 0
        }

    attention = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "attention_out"}
    mlp = {"gate_proj": "mlp_in", "up_proj": "mlp_in", "down_proj": "mlp_out"}
    llama = {f"self_attn.{name}.weight": role for name, role in attention.items()}
    llama |= {f"mlp.{name}.weight": role for name, role in mlp.items()}
    assert roles(family("llama")) == llama
    memory = {f"memory_attn.{name}.weight": "other" for name in attention}
    assert roles(cognate()) == llama | memory
    neox = roles(family("gpt_neox"))
    assert neox["attention.dense.weight"] == "attention_out"
    assert (neox["mlp.dense_h_to_4h.weight"], neox["mlp.dense_4h_to_h.weight"]) == (
        "mlp_in",
        "mlp_out",
    )
    assert roles(family("qwen3_moe"))["self_attn.o_proj.weight"] == "attention_out"


def test_a_matrix_is_of_attention_of_the_mlp_or_of_neither() -> None:
    parts = {
        role: Matrix("name", 0, role, 1).part
        for role in ("query", "attention_out", "mlp_in", "mlp_out", "other")
    }
    assert parts == {
        "query": "attention", "attention_out": "attention", "mlp_in": "mlp", "mlp_out": "mlp",
        "other": "other",
    }  # fmt: skip


def test_the_stream_is_read_and_replaced_wherever_it_is_passed() -> None:
    x, y = torch.ones(2), torch.zeros(2)
    assert stream_in((x, 1), {}) is x
    assert stream_in((), {"hidden_states": x, "mask": 1}) is x
    assert with_stream_in((x, 1), {"mask": 2}, y) == ((y, 1), {"mask": 2})
    assert with_stream_in((), {"hidden_states": x, "mask": 2}, y) == (
        (),
        {"hidden_states": y, "mask": 2},
    )
    assert stream_out((x, 1)) is x
    assert stream_out(x) is x
    assert with_stream_out((x, 1), y) == (y, 1)
    assert with_stream_out(x, y) is y
