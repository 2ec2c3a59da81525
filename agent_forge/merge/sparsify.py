"""Keep part of a task vector: the largest entries, with or without outliers, or a random choice.

Cuts by magnitude are found without sorting: a sample brackets the cut, one pass counts what lies
above the bracket and collects the few entries in it, and the cut is selected among those (Floyd and
Rivest 1975). Should the cut lie outside its bracket, everything is collected: the result is exact
in any case. Random masks come from Philox, a counter-based generator: the draw of an entry depends
on (seed, tensor, model, place) alone. Sources: TIES (arXiv:2306.01708), Model Breadcrumbs
(arXiv:2312.06795), DARE (arXiv:2311.03099), DELLA (arXiv:2406.11617), Philox (Salmon et al. 2011).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from agent_forge.core.seeds import seed_for
from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Inputs
from agent_forge.merge.pieces import Whole

SAMPLE_ENTRIES = 1 << 14  # entries of a tensor from which the place of a cut is estimated
# standard deviations of the estimate by which its bracket reaches to each side
SAMPLE_DEVIATIONS = 4.0
EVERYTHING = (0.0, math.inf)
DRAWS_PER_COUNT = 8  # one step of Philox's counter gives four 64-bit numbers: eight float32 draws
# how many of a magnitude's bits must fit beside the place in the row, to sort both in 32 bits
PACKED_BITS = 20


@dataclass(frozen=True, slots=True)
class Cut:
    """The `count` largest magnitudes of a tensor: all above `threshold`, and of those equal to it
    the first ones.

    equals: start of a piece -> how many of its entries that equal the threshold are kept.
    """

    threshold: np.float32
    equals: Mapping[int, int]

    def mask(self, magnitudes: Array, start: int) -> Array:
        """Return which entries of the piece from `start` on are kept; magnitudes are float32."""
        chosen = magnitudes > self.threshold
        ties = self.equals.get(start, 0)
        if ties:
            flat = chosen.reshape(-1)
            flat[np.flatnonzero(magnitudes == self.threshold)[:ties]] = True
        return chosen


KEEP_ALL = Cut(np.float32(-1.0), {})


def largest(
    whole: Whole, magnitudes: Callable[[Inputs], Sequence[Array]], counts: Sequence[Sequence[int]]
) -> list[list[Cut]]:
    """Return, for magnitude array k, the cut of each count in counts[k].

    magnitudes: a piece (float32) -> non-negative float32 arrays of its shape, one for each entry of
    `counts`.
    """
    needed = [[min(count, whole.entries) for count in each] for each in counts]
    brackets = _brackets(whole, magnitudes, needed)
    cuts: list[list[Cut | None]] = [[None] * len(each) for each in needed]
    starts = [start for start, _ in whole.borders()]
    for tried in (brackets, [[EVERYTHING] * len(each) for each in needed]):
        missing = [
            (k, j) for k, each in enumerate(cuts) for j, cut in enumerate(each) if cut is None
        ]
        if not missing:
            break
        inside = list(whole.map(partial(_inside, magnitudes, tried, missing), single=True))
        for place, (k, j) in enumerate(missing):
            above = sum(piece[place][0] for piece in inside)
            cuts[k][j] = _cut(needed[k][j] - above, starts, [piece[place][1] for piece in inside])
    return [[cut for cut in each if cut is not None] for each in cuts]


def _brackets(
    whole: Whole, magnitudes: Callable[[Inputs], Sequence[Array]], needed: Sequence[Sequence[int]]
) -> list[list[tuple[float, float]]]:
    """Return bounds between which each cut almost certainly lies, from a sample of every piece."""
    borders = whole.borders()
    if len(borders) < 2:
        return [[EVERYTHING] * len(each) for each in needed]
    # The beginning of every piece is read: runs are faster than single entries all over the tensor.
    step = max(1, SAMPLE_ENTRIES // len(borders))
    pieces = [magnitudes(whole.piece(a, min(b, a + step), single=True)) for a, b in borders]
    brackets = []
    for k, each in enumerate(needed):
        sample = np.sort(np.concatenate([piece[k] for piece in pieces]))
        bounds = []
        for count in each:
            share = 1.0 - count / whole.entries
            # The share of a sample below the cut is binomial; 2 entries are for rounding.
            deviation = math.sqrt(share * (1.0 - share) / len(sample))
            slack = SAMPLE_DEVIATIONS * deviation + 2.0 / len(sample)
            low, high = (round((share + sign * slack) * len(sample)) for sign in (-1, 1))
            bounds.append(
                (
                    float(sample[low]) if low > 0 else 0.0,
                    float(sample[high]) if high < len(sample) else math.inf,
                )
            )
        brackets.append(bounds)
    return brackets


def _inside(
    magnitudes: Callable[[Inputs], Sequence[Array]],
    brackets: Sequence[Sequence[tuple[float, float]]],
    which: Sequence[tuple[int, int]],
    inputs: Inputs,
) -> list[tuple[int, Array]]:
    """Return for each bracket how many entries of the piece lie above it, and the ones inside."""
    inside = []
    arrays = magnitudes(inputs)
    for k, j in which:
        low, high = brackets[k][j]
        array = arrays[k].reshape(-1)
        above = int(np.count_nonzero(array > np.float32(high)))
        # Both bounds are applied before selecting: few entries are selected many times faster than
        # half of them.
        inside.append((above, array[(array >= np.float32(low)) & (array <= np.float32(high))]))
    return inside


def _cut(need: int, starts: Sequence[int], pieces: Sequence[Array]) -> Cut | None:
    """Return the cut that keeps `need` of all pieces' entries, None when it lies elsewhere."""
    values = np.concatenate(pieces)
    if not 0 < need <= values.size:
        return None
    threshold = np.partition(values, values.size - need)[values.size - need]
    still = need - int(np.count_nonzero(values > threshold))
    # Entries equal to the threshold are kept from the first one on, until the count is reached, so
    # the choice does not depend on how the selection ordered them.
    equals = {}
    for start, piece in zip(starts, pieces, strict=True):
        here = min(still, int(np.count_nonzero(piece == threshold)))
        if here:
            equals[start] = here
            still -= here
    return Cut(threshold, equals)


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
    """Return uniform draws in [0, 1), float32, of the entries start..start+count of stream (seed,
    names).
    """
    # A counter yields several draws, and a piece may begin between them.
    skip = start % DRAWS_PER_COUNT
    source = np.random.Philox(key=seed_for(seed, *names), counter=start // DRAWS_PER_COUNT)
    return np.random.Generator(source).random(skip + count, dtype=np.float32)[skip:]


def keep_probabilities(delta: Array, density: float, epsilon: float) -> Array:
    """Return float32 probabilities, density - epsilon to density + epsilon, by the magnitude's rank
    in its row.

    delta: (..., width). Of magnitudes that agree in their leading bits (20 or more) the earlier one
    ranks lower.
    """
    rows = delta if delta.ndim > 1 else delta[None]
    width = rows.shape[-1]
    if width == 1:
        return np.full(delta.shape, density, np.float32)
    rising = (
        (density - epsilon + 2 * epsilon * np.arange(width) / (width - 1))
        .clip(0.0, 1.0)
        .astype(np.float32)
    )
    order = _order(single_magnitude(rows).reshape(-1, width))
    order += (np.arange(len(order)) * width)[:, None]
    ranks = np.empty(rows.size, np.float32)
    # Two flat arrays are twice as fast as broadcasting.
    ranks[order.reshape(-1)] = np.tile(rising, len(order))
    return ranks.reshape(delta.shape)


def _order(magnitudes: Array) -> Array:
    """Return the places that sort each row (rows, width) of magnitudes.

    Magnitude and place are sorted as one number.
    """
    width = magnitudes.shape[-1]
    place_bits = (width - 1).bit_length()
    bits = magnitudes.view(np.uint32)
    places = np.arange(width, dtype=np.uint32)
    if 31 - place_bits >= PACKED_BITS:
        # The sign bit is not needed, so the magnitude moves up by one bit.
        # The place takes the lowest bits, which the magnitude loses.
        keys = bits << 1
        keys >>= place_bits
        keys <<= place_bits
        keys |= places
        keys.sort(axis=-1)
        keys &= (1 << place_bits) - 1
        return keys.astype(np.int64)
    wide = (bits.astype(np.uint64) << np.uint64(32)) | places
    wide.sort(axis=-1)
    return (wide & np.uint64(0xFFFFFFFF)).astype(np.int64)


def l1_factors(whole: Whole, thin: Callable[[Inputs], Sequence[Array]]) -> list[float]:
    """Return what restores each task vector's L1 norm after `thin` dropped some; 1 if nothing is
    left.
    """

    def norms(inputs: Inputs) -> Array:
        before = [np.abs(delta).sum(dtype=np.float64) for delta in inputs.deltas()]
        after = [np.abs(delta).sum(dtype=np.float64) for delta in thin(inputs)]
        return np.array([before, after])

    before, after = whole.total(norms)
    return [float(b / a) if a > 0 else 1.0 for b, a in zip(before, after, strict=True)]


def column(whole: Whole, name: str) -> list[Any]:
    """Return one parameter of every model."""
    return [parameters[name] for parameters in whole.each]
