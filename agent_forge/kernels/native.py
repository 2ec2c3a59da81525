"""engine.c from Python: its structures, a pool of threads, and its calls.

A pool belongs to the process that created it: after a fork the child gets one of its own. Calls on
one pool take turns.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import PhaseError
from agent_forge.kernels import build

CHUNK = 32  # tokens of one forward call, as in engine.c
Array = NDArray[Any]

_INTS = (
    "kind", "bits", "rows", "columns", "group", "padded_group", "groups", "padded",
    "activation_top", "scale_kind", "zero", "vector",
)  # fmt: skip
_POINTERS = (
    "codes",
    "scales",
    "zeros",
    "bias",
    "codebook",
    "column_scales",
    "order",
    "widths",
    "starts",
)


class MatrixStruct(ctypes.Structure):
    """Mirror of `Matrix` in engine.c."""

    _fields_ = [(name, ctypes.c_int32) for name in _INTS] + [
        (name, ctypes.c_void_p) for name in _POINTERS
    ]


class LayerStruct(ctypes.Structure):
    """Mirror of `Layer` in engine.c."""

    _fields_ = [(name, MatrixStruct) for name in ("q", "k", "v", "o", "gate", "up", "down")] + [
        (name, ctypes.c_void_p) for name in ("norm_before", "norm_after", "q_norm", "k_norm")
    ]


class ModelStruct(ctypes.Structure):
    """Mirror of `Model` in engine.c."""

    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in ("hidden", "layers", "heads", "kv_heads", "head_size", "inner")
        ),
        *((name, ctypes.c_int32) for name in ("vocabulary", "unused")),
        *((name, ctypes.c_float) for name in ("epsilon", "unused_float")),
        *((name, MatrixStruct) for name in ("embedding", "head")),
        *((name, ctypes.c_void_p) for name in ("final_norm", "frequencies")),
        ("layer", ctypes.POINTER(LayerStruct)),
    ]


def pointer(array: Array | None) -> int | None:
    """Return the address of an array's first value, or None. The caller keeps the array alive."""
    return None if array is None else array.ctypes.data


@dataclass(frozen=True)
class Chunk:
    """Tokens that run through a model together: ids, positions, sequences (n,) int32, contiguous.

    caches: keys and values of each sequence, (layers, kv_heads, capacity, head_size) float32, both
    written.
    logits (answering, vocabulary): filled for the tokens numbered in `answering`, int32.
    """

    ids: Array
    positions: Array
    sequences: Array
    caches: Sequence[tuple[Array, Array]]
    answering: Array
    logits: Array


class Pool:
    """Threads of engine.c. threads: 0 takes every core of the process."""

    def __init__(self, threads: int = 0) -> None:
        loaded = build.library()
        assert loaded is not None, "a pool needs the compiled engine"
        self._engine = _declared(loaded)
        self._address = self._engine.forge_pool_new(threads or len(os.sched_getaffinity(0)))
        if not self._address:
            raise PhaseError(
                "no memory for the threads of packed inference; free some or set threads=1"
            )
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._held: ModelStruct | None = None
        self.threads: int = self._engine.forge_pool_threads(self._address)
        weakref.finalize(self, _free, self._engine, self._address, self._process)

    def matmul(self, matrix: MatrixStruct, x: Array, out: Array) -> None:
        """Fill out (T, rows) with x (T, columns) times the matrix; both float32 and contiguous."""
        with self._lock:
            done = self._engine.forge_matmul(
                self._address, ctypes.byref(matrix), pointer(x), len(x), pointer(out)
            )
        _refuse(done)

    def forward(self, model: ModelStruct, chunk: Chunk) -> None:
        """Run a chunk of at most CHUNK tokens; fill its caches and logits."""
        keys = (ctypes.c_void_p * len(chunk.caches))(*(pointer(k) for k, _ in chunk.caches))
        values = (ctypes.c_void_p * len(chunk.caches))(*(pointer(v) for _, v in chunk.caches))
        capacities = np.asarray([k.shape[2] for k, _ in chunk.caches], np.int32)
        with self._lock:
            if self._held is not model:
                # A thread that the system put aside in an earlier call still holds the address of
                # that call's layers.
                self._engine.forge_settle(self._address)
                self._held = model
            done = self._engine.forge_forward(
                self._address, ctypes.byref(model), len(chunk.ids), pointer(chunk.ids),
                pointer(chunk.positions), pointer(chunk.sequences), keys, values,
                pointer(capacities), pointer(chunk.answering), len(chunk.answering),
                pointer(chunk.logits),
            )  # fmt: skip
        _refuse(done)


def rows(matrix: MatrixStruct, ids: Array, out: Array) -> None:
    """Fill out (n, columns) with the rows named by ids (n,) int32."""
    loaded = build.library()
    assert loaded is not None, "rows of a packed matrix need the compiled engine"
    _declared(loaded).forge_rows(ctypes.byref(matrix), pointer(ids), len(ids), pointer(out))


def pool(threads: int = 0) -> Pool:
    """Return this process's pool of so many threads."""
    return _pool(threads, os.getpid(), build.in_use())


@lru_cache(maxsize=8)
def _pool(threads: int, process: int, build_name: str) -> Pool:  # noqa: ARG001 - the key
    return Pool(threads)


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the types of the engine's functions: else a pointer would be cut to 32 bits."""
    address, number = ctypes.c_void_p, ctypes.c_int
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "forge_pool_new": (address, [number]),
        "forge_pool_free": (None, [address]),
        "forge_settle": (None, [address]),
        "forge_pool_threads": (number, [address]),
        "forge_matmul": (number, [address, address, address, number, address]),
        "forge_rows": (None, [address, address, number, address]),
        "forge_forward": (number, [address, address, number, *[address] * 7, number, address]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def _free(engine: ctypes.CDLL, address: int, process: int) -> None:
    """End the threads; the child of a fork does not have them."""
    if os.getpid() == process:
        engine.forge_pool_free(address)


def _refuse(done: int) -> None:
    if done == -1:
        raise PhaseError(
            "no memory for the activations of packed inference; free some or use a shorter prompt"
        )
    assert done == 0, f"engine.c refused its arguments ({done})"
