"""Triton kernels against the codecs' own weights, in Triton's interpreter on the CPU; on a GPU where there is one."""

import importlib
from typing import Any

import pytest
import torch

from agent_forge import codecs
from agent_forge.kernels import gpu
from agent_forge.models import compressed

SHAPES = ((1, 1), (3, 7), (17, 65), (33, 127), (18, 333))
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ternary", {"group": 64}), ("ternary", {"group": 20}), ("ternary", {"group": 7}),
    ("intk", {"bits": 2, "group": 64}), ("intk", {"bits": 3, "group": 13, "asymmetric": False}),
    ("intk", {"bits": 4, "group": 128}), ("intk", {"bits": 8, "group": 32}), ("intk", {"bits": 8, "group": 0}),
    ("vptq", {"vector": 4, "iterations": 1}), ("vptq", {"vector": 3, "codebook": 100, "iterations": 1}),
    ("waterfill", {"step": 0.1}),
]  # fmt: skip


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Return where to compute, with the kernels built for it."""
    pytest.importorskip("triton", reason="Triton is not installed here: it comes with the CUDA builds of torch")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    monkeypatch.setenv("TRITON_INTERPRET", "0" if request.param == "cuda" else "1")
    from agent_forge.kernels import triton_kernels

    importlib.reload(triton_kernels)
    monkeypatch.setattr(gpu, "usable", lambda _: True)
    return torch.device("cuda" if request.param == "cuda" else "cpu")


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double().cpu() - expected).norm() / expected.norm().clamp_min(1e-12))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{n}-{s}" for n, s in CASES])
def test_products_agree_with_float64_to_1e_3_at_every_odd_shape(number: int, device: torch.device) -> None:
    codec, settings = CASES[number]
    generator = torch.Generator().manual_seed(number)
    for rows, columns in SHAPES:
        coded = codecs.encode(codec, torch.randn(rows, columns, generator=generator), settings)
        compact = {name: tensor.to(device) for name, tensor in codecs.unpack(coded).items()}
        made = gpu.from_compact(codec, compact, coded.meta, coded.shape)
        assert made is not None
        for tokens, dtype in ((0, torch.float32), (1, torch.float32), (3, torch.bfloat16)):
            x = torch.randn(tokens, columns, generator=generator).to(dtype)
            found = made.multiply(x.to(device))
            assert found.shape == (tokens, rows)
            assert relative(found, x.double() @ codecs.decode(coded).double().T) <= 1e-3, (rows, columns, tokens)


def test_scales_of_columns_are_multiplied_in(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 65, generator=generator) * torch.logspace(-2, 2, 65)
    coded = codecs.encode("waterfill", torch.randn(20, 65, generator=generator), {"step": 0.1}, inputs.T @ inputs / 300)
    assert len(set(coded.parts["c"].tolist())) > 10
    compact = {name: tensor.to(device) for name, tensor in codecs.unpack(coded).items()}
    made = gpu.from_compact("waterfill", compact, coded.meta, coded.shape)
    assert made is not None
    x = inputs[:4]
    assert relative(made.multiply(x.to(device)), x.double() @ codecs.decode(coded).double().T) <= 1e-5


def test_the_kernels_compile_to_machine_code_of_a_gpu_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton", reason="Triton is not installed here")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # unset, it warns of a default to come
    from agent_forge.kernels import triton_kernels

    importlib.reload(triton_kernels)
    numbers = dict.fromkeys(("rows", "columns", "groups", "group", "width", "positions"), "i32")
    pointers = {
        "x": "*bf16",
        "codes": "*u8",
        "zeros": "*u8",
        "indices": "*u8",
        "scales": "*fp32",
        "codebook": "*fp32",
        "out": "*fp32",
    }
    for kernel, constants in (
        (triton_kernels.codes_kernel, {"BITS": 2, "BLOCK_ROWS": gpu.BLOCK_ROWS, "BLOCK_BYTES": gpu.BLOCK_BYTES}),
        (
            triton_kernels.vectors_kernel,
            {"VECTOR": 4, "BLOCK_ROWS": gpu.BLOCK_ROWS, "BLOCK_POSITIONS": gpu.BLOCK_POSITIONS},
        ),
    ):
        types = {**pointers, **numbers, **dict.fromkeys(constants, "constexpr")}
        signature = {name: types[name] for name in kernel.arg_names}
        made = triton.compile(
            ASTSource(fn=kernel, signature=signature, constexprs=constants), target=GPUTarget("cuda", 90, 32)
        )
        assert len(made.asm["cubin"]) > 1000


@pytest.mark.parametrize(("codec", "bytes_a_weight"), [("ternary", 0.25), ("intk", 0.5), ("waterfill", 1.0)])
def test_codes_stay_packed(codec: str, bytes_a_weight: float) -> None:
    settings = {"ternary": {"group": 64}, "intk": {"bits": 4, "group": 64}, "waterfill": {"step": 0.5}}[codec]
    coded = codecs.encode(codec, torch.randn(32, 128, generator=torch.Generator().manual_seed(0)), settings)
    made = gpu.from_compact(codec, codecs.unpack(coded), coded.meta, coded.shape)
    assert made is not None
    assert made.codes.numel() == bytes_a_weight * 32 * 128


def test_a_codec_without_a_kernel_has_none() -> None:
    coded = codecs.encode("raw", torch.ones(2, 2), {})
    assert gpu.from_compact("raw", codecs.unpack(coded), coded.meta, coded.shape) is None


@pytest.mark.parametrize("activation_bits", [0, 8])
def test_a_compressed_layer_multiplies_by_triton_where_it_is_usable_and_densely_for_a_batch(
    activation_bits: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    coded = codecs.encode("intk", torch.randn(20, 33, generator=generator), {"bits": 4, "group": 16})
    layer = compressed.CompressedLinear(33, 20, True, activation_bits=activation_bits)
    layer.bias = torch.nn.Parameter(torch.randn(20, generator=generator))
    layer.open("layer", coded)
    layer.to(device)
    monkeypatch.setattr(compressed.CompressedLinear, "_packed_for", lambda *_: None)
    few, many = (torch.randn(1, n, 33, generator=generator).to(device) for n in (2, gpu.FEW_TOKENS + 1))
    calls: list[int] = []
    multiply = gpu.DeviceMatrix.multiply
    monkeypatch.setattr(gpu.DeviceMatrix, "multiply", lambda m, x: (calls.append(len(x)), multiply(m, x))[1])
    with torch.no_grad():
        found = layer(few), layer(many)
        monkeypatch.setattr(gpu, "usable", lambda _: False)
        expected = layer(few), layer(many)
    assert calls == [2]
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other.double().cpu()) <= 1e-5
    layer(few)
    assert calls == [2]
