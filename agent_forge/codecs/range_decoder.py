"""Decode range-coded symbols: range_decoder.c where there is a C compiler, else constriction.

The stream is constriction's (32-bit words, 64-bit state, shares of 2**24); constriction writes it.
Compiled, a symbol of a small alphabet takes a quarter of constriction's time, and Python's lock is
free meanwhile. Both return the same symbols.
"""

import ctypes
import os
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agent_forge.core import compiled
from agent_forge.core.errors import CheckpointError

Shares = NDArray[np.float32]
SCALE = 1 << 24  # the shares of a table add up to this
WHOLE = 2**64 - 1
WRONG = "a range-coded stream does not fit its table; the file is damaged, restore it from a copy"


class Decoder(Protocol):
    """Symbols of one stream, in the order in which they were written."""

    def decode(self, shares: Shares, count: int) -> NDArray[np.uint8]:
        """Return the next `count` symbols.

            shares: of all symbols, at least two; they need not add up to 1.

        Raises CheckpointError when the stream cannot hold them.
        """


def open_stream(words: bytes | memoryview) -> Decoder:
    """Return the decoder of a stream of 32-bit little-endian words."""
    if len(words) % 4:
        raise CheckpointError(
            "a range-coded stream is cut short; the file is damaged, restore it from a copy"
        )
    numbers = np.frombuffer(words, "<u4")
    decode = _compiled_decode(os.environ.get(compiled.BUILD, ""), os.environ.get("CC", ""))
    # Both copy the words: those of a stream begin at any byte.
    return _Library(numbers) if decode is None else _Compiled(numbers, decode)


def borders(shares: Shares) -> NDArray[np.uint32]:
    """Return the cumulative shares (symbols + 1,) in parts of SCALE, as constriction rounds them.

    Each symbol has one part more than its share of the others, so none is without any. The sums are
    float32, one after the other, as there.
    """
    sums = np.cumsum(np.concatenate([np.zeros(1, np.float32), shares]), dtype=np.float32)
    scale = np.float32(SCALE - len(shares)) / sums[-1]
    cumulative = (sums * scale).astype(np.uint32) + np.arange(len(sums), dtype=np.uint32)
    cumulative[-1] = SCALE
    return cumulative


class _Library:
    """constriction's own decoder."""

    def __init__(self, words: NDArray[np.uint32]) -> None:
        from constriction import stream  # type: ignore[attr-defined]

        self._stream = stream
        self._decoder = stream.queue.RangeDecoder(words.astype(np.uint32))

    def decode(self, shares: Shares, count: int) -> NDArray[np.uint8]:
        model = self._stream.model.Categorical(shares, perfect=False)
        try:
            decoded: NDArray[np.uint8] = self._decoder.decode(model, count).astype(np.uint8)
        except AssertionError:
            raise CheckpointError(WRONG) from None
        return decoded


class _State(ctypes.Structure):
    """Mirror of `Decoder` in range_decoder.c."""

    _fields_ = [
        ("range", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("next", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
    ]


class _Compiled:
    """range_decoder.c. It holds the words, into which the state points."""

    def __init__(self, words: NDArray[np.uint32], decode: Any) -> None:
        self._decode = decode
        self._borders: dict[bytes, NDArray[np.uint32]] = {}  # shares as bytes -> their borders
        begin = np.zeros(2, np.uint64)
        begin[: len(words)] = words[:2]
        self._words = np.append(words, np.uint32(0))  # the zero is read at the end
        at = self._words.ctypes.data
        self._state = _State(
            WHOLE,
            int(begin[0]) << 32 | int(begin[1]),
            at + 4 * min(2, len(words)),
            at + words.nbytes,
        )

    def decode(self, shares: Shares, count: int) -> NDArray[np.uint8]:
        out = np.empty(count, np.uint8)
        known = shares.tobytes()
        table = self._borders.get(known)
        if table is None:
            table = self._borders[known] = borders(shares)
        wrong = self._decode(
            ctypes.byref(self._state), table.ctypes.data, len(shares), out.ctypes.data, count
        )
        if wrong:
            raise CheckpointError(WRONG)
        return out


@lru_cache
def _compiled_decode(build: str, compiler_wanted: str) -> Any:
    """Return the compiled function, or None where none is wanted or none can be compiled."""
    compiler = compiled.find_compiler(compiler_wanted)
    if build == compiled.PORTABLE or compiler is None:
        return None
    try:
        path = compiled.compile_file(compiler, Path(__file__).with_name("range_decoder.c"))
        function = ctypes.CDLL(str(path)).forge_range_decode
    except (OSError, subprocess.SubprocessError):
        return None  # packed inference says why, where it compiles its own
    address = ctypes.c_void_p
    function.argtypes = [address, address, ctypes.c_int, address, ctypes.c_int64]
    function.restype = ctypes.c_int
    return function
