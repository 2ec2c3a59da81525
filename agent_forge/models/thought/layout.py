"""Columns, masks and positions of many thoughts beside one prefix, and their sampling noise.

A row of T prefix tokens thinks at P positions with N thoughts each: M = P * N chains of columns,
step after step. A chain only sees the prefix up to its position and its own earlier columns, so
that all chains run in one forward exactly as if each ran alone. Source: Quiet-STaR,
arXiv:2403.09629 (diagonal mask). Reads and writes no file.

Shape letters: B rows, T prefix columns, P positions, N thoughts, M = P * N chains, S steps of a
chain, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def token_positions(attention_mask: Tensor) -> Tensor:
    """Return the position of every column, counted over real tokens, (B, T) int64.

    Padding has 0.
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)


def prefix_mask(attention_mask: Tensor) -> Tensor:
    """Return the columns that prefix columns see, (B, T, T) bool: real ones up to themselves.

    Every column sees itself, padding too.
    """
    width = attention_mask.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=attention_mask.device).tril()
    itself = torch.eye(width, dtype=torch.bool, device=attention_mask.device)
    return (causal & attention_mask.bool()[:, None, :]) | itself


def chain_sees_prefix(attention_mask: Tensor, positions: Tensor, thoughts: int) -> Tensor:
    """Return the prefix columns that each chain sees, (B, M, T) bool.

    positions: (B, P) columns of the prefix.
    """
    columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    seen = (columns <= positions[:, :, None]) & attention_mask.bool()[:, None, :]
    return seen.repeat_interleave(thoughts, dim=1)


@dataclass(frozen=True, slots=True)
class Places:
    """Where thoughts are written: at columns `positions` (B, P) of a prefix, `thoughts` at each.

    mask: (B, T), the prefix's attention mask.
    """

    mask: Tensor
    positions: Tensor
    thoughts: int

    def sees_prefix(self) -> Tensor:
        """Return the prefix columns that each chain sees, (B, M, T) bool."""
        return chain_sees_prefix(self.mask, self.positions, self.thoughts)

    def followed(self) -> Tensor:
        """Return the position of the token that each chain follows, (B, M) int64."""
        place = token_positions(self.mask).gather(1, self.positions)
        return place.repeat_interleave(self.thoughts, dim=1)


def chains_mask(sees_prefix: Tensor, first: int, steps: int) -> Tensor:
    """Return what the columns of steps `first` to `first + steps - 1` see.

    (B, steps * M, T + (first + steps) * M) bool: their prefix, and their own chain up to themselves.
    """
    batch, chains, _ = sees_prefix.shape
    order = torch.ones(steps, first + steps, dtype=torch.bool, device=sees_prefix.device)
    itself = torch.eye(chains, dtype=torch.bool, device=sees_prefix.device)
    own = torch.kron(order.tril(first), itself).expand(batch, -1, -1)
    return torch.cat([sees_prefix.repeat(1, steps, 1), own], dim=-1)


def whole_mask(attention_mask: Tensor, sees_prefix: Tensor, steps: int) -> Tensor:
    """Return the columns that prefix and all chains see, (B, T + S * M, T + S * M) bool."""
    chains = sees_prefix.shape[1]
    top = torch.nn.functional.pad(prefix_mask(attention_mask), (0, steps * chains))
    return torch.cat([top, chains_mask(sees_prefix, 0, steps)], dim=1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a boolean mask (B, Q, K) as (B, 1, Q, K), which eager and sdpa attention both add."""
    hidden = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return hidden.masked_fill_(~mask, torch.finfo(dtype).min)[:, None]


def uniforms(
    seed: int, rows: Tensor, positions: Tensor, steps: Tensor | int, thoughts: Tensor
) -> Tensor:
    """Return numbers in [0, 1), float64, fixed by (seed, row, position, step, thought).

    The index tensors broadcast. A counter-based hash (SplitMix64, Steele et al. 2014) replaces a
    random stream, so that a thought draws the same noise alone, in another order or beside others.
    """
    state = torch.full((), seed, dtype=torch.int64, device=rows.device)
    if isinstance(steps, int):  # not copied to an accelerator, which would be waited for
        steps = torch.full_like(state, steps)
    for index in (rows, positions, steps, thoughts):
        state = _splitmix(state + (index.to(torch.int64) + 1) * _GOLDEN)
    return _shift(state, 11).to(torch.float64) / 2.0**53


def draw(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Return one token per row of logits (..., V) by inverting the distribution at `uniform` (...).

    temperature 0 takes the most probable token. Sums are float64, so that the tail of a large
    vocabulary is not rounded away.
    """
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits.double() / temperature, dim=-1).cumsum(-1)
    point = (uniform * cumulative[..., -1]).unsqueeze(-1)
    index = torch.searchsorted(cumulative.contiguous(), point, right=True).squeeze(-1)
    return index.clamp_max(logits.shape[-1] - 1)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros instead of the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * _MIX_1
    value = (value ^ _shift(value, 27)) * _MIX_2
    return value ^ _shift(value, 31)
