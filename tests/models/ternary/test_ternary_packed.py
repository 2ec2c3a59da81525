"""Grouping of scales, rounded embeddings, and packed directories opened by transformers."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from agent_forge.codecs import encode
from agent_forge.core.errors import CheckpointError, ConfigError, PhaseError
from agent_forge.export.source import plain_value
from agent_forge.models import compressed, deployable_bytes, load, save
from agent_forge.models.ternary import (
    ROW,
    TENSOR,
    TernaryLinear,
    TernarySettings,
    latents_for,
    multiply_out,
    round_embeddings,
    save_packed,
    ternarise,
    ternary_codes,
    ternary_layers,
    ternary_weight,
)
from agent_forge.models.ternary.embedding import (
    CodeGrid,
    RoundedEmbedding,
    RoundedHead,
    grid,
    pack,
    rounded,
    unpack,
    values,
)
from agent_forge.models.ternary.packing import read_packed


def make_settings(**changes: Any) -> TernarySettings:
    plain: dict[str, Any] = {
        "group_size": 16,
        "activation_bits": 8,
        "packing": "five_trits",
        "skip": [],
    }
    return TernarySettings(**{**plain, **changes})


def make_llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    shape = {
        "vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        actual: torch.Tensor = model(torch.arange(30)[None]).logits
    return actual


@pytest.mark.parametrize("group_size", [ROW, TENSOR])
def test_one_scale_a_row_or_a_tensor_is_the_mean_magnitude_of_all_of_it(group_size: int) -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    mean = (
        weight.abs().mean(1, keepdim=True)
        if group_size == ROW
        else weight.abs().mean().expand(6, 1)
    )
    expected = (weight / mean).round().clamp(-1, 1) * mean.to(torch.bfloat16).float()
    assert torch.equal(ternary_weight(weight, group_size), expected)
    codes, scales = ternary_codes(weight, group_size)
    assert scales.shape == (6, 1)
    assert torch.equal(multiply_out(codes, scales, group_size), expected)


@pytest.mark.parametrize("group_size", [5, ROW, TENSOR])
def test_latents_for_codes_and_scales_round_to_exactly_these(group_size: int) -> None:
    generator = torch.Generator().manual_seed(3)
    codes, scales = ternary_codes(torch.randn(7, 13, generator=generator), group_size)
    latents = latents_for(codes, scales, group_size, near=torch.randn(7, 13, generator=generator))
    again = ternary_codes(latents, group_size)
    assert torch.equal(again[0], codes)
    assert torch.equal(again[1], scales)


def test_a_tensor_with_one_scale_stores_one() -> None:
    layer = TernaryLinear(13, 7, False, settings=make_settings(group_size=TENSOR))
    assert layer.packed_bytes() == -(-13 * 7 // 5) + 2
    assert (
        TernaryLinear(13, 7, False, settings=make_settings(group_size=ROW)).packed_bytes()
        == -(-13 * 7 // 5) + 14
    )


@pytest.mark.parametrize(("bits", "columns"), [(8, 0), (8, 5), (4, 4), (4, 0)])
def test_rounded_rows_are_within_half_a_step_and_rounding_them_again_changes_nothing(
    bits: int, columns: int
) -> None:
    weight = torch.randn(9, 14, generator=torch.Generator().manual_seed(bits))
    weight[2] = 0
    once = rounded(weight, bits, columns)
    codes, steps = grid(weight, bits, columns)
    assert steps.shape == (9, -(-14 // (columns or 14)))
    assert int(codes.abs().max()) == 2 ** (bits - 1) - 1
    # bfloat16 steps are off by up to 2^-9, which the largest code of a group feels most.
    bound = steps.float().repeat_interleave(columns or 14, 1)[:, :14] * (
        0.5 + 2 ** (bits - 1) * 2**-8
    )
    assert bool(((once - weight).abs() <= bound + 1e-9).all())
    assert torch.equal(rounded(once, bits, columns), once)
    assert torch.equal(values(codes, steps, columns), once)


@pytest.mark.parametrize("columns", [0, 5])
def test_two_bits_round_rows_as_ternary_layers_round_their_weights(columns: int) -> None:
    weight = torch.randn(9, 14, generator=torch.Generator().manual_seed(2))
    weight[2] = 0
    expected = ternary_weight(weight, columns)
    assert torch.equal(rounded(weight, 2, columns), expected)
    codes, steps = grid(weight, 2, columns)
    assert all(
        torch.equal(a, b)
        for a, b in zip((codes, steps), ternary_codes(weight, columns), strict=True)
    )
    # The rows of a batch, of one token and of none.
    batch = weight[torch.tensor([[0, 2, 8]])]
    assert torch.equal(rounded(batch, 2, columns), expected[torch.tensor([[0, 2, 8]])])
    assert torch.equal(rounded(weight[3], 2, columns), expected[3])
    assert rounded(weight[:0], 2, columns).shape == (0, 14)


@pytest.mark.parametrize(
    ("bits", "width"), [(8, 5), (4, 6), (4, 7), (4, 1), (2, 8), (2, 7), (2, 6), (2, 1)]
)
def test_packed_rows_unpack_to_the_same_codes(bits: int, width: int) -> None:
    top = 2 ** (bits - 1) - 1
    codes = torch.randint(
        -top, top + 1, (11, width), generator=torch.Generator().manual_seed(0)
    ).to(torch.int8)
    packed = pack(codes, bits)
    assert packed.shape == (11, -(-width * bits // 8))
    assert torch.equal(unpack(packed, bits, width), codes)
    with pytest.raises(CheckpointError, match="do not hold"):
        unpack(packed, bits, width + 4)


@pytest.mark.parametrize("bits", [4, 2])
def test_rounded_embedding_and_head_pass_gradients_straight_to_the_weight_they_share(
    bits: int,
) -> None:
    model = make_llama(tie_word_embeddings=True)
    ternarise(model, make_settings(embedding_bits=bits))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, RoundedEmbedding)
    assert isinstance(head, RoundedHead)
    assert head.weight is embedding.weight
    x, upstream = torch.randn(3, 24), torch.randn(3, 64)
    assert torch.equal(head(x), x @ rounded(head.weight.detach(), bits, 0).T)
    head(x).backward(upstream)
    embedding(torch.tensor([5, 5])).sum().backward()
    expected = upstream.T @ x
    expected[5] += 2
    assert embedding.weight.grad is not None
    assert torch.allclose(embedding.weight.grad, expected, atol=1e-5)


def test_rounded_head_follows_latents_that_change_in_place() -> None:
    model = make_llama(tie_word_embeddings=True)
    ternarise(model, make_settings(embedding_bits=8))
    before = logits(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    assert not torch.equal(logits(model), before)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("group_size", "bits"), [(16, 0), (16, 8), (ROW, 4), (TENSOR, 8), (16, 2)])
def test_packed_directory_opens_through_transformers_and_computes_the_same(
    group_size: int, bits: int, tied: bool, tmp_path: Path
) -> None:
    model = make_llama(tie_word_embeddings=tied)
    names = ternarise(
        model, make_settings(group_size=group_size, embedding_bits=bits, embedding_group=8)
    )
    size = save_packed(model, None, tmp_path / "packed")
    assert size == (tmp_path / "packed" / "model.safetensors").stat().st_size
    assert size < 0.5 * 4 * sum(p.numel() for p in model.parameters())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float32).eval()
    assert torch.allclose(logits(plain), logits(model), atol=1e-5)
    opened = load(tmp_path / "packed")
    assert set(ternary_layers(opened)) == set(names)
    assert (opened.get_output_embeddings().weight is opened.get_input_embeddings().weight) == tied
    for name, layer in ternary_layers(opened).items():
        mine = ternary_layers(model)[name].ternary_parts()
        assert all(torch.equal(a, b) for a, b in zip(layer.ternary_parts(), mine, strict=True))
    # What was opened holds latents: it is saved, trained and packed like any other ternary model.
    save(opened, None, tmp_path / "latent")
    assert torch.equal(logits(load(tmp_path / "latent")), logits(opened))
    assert save_packed(opened, None, tmp_path / "again") == size
    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("packed", "again")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_deployable_bytes_count_embedding_and_head_as_they_are_packed(tmp_path: Path) -> None:
    sizes = {}
    for bits in (0, 2, 4, 8):
        model = make_llama(vocab_size=512, tie_word_embeddings=True)
        ternarise(model, make_settings(embedding_bits=bits))
        sizes[bits] = deployable_bytes(model)
        # The file also holds the header's shapes.
        assert 0 <= save_packed(model, None, tmp_path / str(bits)) - sizes[bits] < 6000
    # The header loses or gains an entry.
    assert sizes[0] - sizes[8] == pytest.approx(512 * (4 * 24 - 24 - 2), abs=200)
    assert sizes[8] - sizes[4] == pytest.approx(512 * 12, abs=200)
    assert sizes[4] - sizes[2] == pytest.approx(512 * 6, abs=200)


@pytest.mark.parametrize("packed", [False, True])
def test_checkpoints_from_when_embeddings_could_be_codewords_open_unless_theirs_are(
    packed: bool, tmp_path: Path
) -> None:
    model = make_llama()
    ternarise(model, make_settings(embedding_bits=4))
    if packed:
        save_packed(model, None, tmp_path)
    else:
        save(model, None, tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["embedding_vector"] = 0
    file.write_text(json.dumps(config))
    assert torch.equal(logits(load(tmp_path)), logits(model))
    config["quantization_config"]["embedding_vector"] = 2
    file.write_text(json.dumps(config))
    with pytest.raises(
        ConfigError, match=r"codewords \(embedding_vector=2\).*make the float model ternary again"
    ):
        load(tmp_path)


def test_embedding_on_one_grid_can_be_put_on_another(tmp_path: Path) -> None:
    model = make_llama(tie_word_embeddings=True, vocab_size=640)
    ternarise(model, make_settings(embedding_bits=8))
    latents = model.get_input_embeddings().weight
    for name, target in (("four", CodeGrid(4, 8)), ("eight", CodeGrid(8))):
        round_embeddings(model, target)
        assert model.get_input_embeddings().weight is latents
        assert model.get_output_embeddings().weight is latents
        save_packed(model, None, tmp_path / name)
        assert torch.allclose(logits(load(tmp_path / name)), logits(model), atol=1e-5)


@pytest.mark.parametrize("bits", [4, 2])
def test_packed_file_of_rounded_embeddings_multiplies_out_to_the_model(
    bits: int, tmp_path: Path
) -> None:
    model = make_llama()
    ternarise(model, make_settings(activation_bits=0, embedding_bits=bits))
    save_packed(model, None, tmp_path)
    dense = make_llama()
    dense.load_state_dict(read_packed(tmp_path / "model.safetensors"))
    assert torch.allclose(logits(dense), logits(model), atol=1e-5)


def test_training_step_leaves_a_ternary_model_ternary() -> None:
    model = make_llama(tie_word_embeddings=True).train()
    ternarise(model, make_settings(embedding_bits=8))
    before = copy.deepcopy(model.state_dict())
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    model(torch.arange(30)[None], labels=torch.arange(30)[None]).loss.backward()
    optimiser.step()
    assert all(
        not torch.equal(value, before[name])
        for name, value in model.state_dict().items()
        if "proj" in name
    )
    for layer in ternary_layers(model).values():
        blocks = layer.quantised_weight()[:, :16].abs()
        assert bool(((blocks == 0) | (blocks == blocks.amax(1, keepdim=True))).all())
    table: nn.Module = model.get_input_embeddings()
    latents = model.get_input_embeddings().weight.detach()
    assert torch.equal(table(torch.arange(64)), rounded(latents, 8, 0))
    assert torch.equal(
        model.eval().get_output_embeddings().quantised_weight(), rounded(latents, 8, 0)
    )


def test_layer_with_sub_norm_is_the_layer_on_normalised_inputs() -> None:
    layer = TernaryLinear(8, 4, False, settings=make_settings(activation_bits=0))
    x = torch.randn(3, 8)
    layer.add_norm()
    assert layer.norm_weight is not None
    with torch.no_grad():
        layer.norm_weight.copy_(torch.arange(8.0))
    expected = (
        x / x.square().mean(-1, keepdim=True).sqrt() * torch.arange(8.0)
    ) @ layer.quantised_weight().T
    assert torch.allclose(layer(x), expected, atol=1e-4)
    assert torch.allclose(layer(100 * x), expected, atol=1e-4)


def test_sub_norm_survives_both_kinds_of_files_and_is_refused_where_there_is_no_place_for_it(
    tmp_path: Path,
) -> None:
    model = make_llama()
    ternarise(model, make_settings(sub_norm=["o_proj", "down_proj"]))
    layers = ternary_layers(model)
    normed = {name for name, layer in layers.items() if layer.norm_weight is not None}
    assert normed == {name for name in layers if name.endswith(("o_proj", "down_proj"))}
    with torch.no_grad():
        for name in normed:
            torch.nn.init.uniform_(layers[name].norm_weight, 0.5, 1.5)
    expected = logits(model)
    save(model, None, tmp_path / "latent")
    assert torch.equal(logits(load(tmp_path / "latent")), expected)
    size = save_packed(model, None, tmp_path / "packed")
    assert torch.allclose(logits(load(tmp_path / "packed")), expected, atol=1e-5)
    assert 0 <= size - deployable_bytes(model) < 6000
    with pytest.raises(PhaseError, match="normalise"):
        plain_value(model, "model.layers.0.self_attn.o_proj.weight")
    coded = {"model.layers.0.self_attn.o_proj": encode("intk", torch.zeros(24, 24), {"bits": 8})}
    with pytest.raises(PhaseError, match="normalise"):
        compressed.compress(model, coded)


@pytest.mark.parametrize(
    ("setting", "value"), [("group_size", -2), ("embedding_bits", 3), ("embedding_group", -1)]
)
def test_grid_that_does_not_exist_is_named(setting: str, value: int) -> None:
    with pytest.raises(ConfigError, match=setting):
        make_settings(**{setting: value})
