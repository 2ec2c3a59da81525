"""Entropy coding and payloads: lossless, no larger than the entropy says, and damaged bytes are
named.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_forge.codecs import entropy, payload
from agent_forge.core.errors import CheckpointError


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 256), st.integers(0, 700), st.floats(0.05, 5.0), st.integers(0, 2**32 - 1))
def test_every_stream_comes_back_symbol_for_symbol(
    alphabet: int, count: int, skew: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    p = generator.random(alphabet) ** (skew * 4) + 1e-12
    symbols = generator.choice(alphabet, size=count, p=p / p.sum()).astype(np.uint8)
    coded = entropy.compress(symbols)
    assert np.array_equal(entropy.expand(coded, count), symbols)
    assert len(coded) <= 2 + count + 4


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=600))
def test_arbitrary_bytes_come_back(data: bytes) -> None:
    symbols = np.frombuffer(data, np.uint8)
    assert entropy.expand(entropy.compress(symbols), len(symbols)).tobytes() == data


def test_a_cut_stream_is_refused_in_words() -> None:
    generator = np.random.default_rng(2)
    skewed = generator.choice(3, size=4000, p=[0.2, 0.6, 0.2]).astype(np.uint8)
    flat = generator.integers(0, 250, 4000).astype(np.uint8)
    ranged, stored = entropy.compress(skewed), entropy.compress(flat)
    assert (ranged[0], stored[0]) == (entropy.RANGE, entropy.STORED)
    for data, cuts in (
        (ranged, (1, 3, 4, len(ranged) - 1, len(ranged) - 3)),
        (stored, (1, 2, 3999)),
    ):
        for length in cuts:
            with pytest.raises(CheckpointError, match=r"damaged"):
                entropy.expand(data[:length], 4000)
    codes = generator.integers(-3, 4, (20, 30)).astype(np.int8)
    classes = entropy.size_classes(codes)
    blocks = entropy.compress_blocks(codes, *classes)
    for length in (len(blocks) - 1, len(blocks) - 2, len(blocks) - 3):
        with pytest.raises(CheckpointError, match="cut short"):
            entropy.expand_blocks(blocks[:length], *classes)


def test_skewed_trits_cost_their_entropy() -> None:
    p = np.array([0.2, 0.6, 0.2])
    symbols = np.random.default_rng(0).choice(3, size=60_000, p=p).astype(np.uint8)
    counts = np.bincount(symbols) / len(symbols)
    bits = -(counts * np.log2(counts)).sum()
    assert 8 * len(entropy.compress(symbols)) / len(symbols) == pytest.approx(bits, rel=0.003)


def test_five_trits_fit_a_byte_and_two_nibbles() -> None:
    assert entropy.symbols_per_byte(3) == 5
    assert entropy.symbols_per_byte(16) == 2
    assert entropy.symbols_per_byte(2) == 8
    trits = np.array([2, 1, 0, 2, 2, 1], np.uint8)
    packed = entropy.pack_radix(trits, 3)
    assert list(packed) == [2 + 1 * 3 + 0 * 9 + 2 * 27 + 2 * 81, 1]
    assert np.array_equal(entropy.unpack_radix(packed, 3, 6), trits)


def test_repeats_are_left_to_zstd() -> None:
    symbols = np.tile(np.arange(200, dtype=np.uint8), 500)
    coded = entropy.compress(symbols)
    assert coded[0] == entropy.ZSTD
    assert len(coded) < 1000
    assert np.array_equal(entropy.expand(coded, len(symbols)), symbols)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "int32"])
def test_a_payload_keeps_parts_of_every_type_and_shape(dtype: str) -> None:
    array = (np.random.default_rng(1).standard_normal((7, 3, 2)) * 50).astype(dtype)
    data = payload.write(
        "raw", (7, 6), {"x": 1.5}, {"a": array, "empty": np.zeros((0, 4), np.uint8)}
    )
    read = payload.read(data, "here")
    assert (read.codec, read.shape, read.meta) == ("raw", (7, 6), {"x": 1.5})
    assert np.array_equal(read.parts["a"], array)
    assert read.parts["a"].dtype == array.dtype
    assert read.parts["empty"].shape == (0, 4)


def test_any_flipped_bit_and_any_cut_is_named() -> None:
    data = payload.write("raw", (4, 4), {}, {"w": np.arange(16, dtype=np.uint16).reshape(4, 4)})
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp is damaged"):
            payload.read(bytes(damaged), "model.layers.0.mlp")
    for length in range(len(data)):
        with pytest.raises(CheckpointError, match="is damaged"):
            payload.read(data[:length], "model.layers.0.mlp")


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    spread=st.integers(0, 127),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_size_sorted_blocks_of_any_shape_come_back_whole(
    rows: int, columns: int, spread: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(0, spread + 1, (rows, 1)) * generator.random((1, columns))
    codes = np.round(sizes * generator.uniform(-1, 1, (rows, columns))).astype(np.int8)
    classes = entropy.size_classes(codes)
    assert np.array_equal(
        entropy.expand_blocks(entropy.compress_blocks(codes, *classes), *classes), codes
    )
