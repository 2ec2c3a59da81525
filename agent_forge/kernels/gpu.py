"""Products of a few tokens with coded matrices on CUDA, by Triton, which reads the packed codes.

Reads the compact tensors of a codec (ternary, intk, waterfill, vptq) where the model lies, and
packs codes into 2, 4 or 8 bits. Without Triton, with more tokens and for other codecs, a compressed
layer makes its weight dense and calls torch. The only module here that imports torch;
`models.compressed` imports it when a model sits on CUDA.
"""

import contextlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# With more tokens the codes are read from memory so often that a dense weight for cuBLAS is
# cheaper.
FEW_TOKENS = 8
LAUNCHES, TRIALS = 20, 5  # how often a product is launched per trial, and tried, to time it
BLOCK_ROWS, BLOCK_BYTES, BLOCK_POSITIONS = 16, 128, 128


def usable(device: torch.device) -> bool:
    """Return whether products on this device can go through Triton."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


@dataclass(frozen=True, slots=True)
class DeviceMatrix:
    """A coded matrix (rows, columns) on a device.

    codes: (rows, groups, width) uint8 of `bits` bits per code, or VPTQ's indices (rows, positions).
    column_scales: (columns,) float32 or None. codebook: (entries, vector) float32, for VPTQ alone.
    """

    rows: int
    columns: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    bits: int = 0
    group: int = 0
    column_scales: Tensor | None = None
    codebook: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Return where the codes lie."""
        return self.codes.device

    def multiply(self, x: Tensor) -> Tensor:
        """Return x (T, columns) times the matrix: (T, rows) float32."""
        from agent_forge.kernels import triton_kernels

        x = x if self.column_scales is None else x.float() * self.column_scales
        x = x.contiguous()
        out = torch.empty(len(x), self.rows, device=x.device, dtype=torch.float32)
        grid = (-(-self.rows // BLOCK_ROWS), len(x))
        if not len(x):
            return out
        with _current(x.device):
            if self.codebook is not None:
                triton_kernels.vectors_kernel[grid](
                    x, self.codes, self.codebook, self.scales, out, self.rows, self.columns,
                    self.codes.shape[1], VECTOR=self.codebook.shape[1], BLOCK_ROWS=BLOCK_ROWS,
                    BLOCK_POSITIONS=BLOCK_POSITIONS,
                )  # fmt: skip
            else:
                _, groups, width = self.codes.shape
                triton_kernels.codes_kernel[grid](
                    x, self.codes, self.scales, self.zeros, out, self.rows, self.columns, groups,
                    self.group, width, BITS=self.bits, BLOCK_ROWS=BLOCK_ROWS,
                    BLOCK_BYTES=BLOCK_BYTES,
                )  # fmt: skip
        return out


_FASTER: dict[tuple[Any, ...], bool] = {}


def dense_is_faster(matrix: DeviceMatrix, weight: Tensor, tokens: int) -> bool:
    """Return whether `tokens` rows times a dense weight (rows, columns) take less time than times
    its codes.

    Measured once for each kind of matrix, shape and number of tokens: codes are fewer bytes, but
    unpacking them may still take longer. A small model's step is launched as a graph, so launches
    within a graph are timed.
    """
    key = (
        weight.shape,
        weight.dtype,
        weight.device,
        matrix.bits,
        matrix.group,
        matrix.codebook is not None,
        tokens,
    )
    if key not in _FASTER:
        x = torch.ones(tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)
        _FASTER[key] = _graph_seconds(
            lambda: torch.nn.functional.linear(x, weight)
        ) < _graph_seconds(lambda: matrix.multiply(x).to(weight.dtype))
    return _FASTER[key]


def _graph_seconds(product: Callable[[], Tensor]) -> float:
    """Return the milliseconds that LAUNCHES products take inside a graph, the least of TRIALS."""
    cuda: Any = torch.cuda
    stream = cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        product()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            product()
    best = float("inf")
    for _ in range(TRIALS):
        begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end))
    return best


def from_compact(
    codec: str, tensors: dict[str, Tensor], meta: dict[str, Any], shape: tuple[int, int]
) -> DeviceMatrix | None:
    """Return the matrix of a codec's compact tensors, packed on their device; None without a
    kernel.
    """
    rows, columns = shape
    if codec == "vptq":
        # The kernel knows neither a residual codebook ("r") nor outlier columns ("o").
        if {"r", "o"} & set(tensors):
            return None
        codebook, scales = tensors["c"].float().contiguous(), tensors["s"].float().contiguous()
        return DeviceMatrix(rows, columns, tensors["i"].contiguous(), scales, codebook=codebook)
    if codec == "ternary":
        zeros = torch.ones_like(tensors["s"])
        return _from_codes(tensors["q"] + 1, tensors["s"], zeros, meta["g"], 2, columns)
    if codec == "intk":
        bits = 2 if meta["k"] <= 2 else 4 if meta["k"] <= 4 else 8
        return _from_codes(tensors["q"], tensors["s"], tensors["z"], meta["g"], bits, columns)
    if codec == "waterfill":
        codes, scales = tensors["q"].to(torch.int16) + 128, tensors["s"][:, None]
        zeros = torch.full_like(scales, 128)
        return _from_codes(
            codes, scales, zeros, columns, 8, columns, tensors["c"].float().contiguous()
        )
    return None


def _from_codes(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    group: int,
    bits: int,
    columns: int,
    column_scales: Tensor | None = None,
) -> DeviceMatrix:
    """Pack codes (rows, groups * group): byte j of a group holds columns j, j + width, ... of it.

    Columns of one byte lie `width` apart, so that neighbouring threads, which read neighbouring
    bytes, read neighbouring activations too.
    """
    parts, rows = 8 // bits, len(codes)
    grouped = codes.to(torch.uint8).view(rows, -1, group)
    width = -(-group // parts)
    split = torch.nn.functional.pad(grouped, (0, parts * width - group)).view(
        rows, -1, parts, width
    )
    packed = split[:, :, 0].clone()
    for part in range(1, parts):
        packed |= split[:, :, part] << (bits * part)
    return DeviceMatrix(
        rows, columns, packed.contiguous(), scales.float().contiguous(),
        zeros.to(torch.uint8).contiguous(), bits, group, column_scales,
    )  # fmt: skip


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which `device`, where the operands lie, is the current one."""
    index = device.index
    return contextlib.nullcontext() if index is None else torch.accelerator.device_index(index)
