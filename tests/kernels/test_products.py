"""Packed products against float64, on every build that this machine can run, at odd shapes."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent_forge import codecs
from agent_forge.codecs import payload as payloads
from agent_forge.core import compiled
from agent_forge.core.errors import CheckpointError, ConfigError, PhaseError
from agent_forge.kernels import build, matrix, native

SHAPES = ((1, 1), (3, 7), (16, 64), (17, 65), (33, 127), (70, 200), (130, 333))
BATCHES = (1, 2, 3, 5, 8, 17, 33)
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ternary", {"group": 64}), ("ternary", {"group": 128}), ("ternary", {"group": 20}),
    ("intk", {"bits": 2, "group": 64}), ("intk", {"bits": 3, "group": 128, "asymmetric": False}),
    ("intk", {"bits": 4, "group": 128}), ("intk", {"bits": 4, "group": 13}),
    ("intk", {"bits": 8, "group": 32}), ("intk", {"bits": 8, "step": 0.1}),
    ("vptq", {"vector": 4, "iterations": 1}),
    ("vptq", {"vector": 3, "codebook": 100, "iterations": 1}), ("raw", {}),
    ("raw", {"dtype": "float32"}), ("raw", {"dtype": "float16"}), ("hyper", {}),
    ("waterfill", {"step": 0.02}), ("waterfill", {"step": 1.5}),
    ("vptq", {"vector": 4, "residual": 64, "iterations": 1}),
    ("vptq", {"vector": 1, "codebook": 16, "iterations": 1}),
    ("vptq", {"vector": 9, "residual": 256, "iterations": 1}),
    ("vptq", {"outliers": 0.1, "iterations": 1}),
]  # fmt: skip


@pytest.fixture(params=build.available())
def each_build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(compiled.BUILD, request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def coded() -> dict[tuple[int, int, int], tuple[Any, Any]]:
    """Return (payload, decoded float64) of every case and shape, made once for all builds."""
    payloads_of = {}
    generator = torch.Generator().manual_seed(0)
    for number, (name, settings) in enumerate(CASES):
        for rows, columns in SHAPES:
            payload = codecs.encode(name, torch.randn(rows, columns, generator=generator), settings)
            payloads_of[number, rows, columns] = payload, codecs.decode(payload).double().numpy()
    return payloads_of


def relative(product: Any, expected: Any) -> float:
    return float(np.linalg.norm(product - expected) / max(np.linalg.norm(expected), 1e-12))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{n}-{s}" for n, s in CASES])
@pytest.mark.usefixtures("each_build")
def test_products_agree_with_float64_to_1e_3_at_every_odd_shape(coded: Any, number: int) -> None:
    rng = np.random.default_rng(number)
    for rows, columns in SHAPES:
        payload, dense = coded[number, rows, columns]
        for bits in (0, 8):
            packed = matrix.from_payload(payload, bits)
            for batch in BATCHES:
                x = rng.normal(size=(batch, columns)).astype(np.float32) * 10 ** rng.uniform(-3, 3)
                expected = matrix.round_activations(x, bits).astype(np.float64) @ dense.T
                assert relative(packed.multiply(x, 1), expected) <= 1e-3, (
                    rows,
                    columns,
                    batch,
                    bits,
                )


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{n}-{s}" for n, s in CASES])
@pytest.mark.usefixtures("each_build")
def test_rows_are_the_codecs_own(coded: Any, number: int) -> None:
    # Codecs without a layout go through float16 with one scale per row: 11 bits of mantissa.
    without_layout = CASES[number][0] == "hyper" or "outliers" in CASES[number][1]
    tolerance = 6e-4 if without_layout else 1e-6
    for rows, columns in SHAPES:
        payload, dense = coded[number, rows, columns]
        picked = np.array([rows - 1, 0, rows // 2])
        assert np.allclose(
            matrix.from_payload(payload).take(picked), dense[picked], rtol=tolerance, atol=1e-6
        )


@pytest.mark.usefixtures("each_build")
def test_ternary_with_int8_activations_is_an_exact_integer_product() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, (48, 256)).astype(np.uint8)
    ones = np.full((48, 2), 0x3F80, np.uint16)  # 1.0 in bfloat16
    packed = matrix.from_codes(codes, ones, "bfloat16", group=128, zero=1, activation_bits=8)
    x = rng.integers(-127, 128, (9, 256)).astype(np.float32)
    x[:, 0] = 127  # a step of 1
    assert np.array_equal(packed.multiply(x, 1), x @ (codes.astype(np.float32) - 1).T)


@pytest.mark.usefixtures("each_build")
def test_activations_of_up_to_15_bits_are_rounded_as_their_layer_does() -> None:
    weight = torch.randn(20, 80, generator=torch.Generator().manual_seed(1))
    payload = codecs.encode("intk", weight, {"bits": 4, "group": 16})
    x = np.random.default_rng(1).normal(size=(3, 80)).astype(np.float32)
    for bits in (2, 4, 9, 12, 15):
        expected = (
            matrix.round_activations(x, bits).astype(np.float64)
            @ codecs.decode(payload).double().numpy().T
        )
        assert relative(matrix.from_payload(payload, bits).multiply(x, 1), expected) <= 1e-5
    with pytest.raises(PhaseError, match="up to 15 bits, got 16"):
        matrix.from_payload(payload, 16)


@pytest.mark.usefixtures("each_build")
def test_threads_change_no_bit(coded: Any) -> None:
    x = np.random.default_rng(2).normal(size=(35, 333)).astype(np.float32)
    for number in range(len(CASES)):
        packed = matrix.from_payload(coded[number, 130, 333][0], 8)
        for batch in (1, 35):
            assert np.array_equal(packed.multiply(x[:batch], 1), packed.multiply(x[:batch], 3)), (
                CASES[number]
            )


@pytest.mark.usefixtures("each_build")
def test_a_bias_is_added_once(coded: Any) -> None:
    payload, dense = coded[5, 70, 200]
    bias = np.arange(70, dtype=np.float32)
    x = np.random.default_rng(3).normal(size=(4, 200)).astype(np.float32)
    assert (
        relative(matrix.from_payload(payload).with_bias(bias).multiply(x, 2), x @ dense.T + bias)
        <= 1e-3
    )


@pytest.mark.usefixtures("each_build")
def test_a_zero_token_gives_zeros(coded: Any) -> None:
    for number in range(len(CASES)):
        for bits in (0, 8):
            packed = matrix.from_payload(coded[number, 17, 65][0], bits)
            assert not packed.multiply(np.zeros((2, 65), np.float32), 1).any()


def vector_quantised(rows: int, columns: int, books: list[Any]) -> tuple[matrix.PackedMatrix, Any]:
    """Return a matrix with random indices into all of the codebooks (k, v), and it in float64."""
    rng, vector = np.random.default_rng(rows), books[0].shape[1]
    indices = [
        rng.integers(0, len(book), (rows, -(-columns // vector))).astype(np.uint8) for book in books
    ]
    scales = rng.uniform(0.1, 2, rows).astype(np.float16)
    entries = [
        book[index].reshape(rows, -1).astype(np.float64)
        for index, book in zip(indices, books, strict=True)
    ]
    dense = scales[:, None].astype(np.float64) * np.sum(entries, axis=0)[:, :columns]
    return matrix.from_indices(list(zip(indices, books, strict=True)), scales, columns), dense


@pytest.mark.parametrize("vector", [1, 2, 3, 4, 7, 8, 16, 70])
@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.usefixtures("each_build")
def test_vectors_of_any_length_multiply_alike_on_any_number_of_threads(
    vector: int, stages: int
) -> None:
    rng = np.random.default_rng(vector)
    books = [rng.normal(size=(256, vector)).astype(np.float16) for _ in range(stages)]
    # more tiles than are summed at once; a rest of one
    for rows, columns in ((2100, 40), (65, 19 * vector + 1)):
        packed, dense = vector_quantised(rows, columns, books)
        for batch in (1, 2, 7, 8, 13):
            x = rng.normal(size=(batch, columns)).astype(np.float32)
            product = packed.multiply(x, 1)
            assert relative(product, x.astype(np.float64) @ dense.T) <= 3e-4, (rows, batch)
            assert np.array_equal(product, packed.multiply(x, 3))


@pytest.mark.parametrize("vector", [1, 2, 3, 4, 9, 32])
@pytest.mark.usefixtures("each_build")
def test_the_largest_sums_of_vectors_do_not_overflow(vector: int) -> None:
    entries = np.full((2, vector), 3.0, np.float16)
    entries[1] *= -1
    packed, dense = vector_quantised(64, 16 * vector, [entries, entries])
    for batch in (1, 9):
        x = np.full((batch, 16 * vector), 0.7, np.float32)
        for sign in (1, -1):
            assert (
                relative(packed.multiply(sign * x, 1), sign * x.astype(np.float64) @ dense.T)
                <= 3e-4
            )
    same = matrix.from_indices(
        [(np.ones((5, 16), np.uint8), entries)], np.ones(5, np.float16), 16 * vector
    )
    for batch in (1, 9):
        assert np.allclose(same.multiply(x[:batch], 1), -2.1 * 16 * vector, rtol=3e-4)


@pytest.mark.usefixtures("each_build")
def test_huge_activations_cost_vectors_of_other_columns_nothing() -> None:
    rng = np.random.default_rng(6)
    book = rng.normal(size=(256, 4)).astype(np.float16)
    book[0] = 0
    indices = rng.integers(0, 256, (40, 64)).astype(np.uint8)
    indices[:, 16:32] = 0
    packed = matrix.from_indices([(indices, book)], np.ones(40, np.float16), 256)
    dense = book[indices].reshape(40, 256).astype(np.float64)
    for batch in (1, 9):
        x = rng.normal(size=(batch, 256)).astype(np.float32)
        x[:, 100] = 1e6
        assert relative(packed.multiply(x, 1), x.astype(np.float64) @ dense.T) <= 3e-4


def water_filled(rows: int, columns: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """Return codes of every width, row scales, and column scales over ten octaves."""
    rng = np.random.default_rng(seed)
    spread = np.exp2(rng.uniform(-3, 7, (rows, 1)) + rng.uniform(-3, 0, columns))
    codes = (rng.normal(size=(rows, columns)) * spread).clip(-128, 127).astype(np.int8)
    codes[rng.random(rows) < 0.2] = 0
    codes[:, rng.random(columns) < 0.1] = 0
    return (
        codes,
        rng.uniform(0.1, 2, rows).astype(np.float32),
        np.exp2(rng.integers(-40, 41, columns) / 8).astype("f4"),
    )


@pytest.mark.parametrize("shape", [*SHAPES, (1, 200), (200, 1), (48, 64), (2049, 33)])
@pytest.mark.usefixtures("each_build")
def test_codes_of_mixed_widths_multiply_within_1e_3_and_come_back_exactly(
    shape: tuple[int, int],
) -> None:
    codes, rows, columns = water_filled(*shape)
    packed = matrix.from_scaled_codes(codes, rows, columns)
    dense = rows[:, None].astype(np.float64) * codes * columns
    everything = np.arange(shape[0])
    assert np.allclose(packed.take(everything), dense, rtol=1e-6, atol=0)
    assert np.allclose(packed.decoded(everything[::-1]), dense[::-1], rtol=1e-6, atol=0)
    for batch in BATCHES:
        x = np.random.default_rng(batch).normal(size=(batch, shape[1])).astype(np.float32)
        product = packed.multiply(x, 1)
        assert relative(product, x.astype(np.float64) @ dense.T) <= 1e-3
        assert not product[:, ~codes.any(1)].any()
        assert np.array_equal(product, packed.multiply(x, 3))


def test_blocks_of_mixed_widths_take_the_bits_of_their_largest_code_and_zeros_take_none() -> None:
    for width in range(9):
        codes = np.zeros((20, 130), np.int8)
        if width:
            codes[17, 70] = -(2 ** (width - 1))
            codes[0, 3] = max(2 ** (width - 1) - 1, 0)
        packed = matrix.from_scaled_codes(codes, np.ones(20, np.float32), np.ones(130, np.float32))
        widths = packed.arrays["widths"]
        assert widths[1].tolist() == [0, width, 0]
        assert widths[0].tolist() == [width if width > 1 else 0, 0, 0]
        assert packed.arrays["codes"].size == 16 * 64 * int(widths.sum(dtype=int)) // 8


@pytest.mark.usefixtures("each_build")
def test_columns_of_huge_scales_cost_the_others_nothing() -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(-20, 21, (32, 128)).astype(np.int8)
    columns = np.ones(128, np.float32)
    columns[64:] = 2.0**14
    codes[:, 64:] = rng.integers(0, 2, (32, 64))
    codes[:, 5], columns[5] = 0, 2.0**14
    x = rng.normal(size=(3, 128)).astype(np.float32)
    x[:, 64:] *= 2.0**-14
    product = matrix.from_scaled_codes(codes, np.ones(32, np.float32), columns).multiply(x, 1)
    assert relative(product, x.astype(np.float64) @ (codes * columns).T) <= 1e-4


def test_a_narrow_range_of_byte_codes_is_kept_in_fewer_bits() -> None:
    codes = np.random.default_rng(0).integers(120, 136, (16, 64)).astype(np.uint8)
    packed = matrix.from_codes(codes, np.ones((16, 1), np.float32), "float32", group=64, zero=128)
    assert packed.layout.bits == 4
    assert np.array_equal(packed.take(np.arange(16)), codes.astype(np.float32) - 128)


def test_a_wrong_width_or_row_is_refused(coded: Any) -> None:
    packed = matrix.from_payload(coded[0, 17, 65][0])
    with pytest.raises(PhaseError, match="65 columns cannot take inputs of shape"):
        packed.multiply(np.zeros((1, 64), np.float32))
    with pytest.raises(PhaseError, match="17 rows has no row"):
        packed.take(np.array([17]))


def test_a_corrupt_payload_is_named_and_not_decoded(coded: Any) -> None:
    data = bytearray(coded[0, 70, 200][0].data)
    data[len(data) // 2] ^= 1
    with pytest.raises(CheckpointError, match=r"payload of layer\.seven is damaged"):
        payloads.read(bytes(data), "layer.seven")


def test_structures_lie_in_memory_as_the_compiler_lays_them(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to ask")
    mirrors = {
        "Matrix": native.MatrixStruct,
        "Layer": native.LayerStruct,
        "Model": native.ModelStruct,
    }
    last = {name: mirror._fields_[-1][0] for name, mirror in mirrors.items()}
    prints = "".join(
        f'printf("%zu %zu\\n", sizeof({name}), offsetof({name}, {last[name]}));' for name in mirrors
    )
    source = tmp_path / "sizes.c"
    source.write_text(
        f'#include "engine.c"\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{{prints}}}'
        "\n"
    )
    folder = Path(native.__file__).parent
    program = tmp_path / "sizes"
    command = [
        compiler,
        "-std=gnu11",
        "-w",
        "-pthread",
        f"-I{folder}",
        str(source),
        "-o",
        str(program),
        "-lm",
    ]
    subprocess.run(command, check=True)
    answer = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    ours = [
        (ctypes.sizeof(mirror), getattr(mirror, last[name]).offset)
        for name, mirror in mirrors.items()
    ]
    assert [tuple(map(int, line.split())) for line in answer.splitlines()] == ours


def test_an_unknown_build_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.BUILD, "avx51")
    with pytest.raises(ConfigError, match="did you mean 'avx512'"):
        build.library()


def test_without_a_compiler_the_portable_path_is_taken_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(compiled.BUILD, raising=False)
    monkeypatch.setenv("CC", "no-such-compiler")
    build._said.clear()
    assert build.library() is None
    build._library.cache_clear()
    assert build.in_use() == "portable"
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "using the portable numpy path" in warnings[0]


@pytest.mark.skipif(build.available() == [compiled.PORTABLE], reason="no C compiler here")
def test_compiled_code_is_kept_by_its_content_and_not_in_a_folder_that_others_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = compiled.find_compiler("")
    assert compiler is not None
    source = build.FOLDER / "level.c"
    first = compiled.compile_file(compiler, source)
    stamp = first.stat().st_mtime_ns
    assert compiled.compile_file(compiler, source) == first
    assert first.stat().st_mtime_ns == stamp
    assert compiled.compile_file(compiler, source, flags=["-g"]) != first
    assert compiled.compile_file(compiler, source, headers=[build.FOLDER / "vq.h"]) != first
    (tmp_path / "agent-forge" / "kernels").chmod(0o777)
    with pytest.raises(ConfigError, match="can be written by others"):
        compiled.compile_file(compiler, source)
