"""Ternary weights with exactly one zero in every four of a row: the choice, the latents, the bytes,
and what runs them.
"""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agent_forge import codecs, runtime
from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.models import compressed, deployable_bytes, load, save
from agent_forge.models.ternary import (
    TernaryLinear,
    TernarySettings,
    latents_for,
    multiply_out,
    save_packed,
    ternarise,
    ternary_codes,
    ternary_layers,
)
from agent_forge.models.ternary.packing import pack, packed_length, read_packed, unpack
from agent_forge.models.ternary.three_of_four import (
    latents_for_three_of_four,
    project_three_of_four,
    three_of_four_codes,
)
from agent_forge.phases.bitnet.compensate import Rounding, compensate, output_error

IDS = torch.arange(20)[None] % 64


def made_settings(group_size: int = 16, **changes: object) -> TernarySettings:
    plain = {"activation_bits": 0, "packing": "three_of_four", "skip": ["lm_head"]}
    return TernarySettings(group_size=group_size, **{**plain, **changes})  # type: ignore[arg-type]


def random(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        )
    ).eval()  # fmt: skip


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(IDS, use_cache=False).logits


def zeros_of_fours(codes: torch.Tensor) -> torch.Tensor:
    """Return the number of zeros in each whole four of the rows, (rows, fours)."""
    whole = codes.shape[1] // 4 * 4
    return (codes[:, :whole].unflatten(1, (-1, 4)) == 0).sum(-1)


@pytest.mark.parametrize("columns", [4, 16, 18, 19, 21, 3])
@pytest.mark.parametrize("group_size", [8, 0, -1])
def test_exactly_one_of_every_four_is_zero_and_none_of_a_shorter_rest(
    columns: int, group_size: int
) -> None:
    codes, scales = three_of_four_codes(random(7, columns), group_size)
    assert bool((zeros_of_fours(codes) == 1).all())
    assert bool((codes[:, columns // 4 * 4 :] != 0).all())
    assert bool((scales > 0).all())


def test_rows_of_zeros_and_of_equal_sizes_have_one_zero_in_every_four_too() -> None:
    weight = torch.cat([torch.zeros(1, 8), torch.full((1, 8), -0.5)])
    codes, scales = three_of_four_codes(weight, 8)
    assert zeros_of_fours(codes).tolist() == [[1, 1], [1, 1]]
    assert scales.tolist() == [[0.0], [0.5]]
    assert codes[1].tolist() == [0, -1, -1, -1, 0, -1, -1, -1]


def test_no_other_pattern_has_less_error_at_the_scale_that_is_best_for_it() -> None:
    """By brute force over the 32 patterns of each of two fours that share a scale."""
    patterns = torch.tensor(
        [p for p in itertools.product((-1.0, 0.0, 1.0), repeat=4) if p.count(0.0) == 1]
    )
    assert len(patterns) == 32
    both = torch.tensor([[*a, *b] for a in patterns.tolist() for b in patterns.tolist()])
    for seed in range(20):
        weight = random(1, 8, seed)
        best_scale = (both @ weight[0]).clamp_min(0) / 6
        errors = (weight - both * best_scale[:, None]).square().sum(1)
        codes, scales = three_of_four_codes(weight, 8)
        assert torch.equal(codes[0].float(), both[errors.argmin()])
        assert float(scales[0, 0]) == pytest.approx(float(best_scale[errors.argmin()]), rel=2**-8)


@pytest.mark.parametrize("columns", [16, 22])
@pytest.mark.parametrize("group_size", [8, 0, -1])
def test_latents_for_codes_and_scales_round_to_exactly_these(columns: int, group_size: int) -> None:
    codes, scales = three_of_four_codes(random(5, columns), group_size)
    for near in (None, random(5, columns), random(5, columns, 3) * 9):
        latents = latents_for_three_of_four(codes, scales, group_size, near)
        again = three_of_four_codes(latents, group_size)
        assert torch.equal(again[0], codes)
        assert torch.equal(again[1], scales)
        projected = project_three_of_four(
            codes, scales, group_size, latents if near is None else near
        )
        assert torch.equal(three_of_four_codes(projected, group_size, scales)[0], codes)


@pytest.mark.parametrize("shape", [(1, 4), (3, 16), (5, 7), (2, 33), (11, 6), (1, 1)])
def test_packed_codes_take_five_bits_a_four_and_unpack_to_themselves(
    shape: tuple[int, int],
) -> None:
    codes = three_of_four_codes(random(*shape), 0)[0]
    packed = pack(codes, "three_of_four")
    fours = shape[0] * -(-shape[1] // 4)
    assert packed.numel() == packed_length(shape, "three_of_four") == -(-fours // 8) * 5
    assert torch.equal(unpack(packed, shape, "three_of_four"), codes)


def test_packed_bytes_match_a_hand_run() -> None:
    # Zero at place 2 and signs -, +, + is number 2 * 8 + 3; zero at place 0 and +, +, - is 6.
    codes = torch.tensor([[-1, 1, 0, 1, 0, 1, 1, -1]])
    word = (2 * 8 + 3) | 6 << 5
    assert pack(codes, "three_of_four").tolist() == [word & 255, word >> 8, 0, 0, 0]


def test_codes_with_another_number_of_zeros_are_refused() -> None:
    for codes in ([[1, 1, 1, 1]], [[0, 0, 1, 1]], [[1, 0, 1, 1, 0]]):
        with pytest.raises(ConfigError, match="exactly one 0"):
            pack(torch.tensor(codes), "three_of_four")
    with pytest.raises(CheckpointError, match="do not hold"):
        unpack(torch.zeros(4, dtype=torch.uint8), (1, 4), "three_of_four")
    with pytest.raises(ConfigError, match="multiple of 4"):
        made_settings(group_size=6)


def test_a_layer_computes_with_its_codes_and_passes_gradients_to_all_latents() -> None:
    layer = TernaryLinear(18, 5, False, settings=made_settings(8))
    x = random(3, 18)
    codes, scales = layer.ternary_parts()
    assert torch.equal(codes, three_of_four_codes(layer.weight.detach(), 8)[0])
    expected = x @ multiply_out(codes, scales, 8).T
    assert torch.allclose(layer(x), expected, atol=1e-6)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, x.sum(0).expand(5, -1), atol=1e-6)
    layer.free_scales()
    with torch.no_grad():
        assert layer.weight_scale is not None
        layer.weight_scale.mul_(2.0)
        doubled = layer(x)
        layer.tie_scales()
        assert torch.equal(layer(x), doubled)
    assert torch.allclose(doubled, 2 * expected, atol=1e-5)


@pytest.mark.parametrize("group_size", [16, 0, -1])
@pytest.mark.parametrize("columns", [32, 38])
def test_compensated_codes_keep_the_pattern_and_err_less_than_rounding(
    group_size: int, columns: int
) -> None:
    mix = random(columns, columns, 5) * torch.arange(1, columns + 1) ** -0.5
    inputs, fresh = random(600, columns, 1) @ mix, random(600, columns, 2) @ mix
    weight, hessian = random(24, columns, 3), fresh.T @ fresh / len(fresh)
    errors = {}
    for sweeps in (0, 4):
        rounding = Rounding(0.01, sweeps, three_of_four=True)
        latents, scales = compensate(weight, inputs.T @ inputs / 600, group_size, rounding)
        codes = three_of_four_codes(latents, group_size, scales)[0]
        assert bool((zeros_of_fours(codes) == 1).all())
        change = multiply_out(codes, scales.expand(24, -1), group_size) - weight
        errors[sweeps] = float(((change @ hessian) * change).sum())
    plain = multiply_out(*three_of_four_codes(weight, group_size), group_size) - weight
    rounded = float(((plain @ hessian) * plain).sum())
    assert errors[4] < errors[0] < rounded
    assert errors[4] < 0.75 * rounded


def test_without_the_switch_compensation_gives_what_it_gave() -> None:
    """The free choice of zeros errs less, and is not touched by the pattern."""
    weight, inputs = random(16, 32), random(400, 32, 1)
    hessian = inputs.T @ inputs / 400
    latents, scales = compensate(weight, hessian, 16, Rounding(0.01, 2))
    codes, own = ternary_codes(latents, 16, scales)
    assert not bool((zeros_of_fours(codes) == 1).all())
    tied = latents_for(codes, own, 16, near=latents)
    bound, bound_scales = compensate(weight, hessian, 16, Rounding(0.01, 2, three_of_four=True))
    change = multiply_out(*three_of_four_codes(bound, 16, bound_scales), 16) - weight
    three = float(((change @ hessian) * change).sum() / ((weight @ hessian) * weight).sum())
    assert output_error(weight, tied, hessian, 16) < three


def test_both_files_hold_the_model_and_the_size_told_is_that_of_the_file(tmp_path: Path) -> None:
    model = llama()
    ternarise(model, made_settings(16, activation_bits=8))
    expected = logits(model)
    save(model, None, tmp_path / "latent")
    assert torch.equal(logits(load(tmp_path / "latent")), expected)
    size = save_packed(model, None, tmp_path / "packed")
    opened = load(tmp_path / "packed")
    assert torch.allclose(logits(opened), expected, atol=1e-5)
    stored = read_packed(tmp_path / "packed" / "model.safetensors")
    for name, layer in ternary_layers(model).items():
        assert torch.equal(stored[f"{name}.weight"], layer.quantised_weight())
        assert torch.equal(opened.get_submodule(name).quantised_weight(), layer.quantised_weight())
    assert 0 <= size - deployable_bytes(model) < 6000
    weights = sum(layer.weight.numel() for layer in ternary_layers(model).values())
    scales = sum(2 * layer.scales_shape[0] * layer.scales_shape[1]
                 for layer in ternary_layers(model).values())  # fmt: skip
    codes = sum(layer.packed_bytes() for layer in ternary_layers(model).values()) - scales
    assert 1.25 <= 8 * codes / weights < 1.27


def test_the_packed_engine_runs_latents_and_codes_of_compress_alike(tmp_path: Path) -> None:
    model = llama()
    ternarise(model, made_settings(8))
    save(model, None, tmp_path / "latent")
    expected = logits(model)[0].numpy()
    ids = IDS[0].tolist()
    assert runtime.load(tmp_path / "latent", threads=1).logits(ids) == pytest.approx(
        expected, abs=1e-5
    )
    coded = {
        name: codecs.encode("ternary", one, {"group": 8})
        for name, one in compressed.coded_tensors(model).items()
        if name in ternary_layers(model)
    }
    save(compressed.compress(model, coded), None, tmp_path / "coded")
    opened = logits(load(tmp_path / "coded"))[0].numpy()
    assert opened == pytest.approx(expected, abs=1e-5)
    assert runtime.load(tmp_path / "coded", threads=1).logits(ids) == pytest.approx(
        expected, abs=1e-5
    )
