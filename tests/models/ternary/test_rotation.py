"""The rotation of inputs: its closed form, the layer before and after rounding, files, refusals."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from agent_forge import codecs, runtime
from agent_forge.core.errors import PhaseError
from agent_forge.export.source import plain_value
from agent_forge.models import compressed, load, save
from agent_forge.models.ternary import (
    TernaryLinear,
    TernarySettings,
    quantise_activations,
    save_packed,
    set_blend,
    ternarise,
    ternary_layers,
    ternary_weight,
)
from agent_forge.models.ternary.rotation import block_size, rotated
from agent_forge.phases.bitnet.compensate import input_hessians
from agent_forge.runtime.shape import UnsupportedModelError

IDS = torch.arange(20)[None] % 64


def made_settings(**changes: object) -> TernarySettings:
    plain = {
        "group_size": 8, "activation_bits": 8, "packing": "five_trits", "skip": ["lm_head"],
        "rotate_inputs": True,
    }  # fmt: skip
    return TernarySettings(**{**plain, **changes})  # type: ignore[arg-type]


def llama(**changes: int) -> LlamaForCausalLM:
    torch.manual_seed(1)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, **changes}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, num_hidden_layers=2, num_key_value_heads=2, max_position_embeddings=64,
            initializer_range=0.2, **sizes,
        )
    ).eval()  # fmt: skip


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(IDS, use_cache=False).logits


def matrix(width: int) -> Tensor:
    """Return R from its parts: signs, and (-1)^(bits that i and j share) within each block."""
    block, signs = block_size(width), rotated(torch.eye(width)).T[:: block_size(width)].sign()
    shared = [[bin(i & j).count("1") for j in range(block)] for i in range(block)]
    hadamard = (-1.0) ** torch.tensor(shared) / block**0.5
    # The first row of each block of H is all ones, so there R shows the signs.
    return torch.block_diag(*[hadamard] * (width // block)) * signs.sum(0)


@pytest.mark.parametrize(
    ("width", "block"), [(128, 128), (384, 128), (576, 64), (1536, 512), (40, 8), (6, 2), (5, 1)]
)
def test_the_rotation_is_signs_and_then_hadamard_matrices_along_the_diagonal(
    width: int, block: int
) -> None:
    assert block_size(width) == block
    whole = rotated(torch.eye(width)).T
    assert torch.allclose(whole, matrix(width), atol=1e-6)
    assert torch.allclose(whole @ whole.T, torch.eye(width), atol=1e-5)
    x = torch.randn(2, 3, width)
    assert torch.allclose(rotated(x), x @ whole.T, atol=1e-5)
    assert torch.equal(rotated(x), rotated(x))


def test_signs_are_those_of_the_width_for_good_and_about_half_of_each_kind() -> None:
    """Files hold no signs: another sign would be another model."""
    signs_of_24 = rotated(torch.eye(24)).T[::8].sign().sum(0)
    # The bits of shake_256("rotation of 24"): 1 is a minus.
    assert "".join("1" if sign < 0 else "0" for sign in signs_of_24) == "110000111100100001001011"
    for width in (128, 384, 576, 1536):
        signs = rotated(torch.eye(width)).T[:: block_size(width)].sign().sum(0)
        assert signs.abs().tolist() == [1.0] * width
        assert abs(float(signs.sum())) < 3 * width**0.5


def test_one_large_input_is_spread_over_its_block() -> None:
    x = torch.zeros(1, 384)
    x[0, 130] = 8.0
    sizes = rotated(x).abs()[0]
    assert torch.allclose(sizes[128:256], torch.full((128,), 8 / 128**0.5), atol=1e-6)
    assert float(sizes[:128].sum() + sizes[256:].sum()) == 0.0


@pytest.mark.parametrize("width", [40, 256])
def test_before_rounding_a_rotated_layer_is_the_plain_one_and_then_rounds_what_is_rotated(
    width: int,
) -> None:
    torch.manual_seed(0)
    plain, x = nn.Linear(width, 6), torch.randn(3, width)
    layer = TernaryLinear.from_linear(copy.deepcopy(plain), made_settings())
    layer.rotate_weight()
    layer.blend = 0.0
    assert torch.allclose(layer(x), plain(x), atol=1e-5)
    layer.blend = 1.0
    with torch.no_grad():
        turned = rotated(plain.weight)
        assert torch.equal(layer.weight, turned)
        product = quantise_activations(rotated(x), 8) @ ternary_weight(turned, 8).T
        assert torch.allclose(layer(x), product + plain.bias, atol=1e-5)
        assert not torch.allclose(layer(x), plain(x), atol=1e-2)


def test_gradients_reach_latents_and_inputs_as_the_rotation_says() -> None:
    torch.manual_seed(0)
    layer, x = (
        TernaryLinear(24, 6, False, settings=made_settings(activation_bits=0)),
        torch.randn(3, 24),
    )
    x.requires_grad_(True)
    slope = torch.randn(3, 6)
    (layer(x) * slope).sum().backward()
    assert layer.weight.grad is not None
    assert x.grad is not None
    assert torch.allclose(layer.weight.grad, slope.T @ rotated(x.detach()), atol=1e-5)
    expected = slope @ layer.quantised_weight() @ matrix(24)
    assert torch.allclose(x.grad, expected, atol=1e-5)


def test_a_model_before_rounding_is_the_plain_model_and_layers_of_one_input_share_its_moments() -> (
    None
):
    model = llama()
    before, expected = copy.deepcopy(model), logits(model)
    names = ternarise(model, made_settings())
    set_blend(model, 0.0)
    assert torch.allclose(logits(model), expected, atol=1e-4)
    layers = {name: ternary_layers(model)[name] for name in names[:2]}
    moments = input_hessians(model, layers, [IDS])
    assert torch.equal(*moments.values())
    normed = before.model.layers[0].input_layernorm(before.model.embed_tokens(IDS))[0].detach()
    x = quantise_activations(rotated(normed), 8)
    assert torch.allclose(moments[names[0]], x.T @ x / len(x), atol=1e-4)


def test_both_files_are_opened_with_the_rotation_and_are_not_rotated_again(tmp_path: Path) -> None:
    model = llama()
    ternarise(model, made_settings())
    expected = logits(model)
    save(model, None, tmp_path / "latent")
    opened = load(tmp_path / "latent")
    assert torch.equal(logits(opened), expected)
    assert all(layer.rotates_input for layer in ternary_layers(opened).values())
    save_packed(model, None, tmp_path / "packed")
    assert torch.allclose(logits(load(tmp_path / "packed")), expected, atol=1e-5)
    plain = llama()
    ternarise(plain, made_settings(rotate_inputs=False))
    save(plain, None, tmp_path / "plain")
    assert "rotate" not in (tmp_path / "plain" / "config.json").read_text()


def test_what_cannot_rotate_refuses_by_name(tmp_path: Path) -> None:
    model = llama()
    ternarise(model, made_settings())
    save(model, None, tmp_path)
    with pytest.raises(PhaseError, match=r"this export cannot .* linear\.rotate_inputs=false"):
        plain_value(model, "model.layers.0.self_attn.o_proj.weight")
    with pytest.raises(UnsupportedModelError, match=r"does not rotate .* engine=torch"):
        runtime.load(tmp_path, threads=1)
    coded = {
        "model.layers.0.self_attn.o_proj": codecs.encode("intk", torch.zeros(24, 24), {"bits": 8})
    }
    with pytest.raises(
        PhaseError, match=r"a compressed model cannot .* linear\.rotate_inputs=false"
    ):
        compressed.compress(model, coded)


def test_an_odd_number_of_inputs_is_refused_by_name() -> None:
    with pytest.raises(PhaseError, match=r"down_proj has 45 inputs, an odd number"):
        ternarise(llama(intermediate_size=45), made_settings())
    # Skipped, it stays as it is.
    ternarise(llama(intermediate_size=45), made_settings(skip=["lm_head", "down_proj"]))


def test_the_rotation_is_compiled_without_a_break() -> None:
    x = torch.randn(2, 256)
    compiled = torch.compile(rotated, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x), rotated(x), atol=1e-6)
