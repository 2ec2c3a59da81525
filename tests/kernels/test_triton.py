"""Triton kernels against the codecs' own weights, in Triton's interpreter on the CPU; on a GPU
where there is one.
"""

import os
import subprocess
import sys
from pathlib import Path
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
    ("intk", {"bits": 4, "group": 128}), ("intk", {"bits": 8, "group": 32}),
    ("intk", {"bits": 8, "group": 0}), ("vptq", {"vector": 4, "iterations": 1}),
    ("vptq", {"vector": 3, "codebook": 100, "iterations": 1}), ("waterfill", {"step": 0.1}),
]  # fmt: skip


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Return where to compute: a GPU where there is one."""
    pytest.importorskip(
        "triton", reason="Triton is not installed here: it comes with the CUDA builds of torch"
    )
    monkeypatch.setattr(gpu, "usable", lambda _: True)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def relative(product: torch.Tensor, expected: torch.Tensor) -> float:
    return float((product.double().cpu() - expected).norm() / expected.norm().clamp_min(1e-12))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{n}-{s}" for n, s in CASES])
def test_products_agree_with_float64_to_1e_3_at_every_odd_shape(
    number: int, device: torch.device
) -> None:
    codec, settings = CASES[number]
    generator = torch.Generator().manual_seed(number)
    for rows, columns in SHAPES:
        coded = codecs.encode(codec, torch.randn(rows, columns, generator=generator), settings)
        compact = {name: tensor.to(device) for name, tensor in codecs.unpack(coded).items()}
        matrix = gpu.from_compact(codec, compact, coded.meta, coded.shape)
        assert matrix is not None
        for tokens, dtype in ((0, torch.float32), (1, torch.float32), (3, torch.bfloat16)):
            x = torch.randn(tokens, columns, generator=generator).to(dtype)
            product = matrix.multiply(x.to(device))
            assert product.shape == (tokens, rows)
            assert relative(product, x.double() @ codecs.decode(coded).double().T) <= 1e-3, (
                rows,
                columns,
                tokens,
            )


def test_scales_of_columns_are_multiplied_in(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 65, generator=generator) * torch.logspace(-2, 2, 65)
    coded = codecs.encode(
        "waterfill",
        torch.randn(20, 65, generator=generator),
        {"step": 0.1},
        inputs.T @ inputs / 300,
    )
    assert len(set(coded.parts["c"].tolist())) > 10
    compact = {name: tensor.to(device) for name, tensor in codecs.unpack(coded).items()}
    matrix = gpu.from_compact("waterfill", compact, coded.meta, coded.shape)
    assert matrix is not None
    x = inputs[:4]
    assert (
        relative(matrix.multiply(x.to(device)), x.double() @ codecs.decode(coded).double().T)
        <= 1e-5
    )


COMPILE = """
import sys
sys.path.insert(0, sys.argv[1])
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from agent_forge.kernels import gpu, triton_kernels

numbers = dict.fromkeys(("rows", "columns", "groups", "group", "width", "positions"), "i32")
types = numbers | {"x": "*bf16", "codes": "*u8", "zeros": "*u8", "indices": "*u8"}
types |= dict.fromkeys(("scales", "codebook", "out"), "*fp32")
for kernel, constants in (
    (triton_kernels.codes_kernel, {"BITS": 2, "BLOCK_BYTES": gpu.BLOCK_BYTES}),
    (triton_kernels.vectors_kernel, {"VECTOR": 4, "BLOCK_POSITIONS": gpu.BLOCK_POSITIONS}),
):
    constants = constants | {"BLOCK_ROWS": gpu.BLOCK_ROWS}
    every = types | dict.fromkeys(constants, "constexpr")
    signature = {name: every[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    print(len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
"""


def test_the_kernels_compile_to_machine_code_of_a_gpu_that_need_not_be_here(tmp_path: Path) -> None:
    pytest.importorskip(
        "triton", reason="Triton is not installed here: it comes with the CUDA builds of torch"
    )
    # A process of its own: Triton either interprets or compiles, for as long as it is loaded.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE, str(Path(gpu.__file__).parents[2])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(int(size) > 1000 for size in done.stdout.split())
    assert len(done.stdout.split()) == 2


@pytest.mark.parametrize(
    ("codec", "bytes_per_weight"), [("ternary", 0.25), ("intk", 0.5), ("waterfill", 1.0)]
)
def test_codes_stay_packed(codec: str, bytes_per_weight: float) -> None:
    settings = {
        "ternary": {"group": 64},
        "intk": {"bits": 4, "group": 64},
        "waterfill": {"step": 0.5},
    }[codec]
    coded = codecs.encode(
        codec, torch.randn(32, 128, generator=torch.Generator().manual_seed(0)), settings
    )
    matrix = gpu.from_compact(codec, codecs.unpack(coded), coded.meta, coded.shape)
    assert matrix is not None
    assert matrix.codes.numel() == bytes_per_weight * 32 * 128


def test_a_codec_without_a_kernel_has_none() -> None:
    coded = codecs.encode("raw", torch.ones(2, 2), {})
    assert gpu.from_compact("raw", codecs.unpack(coded), coded.meta, coded.shape) is None
    for settings in ({"residual": 4}, {"outliers": 0.2}):
        coded = codecs.encode("vptq", torch.randn(4, 32), {"iterations": 1, **settings})
        assert gpu.from_compact("vptq", codecs.unpack(coded), coded.meta, coded.shape) is None


@pytest.mark.parametrize("activation_bits", [0, 8])
def test_a_compressed_layer_multiplies_by_triton_where_it_is_usable_and_densely_for_a_batch(
    activation_bits: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    coded = codecs.encode(
        "intk", torch.randn(20, 33, generator=generator), {"bits": 4, "group": 16}
    )
    layer = compressed.CompressedLinear(33, 20, True, activation_bits=activation_bits)
    layer.bias = torch.nn.Parameter(torch.randn(20, generator=generator))
    layer.open("layer", coded)
    layer.to(device)
    monkeypatch.setattr(compressed.CompressedLinear, "_packed_for", lambda *_: None)
    few, many = (
        torch.randn(1, n, 33, generator=generator).to(device) for n in (2, gpu.FEW_TOKENS + 1)
    )
    calls: list[int] = []
    multiply = gpu.DeviceMatrix.multiply
    monkeypatch.setattr(
        gpu.DeviceMatrix, "multiply", lambda m, x: (calls.append(len(x)), multiply(m, x))[1]
    )
    with torch.no_grad():
        outputs = layer(few), layer(many)
        monkeypatch.setattr(gpu, "usable", lambda _: False)
        expected = layer(few), layer(many)
    assert calls == [2]
    for one, other in zip(outputs, expected, strict=True):
        assert relative(one, other.double().cpu()) <= 1e-5
    layer(few)
    assert calls == [2]
