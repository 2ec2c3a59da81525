"""The bias of the dead zone: its closed form, its gradient, and every place that must hold it."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agent_forge import codecs, runtime
from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.export import source as sources
from agent_forge.models import compressed, deployable_bytes, load, save
from agent_forge.models.ternary import (
    TernaryLinear,
    TernarySettings,
    save_packed,
    ternarise,
    ternary_codes,
    ternary_layers,
    ternary_weight,
)
from agent_forge.runtime import loading

IDS = torch.arange(20)[None] % 64
STRENGTH = 0.25


def made_settings(**changes: object) -> TernarySettings:
    plain = {
        "group_size": 8, "activation_bits": 0, "packing": "five_trits", "skip": ["lm_head"],
        "dead_zone_bias": STRENGTH,
    }  # fmt: skip
    return TernarySettings(**{**plain, **changes})  # type: ignore[arg-type]


def made_layer(bias: bool = False, **changes: object) -> TernaryLinear:
    torch.manual_seed(0)
    return TernaryLinear(20, 6, bias, settings=made_settings(**changes))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            initializer_range=0.2,
        )
    ).eval()  # fmt: skip
    ternarise(model, made_settings())
    return model


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(IDS, use_cache=False).logits


def settled(model: LlamaForCausalLM) -> LlamaForCausalLM:
    for layer in ternary_layers(model).values():
        layer.settle_bias()
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("packing", ["five_trits", "three_of_four"])
def test_the_output_is_the_ternary_product_plus_the_scaled_sum_of_the_dead_latents(
    bias: bool, packing: str
) -> None:
    layer, x = made_layer(bias, packing=packing), torch.randn(3, 20)
    codes = layer.ternary_parts()[0]
    weight = layer.quantised_weight()
    for row in range(6):
        dead = sum(w for w, c in zip(layer.weight[row].tolist(), codes[row], strict=True) if c == 0)
        expected = x @ weight[row] + STRENGTH * dead + (layer.bias[row].item() if bias else 0.0)
        assert torch.allclose(layer(x)[:, row], expected, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(layer(x), layer.train()(x), atol=1e-6)


def test_dead_latents_have_the_gradient_of_input_plus_strength_and_the_others_of_input() -> None:
    layer, x = made_layer(), torch.randn(3, 20)
    slope = torch.randn(3, 6)
    (layer(x) * slope).sum().backward()
    dead = layer.ternary_parts()[0] == 0
    assert 0.1 < float(dead.float().mean()) < 0.9
    expected = slope.T @ x + STRENGTH * slope.sum(0)[:, None] * dead
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, expected, atol=1e-5)
    # Where the input is silent, only the bias reaches a weight, and only a dead one.
    layer.weight.grad = None
    (layer(torch.zeros(3, 20)) * slope).sum().backward()
    assert bool(((layer.weight.grad != 0) == dead).all())


def test_free_scales_and_lambda_keep_the_closed_form() -> None:
    layer, x = made_layer(), torch.randn(3, 20)
    layer.free_scales(torch.full((6, 3), 0.2))
    dead = ternary_codes(layer.weight.detach(), 8, torch.full((6, 3), 0.2))[0] == 0
    added = STRENGTH * (layer.weight * dead).sum(1)
    assert torch.allclose(layer(x), x @ layer.quantised_weight().T + added, atol=1e-6)
    layer.blend = 0.5
    assert torch.allclose(layer(x), x @ layer.quantised_weight().T + added / 2, atol=1e-6)
    layer.blend = 0.0
    assert torch.equal(layer(x), x @ layer.weight.T)


def test_settling_changes_no_output_bit_and_training_goes_on_from_a_plain_bias() -> None:
    layer, x = made_layer(), torch.randn(3, 20)
    layer.free_scales(torch.full((6, 3), 0.2))
    before = layer(x).detach()
    layer.settle_bias()
    assert torch.equal(layer(x), before)
    assert layer.bias is not None
    assert layer.added_bias
    layer.tie_scales()
    with torch.no_grad():
        assert torch.equal(layer(x), before)
    held = layer.bias.detach().clone()
    layer.settle_bias()
    assert torch.equal(layer.bias, held)


def test_off_is_bit_for_bit_the_layer_without_it(tmp_path: Path) -> None:
    layer, x = made_layer(dead_zone_bias=0.0), torch.randn(3, 20)
    assert torch.equal(layer(x), x @ ternary_weight(layer.weight.detach(), 8).T)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, torch.ones(6, 3) @ x)
    layer.settle_bias()
    assert layer.bias is None
    assert not layer.added_bias
    model = llama()
    off = copy.deepcopy(model.config.quantization_config)
    assert off.to_dict()["dead_zone_bias"] == STRENGTH
    plain = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "quantization_config": None}))
    ternarise(plain, made_settings(dead_zone_bias=0.0))
    save(plain, None, tmp_path)
    assert "dead_zone_bias" not in (tmp_path / "config.json").read_text()


def test_both_files_compute_what_was_trained_and_the_size_told_counts_the_bias(
    tmp_path: Path,
) -> None:
    model = llama()
    expected = logits(model)
    without = deployable_bytes(model)
    settled(model)
    assert torch.equal(logits(model), expected)
    rows = sum(layer.out_features for layer in ternary_layers(model).values())
    assert deployable_bytes(model) - without >= 4 * rows
    save(model, None, tmp_path / "latent")
    assert torch.equal(logits(load(tmp_path / "latent")), expected)
    size = save_packed(model, None, tmp_path / "packed")
    opened = load(tmp_path / "packed")
    assert torch.allclose(logits(opened), expected, atol=1e-5)
    for name, layer in ternary_layers(model).items():
        assert torch.equal(opened.get_submodule(name).bias, layer.bias)
    assert 0 <= size - deployable_bytes(model) < 6000


def assert_runs(
    engine: runtime.PackedModel, model: LlamaForCausalLM, expected: torch.Tensor
) -> None:
    """Check that the packed engine has the very biases of the model and gives its logits."""
    places = {"0.q": "self_attn.q_proj", "1.down": "mlp.down_proj", "1.o": "self_attn.o_proj"}
    for name, module in places.items():
        bias = model.get_submodule(f"model.layers.{name[0]}.{module}").bias.detach().numpy()
        assert np.array_equal(engine.matrices[name].bias, bias)
    # Embedding and head are held in float16 there.
    error = torch.tensor(engine.logits(IDS[0].tolist())) - expected[0]
    assert float(error.norm() / expected.norm()) < 1e-3


@pytest.mark.parametrize("packed_first", [False, True])
def test_compressed_checkpoint_and_packed_engine_run_the_bias(
    packed_first: bool, tmp_path: Path
) -> None:
    model = llama()
    expected = logits(settled(model))
    save(model, None, tmp_path / "latent")
    assert_runs(runtime.load(tmp_path / "latent", threads=1), model, expected)
    source = load(tmp_path / "latent")
    if packed_first:
        save_packed(model, None, tmp_path / "packed")
        source = load(tmp_path / "packed")
    coded = {
        name: codecs.encode("ternary", one, {"group": 8})
        for name, one in compressed.coded_tensors(source).items()
        if name in ternary_layers(source)
    }
    save(compressed.compress(source, coded), None, tmp_path / "coded")
    error = logits(load(tmp_path / "coded")) - expected
    assert float(error.norm() / expected.norm()) < 1e-3
    engine = runtime.load(tmp_path / "coded", threads=1)
    assert_runs(engine, model, expected)
    loading.save(engine, tmp_path / "model.forge")
    assert_runs(runtime.load(tmp_path / "model.forge", threads=1), model, expected)
    with torch.no_grad():
        for layer in ternary_layers(model).values():
            layer.bias.zero_()
    assert float((logits(model) - expected).norm() / expected.norm()) > 0.1


@pytest.mark.parametrize("kind", ["latent", "coded"])
def test_exports_that_have_no_place_for_the_bias_refuse_by_name(kind: str, tmp_path: Path) -> None:
    model = settled(llama())
    if kind == "coded":
        name = "model.layers.0.self_attn.q_proj"
        weight = compressed.coded_tensors(model)[name]
        model = compressed.compress(model, {name: codecs.encode("ternary", weight, {"group": 8})})
    save(model, None, tmp_path)
    with pytest.raises(PhaseError, match=r"self_attn\.q_proj got from its dead zone"):
        sources.load(tmp_path, can_think=False)


def test_a_strength_outside_its_range_is_named() -> None:
    with pytest.raises(ConfigError, match="dead_zone_bias must be in"):
        made_settings(dead_zone_bias=1.5)
