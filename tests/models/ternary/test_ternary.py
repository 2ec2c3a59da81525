"""The ternary quantiser, its gradients, its packing and transformers' use, against formulas."""

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from agent_forge.core.errors import CheckpointError, ConfigError, PhaseError
from agent_forge.models import deployable_bytes, load, save
from agent_forge.models.ternary import (
    TernaryConfig,
    TernaryLinear,
    TernarySettings,
    latents_for,
    multiply_out,
    project_latents,
    quantise_activations,
    set_blend,
    ternarise,
    ternary_codes,
    ternary_layers,
    ternary_weight,
)
from agent_forge.models.ternary.packing import (
    pack,
    packed_length,
    read_packed,
    unpack,
    write_packed,
)


def make_settings(
    group_size: int = 16, activation_bits: int = 8, packing: str = "five_trits"
) -> TernarySettings:
    return TernarySettings(
        group_size=group_size, activation_bits=activation_bits, packing=packing, skip=["lm_head"]
    )


def make_llama(**changes: int | bool) -> LlamaForCausalLM:
    torch.manual_seed(1)
    shape = {
        "vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).eval()


def make_layer(
    rows: int, columns: int, group_size: int, bias: bool = False, activation_bits: int = 8
) -> TernaryLinear:
    torch.manual_seed(rows * 1000 + columns)
    return TernaryLinear(columns, rows, bias, settings=make_settings(group_size, activation_bits))


def by_the_formula(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return RoundClip(W / mean|W|, -1, 1) * bfloat16(mean|W|), element by element in float64."""
    result = torch.zeros_like(weight, dtype=torch.float64)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group_size):
            group = weight[row, start : start + group_size].double()
            scale = group.abs().mean()
            if scale == 0:
                continue
            codes = [max(-1, min(1, round(value / scale.item()))) for value in group.tolist()]
            rounded = scale.to(torch.bfloat16).double()
            result[row, start : start + group_size] = (
                torch.tensor(codes, dtype=torch.float64) * rounded
            )
    return result


@pytest.mark.parametrize(
    ("rows", "columns", "group_size"), [(3, 8, 4), (5, 13, 4), (2, 576, 128), (4, 3, 8), (1, 1, 1)]
)
def test_ternary_weight_equals_the_formula_group_by_group(
    rows: int, columns: int, group_size: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    expected = by_the_formula(weight, group_size)
    assert torch.equal(ternary_weight(weight, group_size).double(), expected)
    codes, scales = ternary_codes(weight, group_size)
    assert codes.dtype == torch.int8
    assert scales.shape == (rows, -(-columns // group_size))
    assert torch.equal(codes.sign().double(), expected.sign())


def test_group_of_zeros_stays_zero_and_finite() -> None:
    weight = torch.zeros(2, 6)
    weight[0, 4:] = torch.tensor([1.0, -3.0])
    actual = ternary_weight(weight, 4)
    assert torch.equal(actual[:, :4], torch.zeros(2, 4))
    # 1 / mean = 0.5 rounds to even, which is 0; -3 is clipped to -1 times the mean of 2.
    assert actual[0, 4:].tolist() == [0.0, -2.0]


def test_ternary_weight_of_strided_latents_equals_that_of_contiguous_ones() -> None:
    weight = torch.randn(12, 10)
    assert torch.equal(ternary_weight(weight.T, 4), ternary_weight(weight.T.contiguous(), 4))


def test_share_of_zeros_of_gaussian_weights_is_the_published_31_percent() -> None:
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    zeros = (ternary_codes(weight, 128)[0] == 0).float().mean().item()
    # P(|z| < E|z| / 2) = erf(1 / (2 sqrt(pi)))
    assert zeros == pytest.approx(0.3101, abs=0.004)


def test_activations_are_rounded_to_the_grid_of_each_token() -> None:
    x = torch.tensor([[0.5, -1.27, 0.004, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.allclose(
        quantise_activations(x, 8)[0], torch.tensor([0.5, -1.27, 0.0, 1.0]), atol=1e-6
    )
    assert torch.equal(quantise_activations(x, 8)[1], torch.zeros(4))
    error = (quantise_activations(x, 4) - x).abs().amax(-1)
    assert bool((error <= x.abs().amax(-1) / 7 / 2 + 1e-6).all())


def test_gradient_reaches_latents_and_inputs_as_if_the_rounding_were_the_identity() -> None:
    layer = make_layer(5, 13, 4, bias=True)
    x = torch.randn(7, 13, requires_grad=True)
    upstream = torch.randn(7, 5)
    layer(x).backward(upstream)
    assert layer.weight.grad is not None
    assert x.grad is not None
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert torch.allclose(
        layer.weight.grad, upstream.T @ quantise_activations(x.detach(), 8), atol=1e-5
    )
    assert torch.allclose(x.grad, upstream @ layer.quantised_weight(), atol=1e-5)
    assert torch.allclose(layer.bias.grad, upstream.sum(0), atol=1e-5)


def test_forward_mode_derivative_is_that_of_the_straight_through_layer() -> None:
    layer = make_layer(5, 12, 4)
    x, direction = torch.randn(3, 12), torch.randn(3, 12)
    _, tangent = torch.func.jvp(layer, (x,), (direction,))
    assert torch.allclose(tangent, direction @ layer.quantised_weight().T, atol=1e-5)


def test_lambda_zero_is_the_dense_model_bit_for_bit() -> None:
    dense = make_llama()
    model = copy.deepcopy(dense)
    ternarise(model, make_settings())
    set_blend(model, 0.0)
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, dense(ids).logits)


def test_lambda_between_interpolates_the_weight() -> None:
    layer = make_layer(4, 8, 4)
    layer.blend = 0.25
    expected = 0.75 * layer.weight + 0.25 * ternary_weight(layer.weight.detach(), 4)
    assert torch.allclose(layer.quantised_weight(), expected, atol=1e-6)


def test_training_and_inference_forward_are_equal() -> None:
    layer = make_layer(6, 20, 8)
    x = torch.randn(4, 20)
    for blend in (1.0, 0.5, 0.0):
        layer.blend = blend
        with torch.no_grad():
            without_gradient = layer(x)
        assert torch.equal(layer(x), without_gradient)


def test_kept_weight_follows_every_change_of_the_latents() -> None:
    layer = make_layer(4, 8, 4).eval()
    x = torch.randn(2, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    with torch.no_grad():
        before = layer(x)
    layer(x).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(layer(x), before)
        layer.load_state_dict({"weight": torch.ones(4, 8)})
        assert torch.allclose(
            layer(x), quantise_activations(x, 8).sum(-1, keepdim=True).expand(2, 4), atol=1e-5
        )
        layer.weight.mul_(2)
        assert torch.allclose(
            layer(x), 2 * quantise_activations(x, 8).sum(-1, keepdim=True).expand(2, 4), atol=1e-5
        )


def test_weight_kept_in_inference_mode_serves_later_gradients() -> None:
    layer = make_layer(4, 8, 4).eval()
    with torch.inference_mode():
        layer(torch.randn(2, 8))
    clone = copy.deepcopy(layer)
    x = torch.randn(2, 8, requires_grad=True)
    clone(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, clone.quantised_weight().sum(0).expand(2, 8), atol=1e-5)


@given(
    st.integers(1, 5),
    st.integers(1, 23),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_latents_made_for_codes_and_scales_quantise_to_exactly_these(
    rows: int, columns: int, group_size: int, zeros: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.where(torch.rand(rows, columns, generator=generator) < zeros, 0, 1).to(torch.int8)
    codes *= torch.where(torch.rand(rows, columns, generator=generator) < 0.5, -1, 1).to(torch.int8)
    _, scales = ternary_codes(torch.rand(rows, columns, generator=generator) + 0.1, group_size)
    near = torch.randn(rows, columns, generator=generator)
    for hint in (None, near):
        found_codes, found_scales = ternary_codes(
            latents_for(codes, scales, group_size, hint), group_size
        )
        assert torch.equal(found_codes, codes)
        empty = torch.stack([part.eq(0).all(1) for part in codes.split(group_size, dim=1)], dim=1)
        assert torch.equal(found_scales, scales.masked_fill(empty, 0.0))


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=3),
    st.sampled_from(["two_bit", "five_trits"]),
    st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_pack_then_unpack_is_exact_at_every_shape(
    shape: list[int], packing: str, seed: int
) -> None:
    codes = torch.randint(
        -1, 2, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8
    )
    packed = pack(codes, packing)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_length(codes.numel(), packing)
    assert torch.equal(unpack(packed, codes.shape, packing), codes)


def test_packed_bytes_match_a_hand_run() -> None:
    codes = torch.tensor([1, 0, -1, 1, 1, -1])
    # digits 2 1 0 2 2 | 0: 2 + 1*3 + 0*9 + 2*27 + 2*81 = 221, and 0 padded with 0
    assert pack(codes, "five_trits").tolist() == [221, 0]
    # digits 2 1 0 2 | 2 0: 2 + 1*4 + 0*16 + 2*64 = 134, and 2
    assert pack(codes, "two_bit").tolist() == [134, 2]


def test_codes_that_are_not_ternary_are_refused_both_ways() -> None:
    with pytest.raises(ConfigError, match="must be -1, 0 or 1"):
        pack(torch.tensor([0, 2]), "two_bit")
    with pytest.raises(CheckpointError, match="code is 3"):
        unpack(torch.tensor([255], dtype=torch.uint8), (4,), "two_bit")
    with pytest.raises(CheckpointError, match="do not hold"):
        unpack(torch.tensor([0], dtype=torch.uint8), (9,), "two_bit")
    with pytest.raises(ConfigError, match="did you mean 'two_bit'"):
        make_settings(packing="twobit")


@pytest.mark.parametrize("packing", ["two_bit", "five_trits"])
def test_packed_file_computes_what_the_latents_compute(packing: str, tmp_path: Path) -> None:
    model = make_llama()
    ternarise(model, make_settings(packing=packing, activation_bits=0))
    ids = torch.arange(30)[None]
    expected = model(ids).logits
    size = write_packed(model, tmp_path / "packed.safetensors")
    assert size == (tmp_path / "packed.safetensors").stat().st_size
    dense = make_llama()
    dense.load_state_dict(read_packed(tmp_path / "packed.safetensors"))
    assert torch.allclose(dense(ids).logits, expected, atol=1e-5)


def test_packed_bytes_are_those_in_the_packed_file(tmp_path: Path) -> None:
    model = make_llama()
    ternarise(model, make_settings())
    size = write_packed(model, tmp_path / "packed.safetensors")
    tensors = load_file(tmp_path / "packed.safetensors")
    for name, layer in ternary_layers(model).items():
        in_file = tensors[f"{name}.weight_codes"].nbytes + tensors[f"{name}.weight_scales"].nbytes
        assert layer.packed_bytes() == in_file
    payload = sum(tensor.nbytes for tensor in tensors.values())
    assert payload < deployable_bytes(model) <= size


def test_damaged_or_foreign_packed_file_is_named(tmp_path: Path) -> None:
    model = make_llama()
    ternarise(model, make_settings())
    path = tmp_path / "packed.safetensors"
    write_packed(model, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"packed\.safetensors"):
        read_packed(path)
    save(make_llama(), None, tmp_path / "plain")
    with pytest.raises(CheckpointError, match="not a packed ternary file"):
        read_packed(tmp_path / "plain" / "model.safetensors")


@pytest.mark.parametrize("tied", [False, True])
def test_ternary_checkpoint_opens_through_transformers_and_keeps_its_layers(
    tied: bool, tmp_path: Path
) -> None:
    model = make_llama(tie_word_embeddings=tied)
    names = ternarise(model, make_settings())
    ids = torch.arange(30)[None]
    expected = model(ids).logits
    save(model, None, tmp_path / "a")
    stored = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    assert stored == {
        "quant_method": "forge_ternary", "group_size": 16, "activation_bits": 8,
        "packing": "five_trits", "skip": ["lm_head"], "embedding_bits": 0, "embedding_group": 0,
        "sub_norm": [], "packed": False,
    }  # fmt: skip
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    assert list(ternary_layers(opened)) == names
    assert {layer.blend for layer in ternary_layers(opened).values()} == {1.0}
    assert type(opened.lm_head) is nn.Linear
    assert torch.equal(opened(ids).logits, expected)
    assert opened.hf_quantizer.is_trainable
    assert isinstance(opened.config.quantization_config, TernaryConfig)
    save(opened, None, tmp_path / "b")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_model_trained_further_after_loading_stays_ternary(tmp_path: Path) -> None:
    model = make_llama()
    ternarise(model, make_settings())
    save(model, None, tmp_path / "a")
    opened = load(tmp_path / "a").train()
    ids = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(opened.parameters(), lr=1e-2)
    before = {name: layer.ternary_parts()[0] for name, layer in ternary_layers(opened).items()}
    losses = []
    for _ in range(12):
        loss = opened(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    save(opened, None, tmp_path / "b")
    again = load(tmp_path / "b")
    moved = 0
    for name, layer in ternary_layers(again).items():
        assert layer.quantised_weight()[0, :16].abs().unique().numel() <= 2
        moved += int((layer.ternary_parts()[0] != before[name]).sum())
    assert moved > 0
    assert torch.equal(again(ids).logits, opened.eval()(ids).logits)


def test_skip_patterns_and_small_layers_stay_float() -> None:
    model = make_llama()
    names = ternarise(
        model,
        TernarySettings(
            group_size=32, activation_bits=8, packing="two_bit", skip=["model.layers.0.*"]
        ),
    )
    # Only down_proj has at least 32 inputs; layer 0 and the output embedding are left out.
    assert names == ["model.layers.1.mlp.down_proj"]
    assert model.config.quantization_config.skip == ["model.layers.0.*", "lm_head"]


def test_model_with_nothing_to_ternarise_says_what_was_looked_for() -> None:
    with pytest.raises(PhaseError, match=r"at least group_size=128 inputs.*\[24, 40\] inputs"):
        ternarise(make_llama(), make_settings(group_size=128))
    model = make_llama()
    ternarise(model, make_settings())
    with pytest.raises(PhaseError, match="ternary already"):
        ternarise(model, make_settings())


def test_config_that_other_models_share_stays_theirs() -> None:
    one = make_llama()
    other = LlamaForCausalLM(one.config)
    ternarise(one, make_settings())
    assert not hasattr(other.config, "quantization_config")
    assert one.model.config is one.config
    assert one.config.quantization_config.group_size == 16


def test_config_that_fits_no_layer_is_refused_at_load(tmp_path: Path) -> None:
    model = make_llama()
    ternarise(model, make_settings())
    save(model, None, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["quantization_config"]["group_size"] = 4096
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with pytest.raises(PhaseError, match="do not belong together"):
        load(tmp_path / "a")


def test_model_of_one_billion_weights_is_counted_without_memory() -> None:
    with torch.device("meta"):
        linear = nn.Linear(32768, 32768, bias=False)
    layer = TernaryLinear.from_linear(linear, make_settings(group_size=128))
    assert layer.packed_bytes() == -(-(32768**2) // 5) + 2 * 32768 * 256


@pytest.mark.parametrize(
    ("rows", "columns", "group_size"),
    [(6, 40, 16), (6, 32, 16), (4, 10, 16), (5, 24, 0), (5, 24, -1)],
)
def test_freed_scales_change_nothing_and_tied_again_neither(
    rows: int, columns: int, group_size: int
) -> None:
    layer = make_layer(rows, columns, group_size)
    x = torch.randn(7, columns, generator=torch.Generator().manual_seed(0))
    before, (codes, scales) = layer(x), layer.ternary_parts()
    layer.free_scales()
    assert torch.equal(layer(x), before)
    with torch.no_grad():
        assert torch.equal(layer(x), before)
        layer.weight_scale.mul_(1.7)  # type: ignore[union-attr]
        freed, (changed, wider) = layer(x), layer.ternary_parts()
    assert not torch.equal(changed, codes)  # The borders move with the scale.
    assert torch.allclose(wider.float(), 1.7 * scales.float(), rtol=2**-7)
    layer.tie_scales()
    assert layer.weight_scale is None
    assert torch.equal(layer.ternary_parts()[0], changed)
    assert torch.equal(layer.ternary_parts()[1], wider)
    assert torch.equal(layer(x), freed)


@pytest.mark.parametrize("blend", [1.0, 0.6])
@pytest.mark.parametrize("group_size", [16, 0, -1])
def test_gradient_of_a_free_scale_is_the_derivative_for_fixed_codes(
    group_size: int, blend: float
) -> None:
    layer = make_layer(5, 40, group_size, activation_bits=0)
    layer.free_scales()
    layer.blend = blend
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(9, 40, generator=generator), torch.randn(9, 5, generator=generator)
    (layer(x) * target).sum().backward()
    codes, scales = layer.ternary_parts()
    own = scales[:1, :1] if group_size == -1 else scales
    free = own.float().clone().requires_grad_()
    wide = free.repeat_interleave(40 if group_size <= 0 else 16, dim=1)[:, :40]
    dense = layer.weight.detach().clone().requires_grad_()
    (
        torch.nn.functional.linear(x, (1 - blend) * dense + blend * codes * wide) * target
    ).sum().backward()
    assert torch.allclose(layer.weight_scale.grad, free.grad.flatten(), rtol=1e-3, atol=1e-3)  # type: ignore[union-attr]
    # Straight through: latents get the weights' gradient, whatever the blend.
    assert torch.allclose(layer.weight.grad, target.T @ x, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("group_size", [16, 0, -1])
def test_cells_hold_the_codes_for_their_scales_and_move_only_what_lies_outside(
    group_size: int,
) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-1, 2, (6, 40), generator=generator).to(torch.int8)
    groups = 3 if group_size == 16 else 1
    scales = (
        torch.rand(1 if group_size == -1 else 6, groups, generator=generator)
        .add(0.5)
        .to(torch.bfloat16)
    )
    near = torch.randn(6, 40, generator=generator)
    latents = project_latents(codes, scales, group_size, near)
    actual, own = ternary_codes(latents, group_size, scales)
    assert torch.equal(actual, codes)
    assert torch.equal(own, scales.expand(6, -1))
    again = project_latents(codes, scales, group_size, latents)
    assert torch.equal(again, latents)
    inside = ternary_codes(near, group_size, scales)[0] == codes
    moved = (latents - near).abs() / multiply_out(torch.ones_like(codes), scales, group_size)
    assert float(moved[inside].max()) <= 0.0201  # only the margin beside a border
