"""SeedLM: a block of C weights is U(seed)·t, U regenerated from a seed, t of P small coefficients.

Reads a matrix; the Hessian plays no part (the method is data-free). A 16-bit linear-feedback shift
register (LFSR) regenerates U. Each block stores its seed, a shared 4-bit exponent and P 4-bit
coefficients: (16 + 4 + 4P)/C bits per weight, which is 4 bits at C 8, P 3 and 3 bits at C 12, P 4.
Source: arXiv:2410.10714. Departure: the search may be cut to the first `seeds` states of the
sequence, which saves time; the entropy coder then spends only log2(seeds) bits on each.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent_forge.codecs import host
from agent_forge.codecs.payload import Parts
from agent_forge.core.errors import ConfigError

K = 16
PERIOD = 2**K - 1
# x^16 + x^15 + x^13 + x^4 + 1 is primitive, so the sequence visits every non-zero state
TAPS = (16, 15, 13, 4)
EXPONENTS = 16
COEFFICIENT_LOW, COEFFICIENT_HIGH = -8, 7
BEST = 4  # seeds kept by projection, then compared with quantised coefficients
# entries of the (blocks, seeds) projections at a time: few enough for the cache
CHUNK_FLOATS = 1 << 20


@dataclass(slots=True, kw_only=True)
class Settings:
    """block: C weights. coefficients: P. seeds: how many of the 65,535 are searched."""

    block: int = 8
    coefficients: int = 3
    seeds: int = PERIOD

    def __post_init__(self) -> None:
        if not 1 <= self.coefficients < self.block:
            raise ConfigError(
                f"codec seedlm: coefficients must be in 1..block-1, got {self.coefficients} for a "
                f"block of {self.block}"
            )
        if not 1 <= self.seeds <= PERIOD:
            raise ConfigError(f"codec seedlm: seeds must be in 1..{PERIOD}, got {self.seeds}")


@lru_cache(maxsize=1)
def sequence() -> NDArray[np.uint16]:
    """Return the states of the LFSR from state 1 on: (65535,) uint16, each non-zero state once."""
    states = np.empty(PERIOD, np.uint16)
    state = 1
    for i in range(PERIOD):
        states[i] = state
        bit = 0
        for tap in TAPS:
            bit ^= state >> (tap - 1)
        state = ((state << 1) | (bit & 1)) & PERIOD
    return states


def projection(positions: Tensor, block: int, coefficients: int) -> Tensor:
    """Return U of the seeds at `positions` (n,) of the sequence: (n, block, coefficients) float32
    in [-1, 1].

    Row by row, U holds the states that follow the seed; a state v in 1..65535 means (v - 32768) /
    32767.
    """
    states = torch.from_numpy(sequence().astype(np.int32))
    steps = torch.arange(1, block * coefficients + 1)
    chosen = states[(positions.long()[:, None] + steps) % PERIOD]
    middle = 2 ** (K - 1)
    return ((chosen - middle).float() / (middle - 1)).view(-1, block, coefficients)


def encode(
    weight: Tensor, settings: Settings, hessian: Tensor | None
) -> tuple[Parts, dict[str, Any]]:
    """Return seed positions uint16, exponents and coefficients uint8, one row of blocks per matrix
    row.

    The search runs on the CPU's threads wherever the weight lies: torch solves least squares with
    rank-deficient bases only there.
    """
    del hessian
    rows = weight.shape[0]
    padded = torch.nn.functional.pad(weight.float().cpu(), (0, -weight.shape[1] % settings.block))
    blocks = padded.reshape(-1, settings.block)
    step = _unit(blocks)
    # A device goes on with other codecs meanwhile. On the CPU the two would compete for its cores.
    with nullcontext() if weight.device.type == "cpu" else host.aside():
        seeds, exponents, coefficients = search(blocks / step, settings)
    parts: Parts = {
        "j": seeds.numpy().astype(np.uint16).reshape(rows, -1),
        "e": exponents.numpy().astype(np.uint8).reshape(rows, -1),
        "t": (coefficients - COEFFICIENT_LOW).numpy().astype(np.uint8).reshape(rows, -1),
    }
    return parts, {"c": settings.block, "p": settings.coefficients, "u": step}


def _unit(blocks: Tensor) -> float:
    """Return the value of coefficient 1 at exponent 0: the power of two that gives the widest block
    exponent 15.
    """
    largest = float(blocks.abs().max().clamp_min(1e-30))
    return float(2.0 ** (np.floor(np.log2(largest)) - EXPONENTS + 1))


def search(blocks: Tensor, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best seeds (n,), exponents (n,) and coefficients (n, P) of blocks (n, C).

    Blocks are in units of a coefficient.
    """
    bases = projection(torch.arange(settings.seeds), settings.block, settings.coefficients)
    # Shape (P, C, seeds): seeds last, so that the sums below run along contiguous memory. With an
    # orthonormal basis of each seed's span, the energy in the span is a sum of squares.
    directions = torch.linalg.qr(bases).Q.permute(2, 1, 0).contiguous()
    chunk = max(1, CHUNK_FLOATS // settings.seeds)
    best = min(BEST, settings.seeds)
    fits = []
    for part in blocks.split(chunk):
        energy = (part @ directions[0]).square_()  # (blocks, seeds)
        for direction in directions[1:]:
            energy.add_((part @ direction).square_())
        # The more of a block's energy lies in a seed's span, the less error is left.
        candidates = energy.topk(best, dim=1).indices
        fits.append(_quantised_best(part, candidates, bases))
    seeds, exponents, coefficients = (torch.cat(parts) for parts in zip(*fits, strict=True))
    return seeds, exponents, coefficients


def _quantised_best(
    blocks: Tensor, candidates: Tensor, bases: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose among candidate seeds (n, b), with two exponents each, by the error after
    quantisation.
    """
    chosen = bases[candidates]  # (n, b, C, P)
    target = blocks[:, None, :, None].expand(-1, candidates.shape[1], -1, 1)
    exact = torch.linalg.lstsq(chosen, target).solution.squeeze(-1)  # (n, b, P)
    top = exact.abs().amax(-1).clamp_min(1e-30)
    # The smallest exponent that holds the largest coefficient, and the one below: with that one
    # the largest is clipped, but all others are rounded more finely.
    smallest = torch.ceil(torch.log2(top / COEFFICIENT_HIGH)).clamp(0, EXPONENTS - 1)
    options = torch.stack([(smallest - 1).clamp_min(0), smallest], -1)  # (n, b, 2)
    scale = torch.exp2(options)[..., None]
    rounded = (exact[:, :, None] / scale).round().clamp(COEFFICIENT_LOW, COEFFICIENT_HIGH)
    decoded = torch.einsum("nbcp,nbep->nbec", chosen, rounded * scale)
    errors = (decoded - blocks[:, None, None]).square().sum(-1).flatten(1)
    winner = errors.argmin(1)
    rows = torch.arange(len(blocks))
    seed, option = winner // 2, winner % 2
    return (
        candidates[rows, seed],
        options[rows, seed, option].long(),
        rounded[rows, seed, option].long(),
    )


def unpack(parts: Parts, meta: dict[str, Any], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Return {"j": int32, "e": uint8, "t": int8}, one row of blocks per row of the matrix."""
    del meta, shape
    return {
        "j": torch.from_numpy(parts["j"].astype(np.int32)),
        "e": torch.from_numpy(parts["e"].copy()),
        "t": torch.from_numpy(parts["t"].astype(np.int8)) + COEFFICIENT_LOW,
    }


def dense(
    tensors: dict[str, Tensor], meta: dict[str, Any], shape: tuple[int, int], rows: Tensor | None
) -> Tensor:
    """Return the matrix, or the rows named by `rows` (n,): float32."""
    seeds, exponents, coefficients = (
        tensors[key] if rows is None else tensors[key][rows] for key in ("j", "e", "t")
    )
    u = projection(seeds.reshape(-1).cpu(), meta["c"], meta["p"]).to(seeds.device)
    scaled = (
        coefficients.reshape(-1, meta["p"]).float()
        * torch.exp2(exponents.reshape(-1, 1).float())
        * meta["u"]
    )
    return torch.einsum("ncp,np->nc", u, scaled).reshape(len(seeds), -1)[:, : shape[1]]
