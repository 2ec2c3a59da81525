"""A fixed rotation of a layer's inputs: random signs, then a Hadamard transform within blocks.

A layer computes W x = (W Rᵀ)(R x) for every orthonormal R. Its quantiser then sees W Rᵀ, and the
rounding of activations sees R x; in both, one large value is spread over its block. R = H D, where
D holds one sign per input and H is block-diagonal: Hadamard matrices over the square root of their
size, which is the largest power of two that divides the width (64 for 576, 512 for 1536). The signs
follow from the width alone, so layers of one width rotate alike and no file holds R. Source: QuaRot,
arXiv:2404.00456; signs as in QuIP#, arXiv:2402.04396. Reads and writes no file.
"""

import hashlib
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# A transform of a longer block is two of its factors (H_mn = H_m x H_n, the Kronecker product).
_ONE_PRODUCT = 128
_FACTOR = 32


def block_size(width: int) -> int:
    """Return the largest power of two that divides a width."""
    return width & -width


def rotated(x: Tensor) -> Tensor:
    """Return R x for each vector of x (..., width), in its dtype (under autocast, in that one)."""
    block = block_size(x.shape[-1])
    signs = _signs(x.shape[-1], x.dtype, x.device)
    return (_transformed((x * signs).unflatten(-1, (-1, block))) * block**-0.5).flatten(-2)


def _transformed(x: Tensor) -> Tensor:
    """Return the Hadamard transform, without its scale, of each block of x (..., block)."""
    block = x.shape[-1]
    if block <= _ONE_PRODUCT:
        return x @ _hadamard(block, x.dtype, x.device)
    inner = _transformed(x.unflatten(-1, (-1, _FACTOR)))
    return _transformed(inner.transpose(-1, -2)).transpose(-1, -2).flatten(-2)


@torch.compiler.assume_constant_result
def _signs(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _kept_signs(width, dtype, device)


@torch.compiler.assume_constant_result
def _hadamard(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _kept_hadamard(size, dtype, device)


@lru_cache(maxsize=64)
def _kept_signs(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the signs of a width, (width,): the bits of a hash, which no version changes."""
    digest = hashlib.shake_256(f"rotation of {width}".encode()).digest(-(-width // 8))
    bits = np.unpackbits(np.frombuffer(digest, np.uint8))[:width]
    return torch.from_numpy(1.0 - 2.0 * bits).to(device, dtype)


@lru_cache(maxsize=64)
def _kept_hadamard(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return Sylvester's matrix of ones and minus ones, (size, size)."""
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    while len(matrix) < size:
        top = torch.cat([matrix, matrix], 1)
        matrix = torch.cat([top, torch.cat([matrix, -matrix], 1)])
    return matrix
