"""Keep part of a task vector: by magnitude, by magnitude without outliers, at random, at random by rank.

Cuts by magnitude are found by counting bit patterns, not by sorting: non-negative float32 numbers are ordered as their
bits are, so the upper 16 bits name the bin that holds the cut, and the lower 16 bits of that bin's entries the cut.
Random masks come from Philox, a counter-based generator: the draw of an entry depends on (seed, tensor, model, place)
alone. Sources: TIES (arXiv:2306.01708), Model Breadcrumbs (arXiv:2312.06795), DARE (arXiv:2311.03099), DELLA
(arXiv:2406.11617), Philox (Salmon et al. 2011).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent_forge.core.seeds import seed_for
from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Inputs
from agent_forge.merge.pieces import Whole

UPPER_BINS, LOWER_BINS = 1 << 15, 1 << 16  # the sign bit is 0
DRAWS_PER_COUNT = 8  # one step of Philox's counter gives four 64-bit numbers: eight float32 draws
PACKED_BITS = 20  # of a magnitude's bits that must be left beside the place in the row, to sort both in 32 bits


@dataclass(frozen=True, slots=True)
class Cut:
    """The `count` largest magnitudes of a tensor: all above `threshold`, and of those equal to it the first ones.

    equals: start of a piece -> how many of its entries that equal the threshold are kept.
    """

    threshold: np.float32
    equals: Mapping[int, int]

    def mask(self, magnitudes: Array, start: int) -> Array:
        """Return which entries of the piece that begins at `start` are kept (float32 magnitudes)."""
        kept = magnitudes > self.threshold
        wanted = self.equals.get(start, 0)
        if wanted:
            flat = kept.reshape(-1)
            flat[np.flatnonzero(magnitudes == self.threshold)[:wanted]] = True
        return kept


KEEP_ALL = Cut(np.float32(-1.0), {})


def largest(
    whole: Whole, magnitudes: Callable[[Inputs], Sequence[Array]], counts: Sequence[Sequence[int]]
) -> list[list[Cut]]:
    """Return, for magnitude array k, the cut of each count in counts[k].

    magnitudes: a piece (float32) -> non-negative float32 arrays of its shape, one for each entry of `counts`.
    """

    def tally(inputs: Inputs) -> Array:
        return np.stack([np.bincount(_bits(m) >> 16, minlength=UPPER_BINS) for m in magnitudes(inputs)])

    coarse = whole.total(tally, single=True)
    wanted = [
        [_bin(row, min(count, whole.entries)) for count in each] for row, each in zip(coarse, counts, strict=True)
    ]

    def collect(inputs: Inputs) -> list[list[Array]]:
        found = []
        for array, each in zip(magnitudes(inputs), wanted, strict=True):
            bits = _bits(array)
            upper = bits >> 16
            found.append([(bits[upper == bin_] & 0xFFFF).astype(np.uint16) for bin_, _ in each])
        return found

    pieces = list(whole.map(collect, single=True))
    starts = [start for start, _ in whole.borders()]
    return [
        [_cut(bin_, need, starts, [piece[k][j] for piece in pieces]) for j, (bin_, need) in enumerate(each)]
        for k, each in enumerate(wanted)
    ]


def _bits(magnitudes: Array) -> Array:
    return magnitudes.reshape(-1).view(np.uint32)


def _bin(tally: Array, count: int) -> tuple[int, int]:
    """Return the bin that holds the count-th largest, and how many of its entries are among the `count` largest."""
    above = np.cumsum(tally[::-1])
    place = int(np.searchsorted(above, count))
    return len(tally) - 1 - place, count - (int(above[place - 1]) if place else 0)


def _cut(upper: int, need: int, starts: Sequence[int], lower: Sequence[Array]) -> Cut:
    """Return the cut inside one bin: `need` of its entries are kept, whose lower bits are given piece by piece."""
    low, still = _bin(np.bincount(np.concatenate(lower), minlength=LOWER_BINS), need)
    equals = {}
    for start, piece in zip(starts, lower, strict=True):
        here = min(still, int(np.count_nonzero(piece == low)))
        if here:
            equals[start] = here
            still -= here
    return Cut(np.array([upper << 16 | low], np.uint32).view(np.float32)[0], equals)


def kept_count(density: float, entries: int) -> int:
    """Return how many entries a density keeps: the floor of the share, at least one."""
    return min(entries, max(1, int(density * entries)))


def top_cuts(whole: Whole, densities: Sequence[float]) -> list[Cut]:
    """Return the cut of each task vector that keeps its share of largest magnitudes."""
    counts = [[kept_count(density, whole.entries)] for density in densities]
    if all(count == whole.entries for (count,) in counts):
        return [KEEP_ALL] * len(counts)
    return [cuts[0] for cuts in largest(whole, delta_magnitudes, counts)]


def delta_magnitudes(inputs: Inputs) -> list[Array]:
    """Return the magnitudes of the task vectors of one piece."""
    return [np.abs(delta, out=delta) for delta in inputs.deltas()]


def masked(delta: Array, mask: Array) -> Array:
    """Return the kept entries of a task vector, zeros elsewhere. Overwrites it."""
    delta *= mask
    return delta


def single_magnitude(delta: Array) -> Array:
    """Return the float32 magnitudes by which a task vector is cut."""
    return np.abs(delta).astype(np.float32, copy=False)


def draws(seed: int, names: Sequence[str], start: int, count: int) -> Array:
    """Return uniform draws in [0, 1), float32, for the entries start..start+count of what (seed, names) name."""
    skip = start % DRAWS_PER_COUNT
    source = np.random.Philox(key=seed_for(seed, *names), counter=start // DRAWS_PER_COUNT)
    return np.random.Generator(source).random(skip + count, dtype=np.float32)[skip:]


def keep_probabilities(delta: Array, density: float, epsilon: float) -> Array:
    """Return float32 probabilities that rise with the rank of the magnitude in the row, from density - to + epsilon.

    delta: (..., width). Of magnitudes that agree in their leading bits (20 or more) the earlier one ranks lower.
    """
    rows = delta if delta.ndim > 1 else delta[None]
    width = rows.shape[-1]
    if width == 1:
        return np.full(delta.shape, density, np.float32)
    rising = (density - epsilon + 2 * epsilon * np.arange(width) / (width - 1)).clip(0.0, 1.0).astype(np.float32)
    order = _order(single_magnitude(rows).reshape(-1, width))
    order += (np.arange(len(order)) * width)[:, None]
    found = np.empty(rows.size, np.float32)
    found[order] = rising
    return found.reshape(delta.shape)


def _order(magnitudes: Array) -> Array:
    """Return the places that sort each row (rows, width) of magnitudes, by sorting magnitude and place as one number."""
    width = magnitudes.shape[-1]
    place_bits = (width - 1).bit_length()
    bits = magnitudes.view(np.uint32)
    places = np.arange(width, dtype=np.uint32)
    if 31 - place_bits >= PACKED_BITS:
        # The sign bit is free: the magnitude moves up by one.
        keys = ((bits << 1) >> place_bits << place_bits) | places
        keys.sort(axis=-1)
        keys &= (1 << place_bits) - 1
        return keys.astype(np.int64)
    wide = (bits.astype(np.uint64) << np.uint64(32)) | places
    wide.sort(axis=-1)
    return (wide & np.uint64(0xFFFFFFFF)).astype(np.int64)


def l1_factors(whole: Whole, thin: Callable[[Inputs], Sequence[Array]]) -> list[float]:
    """Return what restores each task vector's L1 norm after `thin` dropped some of it (1 where nothing is left)."""

    def norms(inputs: Inputs) -> Array:
        before = [np.abs(delta).sum(dtype=np.float64) for delta in inputs.deltas()]
        after = [np.abs(delta).sum(dtype=np.float64) for delta in thin(inputs)]
        return np.array([before, after])

    before, after = whole.total(norms)
    return [float(b / a) if a > 0 else 1.0 for b, a in zip(before, after, strict=True)]


def column(whole: Whole, name: str) -> list[Any]:
    """Return one parameter of every model."""
    return [parameters[name] for parameters in whole.each]
