"""The packed engine against transformers on one checkpoint: logits, generation, refusals, files."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agent_forge import codecs, models, runtime
from agent_forge.core import compiled
from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.core.seeds import numpy_generator
from agent_forge.kernels import build
from agent_forge.models import compressed
from agent_forge.models.ternary import TernarySettings, ternarise
from agent_forge.runtime import loading
from agent_forge.runtime.causal import PackedCausalLM, open_model
from agent_forge.runtime.shape import UnsupportedModelError

torch.set_num_threads(1)
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "initializer_range": 0.3,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
FACTORS = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.5, 3.0, 2.0, 4.0],
    "attention_factor": 1.0, "long_factor": [1.0, 1.5, 3.0, 2.0, 4.0],
    "original_max_position_embeddings": 64,
}  # fmt: skip
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "biased": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "wide heads": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=32)),
    "llama3 positions": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "linear positions": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
        )
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "a window as long as the context": lambda: MistralForCausalLM(
        MistralConfig(**SIZES, sliding_window=SIZES["max_position_embeddings"])
    ),
    "factors of positions": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=FACTORS)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
}
RATES: dict[str, dict[str, Any]] = {
    "ternary": {"group": 16}, "intk": {"bits": 4, "group": 16},
    "vptq": {"vector": 4, "iterations": 1}, "raw": {"dtype": "bfloat16"}, "hyper": {},
    "seedlm": {"seeds": 16}, "waterfill": {"step": 0.1},
}  # fmt: skip
IDS = np.random.default_rng(0).integers(0, 96, 45).tolist()  # longer than one chunk of the engine


@pytest.fixture(params=build.available())
def each_build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(compiled.BUILD, request.param)
    return str(request.param)


def made(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms of 1 and biases of 0 would not show whether they are read.
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif "embed" in name:
                parameter.mul_(3)
    return model


def coded_as(model: PreTrainedModel, codec: str) -> PreTrainedModel:
    """Code every matrix with one codec; the embedding with 8-bit integers."""
    coded = {}
    for name, weight in compressed.coded_tensors(model).items():
        embedding = "embed" in name
        coded[name] = codecs.encode(
            "intk" if embedding else codec,
            weight,
            {"bits": 8, "group": 0} if embedding else RATES[codec],
        )
    return compressed.compress(model, coded)


@torch.no_grad()
def reference(path: Path, ids: list[int] = IDS) -> Any:
    return models.load(path)(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()


def relative(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def compressed_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a compressed ternary Llama whose activations are rounded to int8."""
    path = tmp_path_factory.mktemp("packed") / "ternary"
    model = made("tied")
    ternarise(model, TernarySettings(group_size=16, activation_bits=8, packing="two_bit", skip=[]))
    models.save(coded_as(model, "ternary"), None, path)
    return path


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("each_build")
def test_float_checkpoints_of_every_family_give_the_logits_of_transformers(
    family: str, tmp_path: Path
) -> None:
    models.save(made(family), None, tmp_path)
    packed, expected = runtime.load(tmp_path, threads=1), reference(tmp_path)
    assert relative(packed.logits(IDS), expected) <= 1e-5
    cache = packed.new_cache()
    assert (
        relative(np.concatenate([packed.logits([token], cache) for token in IDS]), expected) <= 1e-5
    )


@pytest.mark.parametrize("codec", RATES)
@pytest.mark.usefixtures("each_build")
def test_compressed_checkpoints_of_every_codec_give_the_logits_of_transformers(
    codec: str, tmp_path: Path
) -> None:
    models.save(coded_as(made("biased" if codec == "intk" else "llama"), codec), None, tmp_path)
    packed = runtime.load(tmp_path, threads=1)
    assert relative(packed.logits(IDS), reference(tmp_path)) <= (
        5e-3 if codec in ("hyper", "seedlm") else 1e-3
    )
    assert len(packed.notes) == (15 if codec in ("hyper", "seedlm") else 0)


@pytest.mark.parametrize(("settings", "notes"), [({"residual": 16}, 0), ({"outliers": 0.1}, 14)])
def test_vptq_keeps_a_residual_packed_and_tells_of_outlier_columns(
    settings: dict[str, Any], notes: int, tmp_path: Path
) -> None:
    model = made("llama")
    coded = {
        name: codecs.encode("vptq", weight, {"iterations": 1, **settings})
        if "layers" in name
        else codecs.encode("intk", weight, {"bits": 8, "group": 0})
        for name, weight in compressed.coded_tensors(model).items()
    }
    models.save(compressed.compress(model, coded), None, tmp_path)
    packed = runtime.load(tmp_path, threads=1)
    assert relative(packed.logits(IDS), reference(tmp_path)) <= (5e-3 if notes else 1e-3)
    assert [note.partition(": ")[2] for note in packed.notes] == [
        "vptq with outlier columns has no packed layout, kept as float16 with one scale per row"
    ] * notes


def water_filled(model: PreTrainedModel) -> PreTrainedModel:
    """Code every matrix, the embedding too, with steps of its own for rows and columns.

    Q, k and v share their columns.
    """
    generator, coded = torch.Generator().manual_seed(2), {}
    hessians: dict[str, torch.Tensor] = {}
    for name, weight in compressed.coded_tensors(model).items():
        x = torch.randn(200, weight.shape[1], generator=generator) * (
            torch.rand(weight.shape[1], generator=generator) + 0.2
        )
        layer, _, last = name.rpartition(".")
        hessian = hessians.setdefault(
            layer + ("" if last != "o_proj" else last) + str(weight.shape[1]), x.T @ x / 200
        )
        importance = torch.rand(len(weight), generator=generator) + 0.1
        coded[name] = codecs.encode("waterfill", weight, {"step": 0.05}, hessian, importance)
    return compressed.compress(model, coded)


@pytest.mark.parametrize("activation_bits", [0, 8])
@pytest.mark.usefixtures("each_build")
def test_a_water_filled_model_with_its_embedding_and_tied_head_gives_the_logits_of_transformers(
    activation_bits: int, tmp_path: Path
) -> None:
    model = made("tied")
    if activation_bits:
        ternarise(
            model, TernarySettings(group_size=16, activation_bits=8, packing="two_bit", skip=[])
        )
    models.save(water_filled(model), None, tmp_path / "model")
    packed = runtime.load(tmp_path / "model", threads=1)
    assert packed.notes == []
    assert packed.matrices["head"] is packed.matrices["embedding"]
    kinds = {one.layout.kind for one in packed.matrices.values()}
    assert kinds == {"mixed"}
    q, k, o = (packed.matrices[f"0.{name}"].arrays["column_scales"] for name in "qko")
    assert q is k
    assert q is not o
    # A float on the other side of a rounding border moves one activation by 1/127.
    expected = reference(tmp_path / "model")
    assert relative(packed.logits(IDS), expected) <= (0.02 if activation_bits else 1e-3)
    single = packed.new_cache()
    one_by_one = np.concatenate([packed.logits([token], single) for token in IDS])
    assert relative(one_by_one, expected) <= (0.02 if activation_bits else 1e-3)
    loading.save(packed, tmp_path / "model.forge")
    mapped = runtime.load(tmp_path / "model.forge", threads=1)
    assert np.array_equal(mapped.logits(IDS), packed.logits(IDS))
    assert mapped.matrices["0.q"].arrays["order"] is mapped.matrices["0.k"].arrays["order"]


@pytest.mark.usefixtures("each_build")
def test_rounded_activations_are_rounded_alike(compressed_llama: Path) -> None:
    logits, expected = (
        runtime.load(compressed_llama, threads=1).logits(IDS),
        reference(compressed_llama),
    )
    # A float that falls on the other side of a rounding border moves one activation by one step of
    # 1/127.
    assert relative(logits, expected) <= 0.02
    assert np.median(np.abs(logits - expected) / np.abs(expected).max()) <= 1e-4


@pytest.mark.usefixtures("each_build")
def test_ternary_latents_give_the_logits_of_their_layers(tmp_path: Path) -> None:
    model = made("llama")
    ternarise(
        model, TernarySettings(group_size=16, activation_bits=0, packing="two_bit", skip=["v_proj"])
    )
    models.save(model, None, tmp_path)
    packed = runtime.load(tmp_path, threads=1)
    assert packed.matrices["0.q"].layout.bits == 2
    assert packed.matrices["0.v"].layout.kind == "floats"
    assert relative(packed.logits(IDS), reference(tmp_path)) <= 1e-3


@pytest.mark.parametrize("family", ["llama", "tied"])
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 24), (2, 0), (2, 24)])
@pytest.mark.usefixtures("each_build")
def test_rounded_embeddings_and_heads_of_ternary_latents_are_run_as_they_were_trained(
    bits: int, group: int, family: str, tmp_path: Path
) -> None:
    model, settings = made(family), TernarySettings(
        group_size=16, activation_bits=0, packing="two_bit", skip=["lm_head"],
        embedding_bits=bits, embedding_group=group,
    )  # fmt: skip
    ternarise(model, settings)
    models.save(model, None, tmp_path)
    packed = runtime.load(tmp_path, threads=1)
    assert packed.matrices["embedding"].layout.bits == bits
    assert (packed.matrices["head"] is packed.matrices["embedding"]) == (family == "tied")
    expected = reference(tmp_path)
    assert relative(packed.logits(IDS), expected) <= 1e-3
    loading.save(packed, tmp_path / "model.forge")
    assert relative(runtime.load(tmp_path / "model.forge", threads=1).logits(IDS), expected) <= 1e-3


@pytest.mark.usefixtures("each_build")
def test_tokens_one_by_one_give_the_logits_of_all_at_once(compressed_llama: Path) -> None:
    packed = runtime.load(compressed_llama, threads=1)
    cache = packed.new_cache(4)  # the cache grows on the way
    single = np.concatenate([packed.logits([token], cache) for token in IDS])
    assert cache.length == len(IDS)
    assert relative(single, packed.logits(IDS)) <= 0.02
    assert (single.argmax(1) == packed.logits(IDS).argmax(1)).mean() > 0.9


def test_threads_change_no_bit_of_the_logits(compressed_llama: Path) -> None:
    one, three = (runtime.load(compressed_llama, threads=threads) for threads in (1, 3))
    assert np.array_equal(one.logits(IDS), three.logits(IDS))
    assert one.generate(IDS[:5], max_new_tokens=40) == three.generate(IDS[:5], max_new_tokens=40)


def test_many_rounds_on_more_threads_than_cores_end_and_agree(compressed_llama: Path) -> None:
    many, one = (runtime.load(compressed_llama, threads=threads) for threads in (9, 1))
    for _ in range(3):
        assert many.generate(IDS[:3], max_new_tokens=60) == one.generate(IDS[:3], max_new_tokens=60)


@pytest.mark.parametrize("codec", ["intk", "vptq", "raw"])
@pytest.mark.usefixtures("each_build")
def test_generation_is_that_of_torch_up_to_ties(codec: str, tmp_path: Path) -> None:
    models.save(coded_as(made("llama"), codec), None, tmp_path)
    prompts = [IDS[:7], IDS[7:9], IDS[9:20], IDS[20:27]]
    settings: dict[str, Any] = {"max_new_tokens": 12, "stop_ids": []}
    packed, dense = open_model(tmp_path, engine="packed"), models.load(tmp_path)
    error = 5e-3 if codec in ("hyper", "seedlm") else 1e-3
    greedy = models.generate(packed, prompts, models.Decoding(**settings))  # type: ignore[arg-type]
    for prompt, tokens in zip(prompts, greedy, strict=True):
        assert len(tokens) == 12
        for logits, token in zip(next_logits(dense, prompt, tokens), tokens, strict=True):
            assert logits[token] >= logits.max() - 2 * error * logits.norm()
    alone = runtime.load(tmp_path).generate(prompts[0], max_new_tokens=12)
    assert alone == greedy[0]
    seed, top_p = 3, 0.9
    sampled = models.generate(
        packed, prompts, models.Decoding(**settings, temperature=1.0, top_p=top_p, seed=seed)
    )  # type: ignore[arg-type]
    for number, (prompt, tokens) in enumerate(zip(prompts, sampled, strict=True)):
        draws = numpy_generator(seed, "generate", number).random(12)
        for logits, token, draw in zip(
            next_logits(dense, prompt, tokens), tokens, draws, strict=True
        ):
            assert may_be_drawn(logits, token, float(draw), top_p, float(2 * error * logits.norm()))


@torch.no_grad()
def next_logits(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """Return the logits from which each of `tokens` was chosen, (tokens, vocabulary): greedy
    engines may part at a tie.
    """
    return (
        model(input_ids=torch.tensor([prompt + tokens]), use_cache=False)
        .logits[0, len(prompt) - 1 : -1]
        .double()
    )


def may_be_drawn(
    logits: torch.Tensor, token: int, draw: float, top_p: float, tolerance: float
) -> bool:
    """Return whether logits that differ by at most `tolerance` can give `token` for this draw.

    The token lies where the cumulated probability passes the draw; an error moves that border by
    its share of the probability, and exchanges tokens of nearly equal logits.
    """
    probabilities, order = torch.softmax(logits, -1).sort(descending=True)
    ends = probabilities.cumsum(0)
    mass = float(ends[int((ends - probabilities < top_p).sum()) - 1])
    moved = 1 - math.exp(-2 * tolerance)
    there = (ends - probabilities <= draw * mass + moved) & (ends >= draw * mass - moved)
    return bool(((logits[order[there]] - logits[token]).abs() <= tolerance).any())


def test_generation_stops_before_a_stop_token_and_tells_of_each(compressed_llama: Path) -> None:
    packed = runtime.load(compressed_llama, threads=1)
    free = packed.generate(IDS[:4], max_new_tokens=10)
    heard: list[int] = []
    assert (
        packed.generate(IDS[:4], max_new_tokens=10, stop_ids=[free[3]], on_token=heard.append)
        == free[: free.index(free[3])]
    )
    assert heard == free[: free.index(free[3])]


@pytest.mark.usefixtures("each_build")
def test_a_packed_file_gives_the_same_logits_and_a_flipped_bit_is_named(
    compressed_llama: Path, tmp_path: Path
) -> None:
    direct = runtime.load(compressed_llama, threads=1)
    size = loading.save(direct, tmp_path / "model.forge")
    assert size == (tmp_path / "model.forge").stat().st_size
    mapped = runtime.load(tmp_path / "model.forge", threads=1)
    assert np.array_equal(mapped.logits(IDS), direct.logits(IDS))
    assert isinstance(mapped.matrices["0.q"].arrays["codes"].base, np.ndarray)
    assert all(m.arrays["codes"].ctypes.data % 64 == 0 for m in mapped.matrices.values())
    content = bytearray((tmp_path / "model.forge").read_bytes())
    content[-3] ^= 4
    (tmp_path / "bad.forge").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checksum of .* differs"):
        runtime.load(tmp_path / "bad.forge")
    with pytest.raises(CheckpointError, match="is not a packed file"):
        runtime.load(compressed_llama / "model.safetensors")


def test_a_damaged_payload_is_named(compressed_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((compressed_llama / "config.json").read_bytes())
    content = bytearray((compressed_llama / "model.safetensors").read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    name = "model.layers.1.mlp.up_proj.payload"
    content[8 + int.from_bytes(content[:8], "little") + header[name]["data_offsets"][1] - 1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"payload of model\.layers\.1\.mlp\.up_proj is damaged"
    ):
        runtime.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "cognate"}, "model type 'cognate'"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "rotary positions of type yarn",
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None},
            "rotary positions of type dynamic",
        ),
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding windows"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding windows"),
        ({"head_dim": 9}, "even heads"),
    ],
)
def test_what_it_would_compute_otherwise_is_refused_by_name(
    change: dict[str, Any], named: str, compressed_llama: Path, tmp_path: Path
) -> None:
    config = json.loads((compressed_llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UnsupportedModelError, match=named):
        runtime.load(tmp_path)


def test_a_matrix_of_another_shape_than_the_config_says_is_refused(
    compressed_llama: Path, tmp_path: Path
) -> None:
    config = json.loads((compressed_llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 80}))
    (tmp_path / "model.safetensors").write_bytes(
        (compressed_llama / "model.safetensors").read_bytes()
    )
    with pytest.raises(CheckpointError, match=r"0\.gate is 72 x 40, config\.json says 80 x 40"):
        runtime.load(tmp_path)


def test_ids_outside_the_vocabulary_are_refused(compressed_llama: Path) -> None:
    packed = runtime.load(compressed_llama, threads=1)
    for ids in ([], [96], [-1]):
        with pytest.raises(ConfigError, match="token ids must be 0 to 95"):
            packed.logits(ids)


@pytest.mark.skipif(
    build.available() == [compiled.PORTABLE], reason="no C compiler here: auto takes torch"
)
def test_auto_takes_the_packed_engine_only_where_it_is_meant(
    compressed_llama: Path, tmp_path: Path
) -> None:
    assert isinstance(open_model(compressed_llama), PackedCausalLM)
    assert isinstance(open_model(compressed_llama, engine="torch"), LlamaForCausalLM)
    models.save(made("llama"), None, tmp_path)
    assert isinstance(open_model(tmp_path), LlamaForCausalLM)
    assert isinstance(open_model(tmp_path, engine="packed"), PackedCausalLM)
    with pytest.raises(ConfigError, match="runs on the CPU"):
        open_model(tmp_path, engine="packed", device="meta")
    with pytest.raises(ConfigError, match="did you mean 'packed'"):
        open_model(tmp_path, engine="paked")


MEMORY = """
import sys, pathlib
sys.path.insert(0, sys.argv[2])
from agent_forge import runtime
model = runtime.load(sys.argv[1])
model.generate([1, 2, 3], max_new_tokens=4)
assert "torch" not in sys.modules, "a packed model needs no torch"
line = next(l for l in open("/proc/self/status") if l.startswith("VmRSS"))
print(int(line.split()[1]) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_resident_memory_stays_within_the_file_and_150_megabytes(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=2048, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4,
        num_attention_heads=16, num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    coded = {
        n: codecs.encode("intk", w, {"bits": 8, "group": 128})
        for n, w in compressed.coded_tensors(model).items()
    }
    models.save(compressed.compress(model, coded), None, tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 40e6
    root = str(Path(runtime.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), root],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= size + 150e6
