"""Near-duplicate documents by MinHash: pairs that share a band of their signatures are compared.

Exact duplicates are already one document (documents.py keys them by hash). Source: Broder 1997;
banding as in Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 5
# a pair of overlap s meets in some band with probability 1 - (1 - s^4)^32: .5 at s = .38
BANDS, ROWS = 32, 4


def keep_first(texts: Sequence[str], overlap: float) -> list[int]:
    """Return the indices of texts that do not overlap an earlier one, kept, by `overlap` or more.

    The overlap is the Jaccard index of word shingles.
    """
    multiply, add = _hash_family()
    tables: list[dict[bytes, list[int]]] = [{} for _ in range(BANDS)]
    shingles: dict[int, NDArray[np.uint64]] = {}
    originals = []
    for index, text in enumerate(texts):
        mine = shingled(text)
        signature = _signature(mine, multiply, add)
        keys = [signature[band * ROWS : (band + 1) * ROWS].tobytes() for band in range(BANDS)]
        near = {
            other for table, key in zip(tables, keys, strict=True) for other in table.get(key, ())
        }
        if any(jaccard(mine, shingles[other]) >= overlap for other in sorted(near)):
            continue
        originals.append(index)
        shingles[index] = mine
        for table, key in zip(tables, keys, strict=True):
            table.setdefault(key, []).append(index)
    return originals


def shingled(text: str) -> NDArray[np.uint64]:
    """Return the sorted distinct hashes of a text's runs of five words (of all its words when it
    has fewer).
    """
    words = text.lower().split()
    runs = {
        " ".join(words[i : i + SHINGLE_WORDS])
        for i in range(max(len(words) - SHINGLE_WORDS + 1, 1))
    }
    hashes = [
        int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "little")
        for run in runs
    ]
    return np.unique(np.asarray(hashes, np.uint64))


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """Return |intersection| / |union| of two sorted sets."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def _hash_family() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    generator = np.random.default_rng(1997)  # Any fixed family of hash functions will do.
    multiply, add = generator.integers(0, 1 << 64, (2, BANDS * ROWS), dtype=np.uint64)
    return multiply | np.uint64(1), add


def _signature(
    hashes: NDArray[np.uint64], multiply: NDArray[np.uint64], add: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Return the least value of each hash function over the set: (BANDS * ROWS,).

    Multiply-add-shift modulo 2^64 (Dietzfelbinger 1996): the overflow is what makes the orders
    differ.
    """
    least = [((hashes * m + a) >> np.uint64(32)).min() for m, a in zip(multiply, add, strict=True)]
    return np.asarray(least, np.uint64)
