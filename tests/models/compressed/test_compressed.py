"""Compressed models give the outputs of their source, and plain transformers opens them."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from agent_forge import codecs, models
from agent_forge.codecs import ternary as ternary_codec
from agent_forge.codecs.payload import Payload
from agent_forge.core.errors import CheckpointError, PhaseError
from agent_forge.kernels import build, gpu
from agent_forge.models import compressed
from agent_forge.models.cognate import CognateConfig, CognateForCausalLM
from agent_forge.models.compressed import dense_weights, layers
from agent_forge.models.storage import quiet_transformers
from agent_forge.models.ternary import TernarySettings, ternarise
from agent_forge.models.thought import ThoughtForCausalLM

torch.set_num_threads(1)
IDS = torch.randint(0, 90, (2, 12), generator=torch.Generator().manual_seed(0))
CHANGES = {
    "raw": {"dtype": "float32"}, "intk": {"bits": 6, "group": 16}, "ternary": {"group": 16},
    "vptq": {"codebook": 16}, "hyper": {}, "seedlm": {"seeds": 64}, "waterfill": {},
}  # fmt: skip


def llama(*, tie: bool = False, bias: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=96, tie_word_embeddings=tie, mlp_bias=bias,
            attention_bias=bias,
        )
    ).eval()  # fmt: skip


def cognate() -> CognateForCausalLM:
    torch.manual_seed(0)
    return CognateForCausalLM(
        CognateConfig(
            vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_loops=2, memory_slots=16, memory_top_k=2, written_slots=4,
            halting_size=8, initializer_range=0.1,
        )
    ).eval()  # fmt: skip


def ternary_llama() -> LlamaForCausalLM:
    model = llama()
    ternarise(
        model, TernarySettings(group_size=16, activation_bits=8, packing="five_trits", skip=[])
    )
    return model


def thinking_ternary_cognate() -> PreTrainedModel:
    model = ThoughtForCausalLM.wrap(
        cognate(), start_ids=[1], end_ids=[2], thought_length=2, thoughts=1, temperature=1.0
    )
    ternarise(
        model, TernarySettings(group_size=16, activation_bits=8, packing="five_trits", skip=[])
    )
    return model.eval()


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "tied": lambda: llama(tie=True),
    "biased": lambda: llama(bias=True),
    "cognate": cognate,
    "ternary": ternary_llama,
    "thinking": thinking_ternary_cognate,
}


def lossless(model: nn.Module) -> dict[str, Payload]:
    """Return payloads that lose nothing: ternary where the weights are, raw float32 elsewhere."""
    coded = {}
    for name, tensor in compressed.coded_tensors(model).items():
        matrix = compressed.as_matrix(tensor)
        on_grid = ternary_codec.on_grid(matrix, 16) is not None
        coded[name] = codecs.encode(
            "ternary" if on_grid else "raw", matrix, {"group": 16} if on_grid else CHANGES["raw"]
        )
    return coded


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def opened(directory: Path) -> PreTrainedModel:
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(directory)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_lossless_codes_give_the_parents_logits_in_memory_and_from_disk(
    kind: str, tmp_path: Path
) -> None:
    model = MODELS[kind]()
    expected = logits(model)
    coded = lossless(model)
    if kind in ("ternary", "thinking"):
        assert sum(p.codec == "ternary" for p in coded.values()) > 10
    compressed.compress(model, coded)
    assert (logits(model) - expected).abs().max() <= 1e-5
    models.save(model, None, tmp_path / "one")
    again = opened(tmp_path / "one")
    assert (logits(again) - expected).abs().max() <= 1e-5
    assert not any(type(m) is nn.Linear for m in again.modules())
    models.save(again, None, tmp_path / "two")
    one, two = tmp_path / "one", tmp_path / "two"
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert again.config.quantization_config.to_dict() == model.config.quantization_config.to_dict()


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"group_size": -1}, {"embedding_bits": 4}, {"embedding_bits": 8, "skip": []},
    ],
)  # fmt: skip
def test_layers_that_round_and_are_not_coded_reload_as_they_were(
    changes: dict[str, object], tie: bool, tmp_path: Path
) -> None:
    """A plan may leave small layers out, as codec.min_weights does."""
    model = llama(tie=tie)
    plain = {"group_size": 16, "activation_bits": 8, "packing": "five_trits", "skip": ["lm_head"]}
    ternarise(model, TernarySettings(**{**plain, **changes}))  # type: ignore[arg-type]
    expected, name = logits(model), "model.layers.0.mlp.down_proj"
    coded = codecs.encode("raw", compressed.coded_tensors(model)[name], CHANGES["raw"])
    compressed.compress(model, {name: coded})
    assert torch.allclose(logits(model), expected, atol=1e-5)
    models.save(model, None, tmp_path)
    assert torch.allclose(logits(opened(tmp_path)), expected, atol=1e-5)


def test_an_uncoded_layer_that_normalises_its_input_is_refused() -> None:
    model = llama()
    plain = {"group_size": 16, "activation_bits": 8, "packing": "five_trits", "skip": ["lm_head"]}
    ternarise(model, TernarySettings(**plain, sub_norm=["o_proj"]))  # type: ignore[arg-type]
    name = "model.layers.0.mlp.down_proj"
    coded = codecs.encode("raw", compressed.coded_tensors(model)[name], CHANGES["raw"])
    with pytest.raises(PhaseError, match=r"normalise their input; .* linear\.sub_norm=\[\]"):
        compressed.compress(model, {name: coded})


@pytest.mark.parametrize("codec", sorted(CHANGES))
def test_a_reloaded_model_multiplies_with_what_the_codec_decodes(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "PACKED_TOKENS", 0)
    model = llama()
    coded = {
        n: codecs.encode(codec, t, CHANGES[codec])
        for n, t in compressed.coded_tensors(model).items()
    }
    dense = llama()
    for name, payload in coded.items():
        dense.get_submodule(name).weight.data.copy_(codecs.decode(payload))  # type: ignore[union-attr, operator]
    models.save(compressed.compress(model, coded), None, tmp_path)
    assert torch.allclose(logits(opened(tmp_path)), logits(dense), atol=1e-5)


def test_a_tied_head_is_stored_once_and_uses_the_embedding(tmp_path: Path) -> None:
    model = compressed.compress(llama(tie=True), lossless(llama(tie=True)))
    models.save(model, None, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if key.startswith("lm_head")]  # noqa: SIM118
    again = opened(tmp_path)
    assert torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)
    assert again.lm_head.packed_bytes() == 0


def test_stated_bytes_are_the_bytes_in_the_file(tmp_path: Path) -> None:
    model = compressed.compress(cognate(), lossless(cognate()))
    models.save(model, None, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    again = opened(tmp_path)
    for name, module in compressed.coded_modules(again).items():
        assert module.packed_bytes() == stored[f"{name}.payload"].numel()
    file_bytes = (tmp_path / "model.safetensors").stat().st_size
    assert models.deployable_bytes(again) == pytest.approx(file_bytes, rel=0.1)


def test_memory_holds_codes_and_no_dense_copy(tmp_path: Path) -> None:
    model = ternary_llama()
    compressed.compress(model, lossless(model))
    models.save(model, None, tmp_path)
    again = opened(tmp_path)
    for module in compressed.coded_modules(again).values():
        if module.codec is ternary_codec:
            rows, columns = module.shape
            # One int8 per weight, padding, scales and the payload.
            assert module.memory_bytes() < 2.2 * rows * columns
            before = module.memory_bytes()
            module.dense()
            assert module.memory_bytes() == before


def test_generation_with_a_cache_follows_the_parent(tmp_path: Path) -> None:
    model = cognate()
    prompts = [[3, 4, 5], [7, 8, 9, 10]]
    expected = models.generate(model, prompts, models.Decoding(max_new_tokens=6))
    models.save(compressed.compress(model, lossless(model)), None, tmp_path)
    assert (
        models.generate(models.load(tmp_path), prompts, models.Decoding(max_new_tokens=6))
        == expected
    )


def test_a_model_in_bfloat16_computes_in_bfloat16(tmp_path: Path) -> None:
    models.save(compressed.compress(llama(), lossless(llama())), None, tmp_path)
    model = models.load(tmp_path, dtype=torch.bfloat16)
    result = logits(model)
    assert result.dtype == torch.bfloat16
    assert torch.allclose(result.float(), logits(llama()), atol=0.05)


def test_a_damaged_payload_is_named(tmp_path: Path) -> None:
    models.save(compressed.compress(llama(), lossless(llama())), None, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    tensors[f"{name}.payload"][200] ^= 4
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{name} is damaged: its checksum differs"):
        models.load(tmp_path)


def test_a_config_that_names_another_models_tensors_is_refused(tmp_path: Path) -> None:
    models.save(compressed.compress(llama(), lossless(llama())), None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    entry = config["quantization_config"]["tensors"].pop("model.layers.0.mlp.up_proj")
    config["quantization_config"]["tensors"]["model.layers.0.mlp.sideways"] = entry
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"names the coded tensor model\.layers\.0\.mlp\.sideways"
    ):
        models.load(tmp_path)


def test_compressing_twice_or_an_unknown_tensor_is_refused() -> None:
    model = compressed.compress(llama(), lossless(llama()))
    with pytest.raises(PhaseError, match="compressed already"):
        compressed.compress(model, {})
    with pytest.raises(PhaseError, match="no matrix nowhere"):
        compressed.compress(llama(), {"nowhere": codecs.encode("raw", torch.ones(2, 2), {})})


def test_what_stayed_float_still_trains() -> None:
    model = compressed.compress(ternary_llama(), lossless(ternary_llama()))
    model.train()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    gradient = model.model.layers[0].input_layernorm.weight.grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("kind", sorted(MODELS))
@pytest.mark.parametrize("codec", ["intk", "vptq", "ternary"])
def test_a_few_tokens_through_the_kernels_give_the_logits_of_the_dense_weights(
    kind: str, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if build.library() is None:
        pytest.skip("no C compiler: there is one path only")
    model = MODELS[kind]()
    coded = {
        name: codecs.encode(codec, compressed.as_matrix(tensor), CHANGES[codec])
        for name, tensor in compressed.coded_tensors(model).items()
    }
    compressed.compress(model, coded)
    with monkeypatch.context() as patch:
        patch.setattr(layers, "PACKED_TOKENS", 0)
        expected = logits(model)
        assert not any(module._packed for module in compressed.coded_modules(model).values())
    result = logits(model)
    assert sum(bool(module._packed) for module in compressed.coded_modules(model).values()) > 10
    # Rounded activations may fall on the other side of a border: then one of them differs by 1/127.
    tolerance = 0.03 if kind in ("ternary", "thinking") else 1e-3
    assert (result - expected).norm() <= tolerance * expected.norm()


def test_the_matrix_for_an_accelerator_holds_the_codes_of_the_dense_weight() -> None:
    model = llama(tie=True)
    coded = {
        name: codecs.encode("waterfill", tensor, {})
        for name, tensor in compressed.coded_tensors(model).items()
    }
    compressed.compress(model, coded)
    modules = compressed.coded_modules(model)
    for module in modules.values():
        matrix = module.on_device()
        assert matrix is not None
        assert module.on_device() is matrix
        assert matrix.device == module.compact_device()
        steps = matrix.scales[..., None] * matrix.column_scales
        codes = matrix.codes.float() - matrix.zeros[..., None].float()
        torch.testing.assert_close((codes * steps)[:, 0, : matrix.columns], module.dense())
    assert model.lm_head.on_device() is model.get_input_embeddings().on_device()
    assert compressed.CompressedLinear(4, 4, bias=False).on_device() is None  # nothing is open yet


def test_an_accelerators_kernel_gets_few_tokens_without_gradients_and_its_bias_is_added(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stand-in for the kernel multiplies with the dense weight."""
    model = llama(bias=True)
    coded = {
        name: codecs.encode("waterfill", tensor, {})
        for name, tensor in compressed.coded_tensors(model).items()
    }
    compressed.compress(model, coded)
    layer = model.model.layers[0].mlp.up_proj
    layer.bias.data.normal_()
    rows: list[int] = []

    def multiply(x: Tensor) -> Tensor:
        rows.append(len(x))
        return x.float() @ layer.dense().T

    kernel = SimpleNamespace(multiply=multiply)
    monkeypatch.setattr(layers, "PACKED_TOKENS", 0)
    monkeypatch.setattr(gpu, "usable", lambda _: True)
    monkeypatch.setattr(compressed.CompressedLinear, "on_device", lambda _: kernel)
    for shape, used in (((2, 4, 32), [8]), ((1, 32), [1]), ((3, 3, 32), []), ((0, 32), [])):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for bias in (layer.bias, None):
            rows.clear()
            layer.bias = bias
            with torch.no_grad():
                result = layer(x)
            assert rows == used
            expected = nn.functional.linear(x, layer.dense(), bias)
            torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
            assert layer(x).shape == expected.shape  # Gradients take the dense weight.
            assert rows == used


@pytest.mark.parametrize(("spare", "held"), [(0, True), (-1, False)])
def test_generation_holds_dense_weights_where_four_times_their_bytes_are_free(
    spare: int, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that is faster with its codes keeps them; afterwards all layers do."""
    model = llama().to(torch.bfloat16)
    coded = {
        name: codecs.encode("waterfill", tensor.float(), {})
        for name, tensor in compressed.coded_tensors(model).items()
    }
    compressed.compress(model, coded)
    layers_of = [m for m in model.modules() if isinstance(m, compressed.CompressedLinear)]
    bytes_of_all = 2 * sum(m.in_features * m.out_features for m in layers_of)
    monkeypatch.setattr(
        compressed.CompressedLinear, "compact_device", lambda _: torch.device("cuda")
    )
    monkeypatch.setattr(dense_weights, "free_bytes", lambda _: 4 * bytes_of_all + spare)
    monkeypatch.setattr(gpu, "usable", lambda _: True)
    measured: list[int] = []

    def faster(matrix: object, weight: Tensor, rows: int) -> bool:
        assert matrix is not None
        measured.append(rows)
        return weight.shape[0] > 32

    monkeypatch.setattr(gpu, "dense_is_faster", faster)
    for rows, narrowest in (
        (gpu.FEW_TOKENS, 32),
        (gpu.FEW_TOKENS + 1, 0),
    ):  # many rows are not measured
        measured.clear()
        with compressed.decoding(model, rows):
            for layer in layers_of:
                if held and layer.out_features > narrowest:
                    assert layer.decoding_weight is not None
                    assert layer.decoding_weight.dtype == torch.bfloat16
                    expected = layer.dense().to(torch.bfloat16)
                    assert torch.equal(layer.decoding_weight, expected)
                else:
                    assert layer.decoding_weight is None
        assert measured == ([rows] * len(layers_of) if held and narrowest else [])
        assert all(layer.decoding_weight is None for layer in layers_of)


def test_gradients_and_batches_take_the_dense_path(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    compressed.compress(
        model,
        {
            n: codecs.encode("intk", w, CHANGES["intk"])
            for n, w in compressed.coded_tensors(model).items()
        },
    )
    packed_calls: list[int] = []

    def refuse(*_: object) -> None:
        packed_calls.append(1)

    # None stands for a machine without kernels, and then everything is dense: so the question
    # itself is counted.
    monkeypatch.setattr(compressed.CompressedLinear, "packed", refuse)
    model(input_ids=IDS, use_cache=False)
    with torch.no_grad():
        model(input_ids=torch.zeros(3, 33, dtype=torch.long), use_cache=False)
    assert not packed_calls
    with torch.no_grad():
        model(input_ids=IDS[:, :2], use_cache=False)
    assert packed_calls
