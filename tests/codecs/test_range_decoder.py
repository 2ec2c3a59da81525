"""The compiled range decoder returns constriction's symbols, and both refuse what cannot be decoded."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent_forge.codecs import range_decoder
from agent_forge.codecs.range_decoder import SCALE, WHOLE
from agent_forge.core import compiled
from agent_forge.core.errors import CheckpointError

needs_compiler = pytest.mark.skipif(compiled.find_compiler("") is None, reason="no C compiler here")


def drawn_shares(symbols: int, seed: int) -> NDArray[np.float32]:
    """Return shares of very different sizes, some of them 0."""
    generator = np.random.default_rng(seed)
    shares = np.exp2(-generator.integers(0, 22, symbols)) * (generator.random(symbols) > 0.2)
    shares[generator.integers(symbols)] = 1.0
    return (shares / shares.sum()).astype(np.float32)


def both(words: NDArray[np.uint32]) -> tuple[range_decoder.Decoder, range_decoder.Decoder]:
    """Return the decoders of one stream: compiled, and constriction's."""
    decode = range_decoder._compiled_decode("", "")
    assert decode is not None
    return range_decoder._Compiled(words, decode), range_decoder._Library(words)


def said(decoder: range_decoder.Decoder, shares: NDArray[np.float32], count: int) -> object:
    """Return the symbols, or None where they are refused."""
    try:
        return decoder.decode(shares, count).tolist()
    except CheckpointError:
        return None


@needs_compiler
@settings(max_examples=200, deadline=None)
@given(st.integers(2, 256), st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(0, 120))
def test_any_words_decode_as_constriction_decodes_them(
    symbols: int, seed: int, words: int, count: int
) -> None:
    """Tables change within a stream, and the words may end before the symbols do."""
    drawn = np.random.default_rng(seed).integers(0, 2**32, words, dtype=np.uint32)
    ours, theirs = both(drawn)
    for step in range(3):
        shares = drawn_shares(symbols if step != 1 else 3, seed + step)
        expected = said(theirs, shares, count)
        assert said(ours, shares, count) == expected
        if expected is None:
            return


@needs_compiler
@pytest.mark.parametrize("symbols", [2, 3, 6, 7, 40, 256])
def test_each_symbol_begins_at_its_border(symbols: int) -> None:
    """The last point before a border is the symbol before it, in both decoders."""
    shares = drawn_shares(symbols, symbols)
    borders = range_decoder.borders(shares)
    assert borders[0] == 0
    assert borders[-1] == SCALE
    assert (np.diff(borders.astype(np.int64)) >= 1).all()
    step = WHOLE // SCALE
    for symbol in range(1, symbols):
        for point, expected in (
            (int(borders[symbol]) * step, symbol),
            (int(borders[symbol]) * step - 1, symbol - 1),
        ):
            words = np.array([point >> 32, point & 0xFFFFFFFF], np.uint32)
            assert [said(decoder, shares, 1) for decoder in both(words)] == [[expected]] * 2


@needs_compiler
def test_words_above_the_interval_are_refused_by_both() -> None:
    words = np.array([2**32 - 1, 2**32 - 1], np.uint32)
    for symbols in (3, 20):
        shares = drawn_shares(symbols, 1)
        assert [said(decoder, shares, 1) for decoder in both(words)] == [None, None]


@pytest.mark.parametrize(("build", "compiler"), [("portable", ""), ("", "no-such-compiler")])
def test_without_compiled_code_constriction_decodes(
    build: str, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(compiled.BUILD, build)
    monkeypatch.setenv("CC", compiler)
    assert isinstance(range_decoder.open_stream(b"\0" * 8), range_decoder._Library)


def test_a_file_that_does_not_compile_leaves_constriction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "compile_file", _refuse)
    range_decoder._compiled_decode.cache_clear()
    try:
        assert range_decoder._compiled_decode("", "") is None
    finally:
        range_decoder._compiled_decode.cache_clear()


def _refuse(*_: object, **__: object) -> None:
    raise OSError("no space")
