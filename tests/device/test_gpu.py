"""A GPU against the CPU, to stated tolerances.

On the CPU each piece is held against itself, so that none lies dead.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from agent_forge import codecs, models
from agent_forge.anatomy import chunks
from agent_forge.evaluate import engine
from agent_forge.models import compressed
from agent_forge.phases.bitnet.compensate import Rounding, compensate, output_error
from agent_forge.phases.compress import measure
from tests.device.test_pretend_codecs import SETTINGS

VOCABULARY = 512
GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)
on_both = pytest.mark.parametrize("device", ["cpu", GPU])


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Keep float32 products at full precision: tolerances below are of orders of summation, not of
    TF32.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128,
             "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "initializer_range": 0.1} | changes  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**shape)).eval()


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def calibrated() -> tuple[Tensor, Tensor, Tensor]:
    """Return a matrix (48, 64), its inputs' second moments, and the importance of its rows."""
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (
        torch.randn(48, 64, generator=generator),
        torch.randn(400, 64, generator=generator),
    )
    importance = torch.rand(48, generator=generator) + 0.5
    return weight, inputs.T @ inputs / 400, importance / importance.mean()


@on_both
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_a_codec_on_the_device_loses_what_it_loses_on_the_cpu(
    device: str, name: str, settings: dict[str, Any]
) -> None:
    # A rounding that falls the other way changes codes after it: errors and sizes agree to 2%, not
    # bytes.
    expected = codecs.encode(name, *_with(calibrated(), settings))
    there = [tensor.to(device) for tensor in calibrated()]
    coded, decoded = codecs.encode_and_decode(name, there[0], settings, *there[1:])
    assert decoded.device.type == device
    assert coded.relative_error == pytest.approx(expected.relative_error, rel=0.02, abs=1e-7)
    assert len(coded.data) == pytest.approx(len(expected.data), rel=0.02)
    # The same bytes give the same weights on both.
    torch.testing.assert_close(decoded.cpu(), codecs.decode(coded), rtol=1e-6, atol=1e-7)


def _with(tensors: tuple[Tensor, Tensor, Tensor], settings: dict[str, Any]) -> tuple[Any, ...]:
    return tensors[0], settings, *tensors[1:]


@on_both
def test_a_compensated_ternary_start_leaves_the_error_of_the_cpu(device: str) -> None:
    weight, hessian, _ = calibrated()

    def error(place: str, seen: Tensor) -> float:
        latents, _ = compensate(weight.to(place), seen.to(place), 16, Rounding(0.01, sweeps=2))
        assert latents.device.type == place
        return output_error(weight, latents.cpu(), hessian, 16)

    assert error(device, hessian) == pytest.approx(error("cpu", hessian), rel=0.02)
    assert error(device, hessian) < error("cpu", torch.eye(64))


@on_both
def test_gradients_of_a_bfloat16_step_point_where_float32_points(device: str) -> None:
    batch = ids(4, 48)

    def gradient(place: str, dtype: torch.dtype) -> tuple[float, Tensor]:
        model = llama().to(place)
        with torch.autocast(place, dtype=dtype, enabled=dtype != torch.float32):
            loss = model(input_ids=batch.to(place), labels=batch.to(place)).loss
        loss.backward()
        return float(loss.detach()), torch.cat(
            [p.grad.flatten().float().cpu() for p in model.parameters()]
        )

    loss, there = gradient(device, torch.bfloat16)
    expected, here = gradient("cpu", torch.float32)
    assert loss == pytest.approx(expected, rel=0.01)
    assert float(torch.cosine_similarity(there, here, dim=0)) > 0.999
    assert float(there.norm()) == pytest.approx(float(here.norm()), rel=0.02)


@on_both
@pytest.mark.parametrize("rows", [1, 5])
def test_tokens_of_the_captured_step_are_those_of_the_growing_cache(device: str, rows: int) -> None:
    model = llama().to(device)
    prompts = [row[: 3 + 2 * i].tolist() for i, row in enumerate(ids(rows, 12))]
    settings: dict[str, Any] = {"max_new_tokens": 24, "stop_ids": [3]}
    captured = models.generate(model, prompts, models.Decoding(static=True, **settings))
    growing = models.generate(model, prompts, models.Decoding(static=False, **settings))
    # A tie may fall the other way where kernels add in another order: at most one of several rows,
    # never on the CPU.
    assert sum(a != b for a, b in zip(captured, growing, strict=True)) <= (
        device != "cpu" and rows > 1
    )
    assert any(captured)


PACKED: list[tuple[str, dict[str, Any]]] = [
    ("ternary", {"group": 32}), ("intk", {"bits": 4, "group": 32}), ("waterfill", {"step": 0.1}),
    ("vptq", {"codebook": 16}),
]  # fmt: skip


@on_both
@pytest.mark.parametrize(("codec", "settings"), PACKED)
@pytest.mark.parametrize("tokens", [1, 40])
def test_a_packed_layer_multiplies_as_its_weights_do(
    device: str, codec: str, settings: dict[str, Any], tokens: int
) -> None:
    name, model = "model.layers.0.mlp.up_proj", llama()
    coded = codecs.encode(codec, model.get_submodule(name).weight.detach(), settings)
    layer = compressed.compress(model, {name: coded}).to(device).get_submodule(name)
    x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        product = layer(x.to(device)).cpu()
    # Few tokens go through Triton on a GPU, many through a dense weight.
    expected = x.double() @ codecs.decode(coded).double().T
    assert float((product.double() - expected).norm() / expected.norm()) < 1e-3


@on_both
def test_scores_of_evaluation_and_of_compress_are_those_of_the_cpu(device: str) -> None:
    rows = [(row.tolist(), [False] * 4 + [True] * 20) for row in ids(6, 24)]
    windows = {"text": (ids(5, 24, seed=1),) * 2}
    expected, on_device = llama(), llama().to(device)
    torch.testing.assert_close(
        torch.from_numpy(engine.row_nll(on_device, rows)),
        torch.from_numpy(engine.row_nll(expected, rows)),
        rtol=1e-4,
        atol=0,
    )
    there, here = (
        measure.losses(on_device, windows)["text"],
        measure.losses(expected, windows)["text"],
    )
    torch.testing.assert_close(there[:, 0], here[:, 0], rtol=1e-4, atol=1e-5)
    assert torch.equal(there[:, 2], here[:, 2])
    assert float((there[:, 1] == here[:, 1]).float().mean()) > 0.98


@on_both
def test_scoring_in_compress_stays_within_its_share_of_free_memory(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama(vocab_size=4096).to(device)
    windows = {"text": (ids(64, 128),) * 2}
    logits = 64 * 128 * 4096
    monkeypatch.setattr(measure, "CPU_LOGITS", logits // 16)
    monkeypatch.setattr(
        chunks,
        "free_bytes",
        lambda _: int(chunks.BYTES_PER_ENTRY * logits / 16 / chunks.SHARE_OF_FREE),
    )
    monkeypatch.setattr(chunks, "CPU_ENTRIES", 1)
    chunks.rows_at_once.cache_clear()
    sizes: list[int] = []
    model.register_forward_hook(lambda *call: sizes.append(call[2].logits.numel()))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    measure.losses(model, windows)
    chunks.rows_at_once.cache_clear()
    assert max(sizes) <= logits // 16
    assert sum(sizes) == logits
    if device == "cuda":
        assert torch.cuda.max_memory_allocated() - before < chunks.BYTES_PER_ENTRY * logits // 16
