"""Text vectors without a model: signed hashes of character n-grams, so similar spellings are near.

Feature hashing of n-grams (Weinberger et al. 2009, arXiv:0902.2206) with fastText's word borders.
Exact and the same in every process.
"""

import re
import zlib
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIMENSIONS = 512
NGRAMS = (3, 4, 5)


def words(text: str) -> list[str]:
    """Return the lower-case words and numbers of `text`."""
    return re.findall(r"\w+", text.lower())


def embed(text: str) -> "NDArray[np.float32]":
    """Return the unit vector of `text`, (DIMENSIONS,) float32; all zero when it has no words."""
    counts = Counter(gram for word in words(text) for gram in _grams(word))
    if not counts:
        return np.zeros(DIMENSIONS, np.float32)
    hashes = np.fromiter(map(_hash, counts), np.int64, len(counts))
    signs = np.where(hashes >> 31, 1.0, -1.0)
    weights = signs * (1.0 + np.log(np.fromiter(counts.values(), np.float64, len(counts))))
    vector = np.bincount(hashes % DIMENSIONS, weights, DIMENSIONS)
    norm = float(np.linalg.norm(vector))
    return (vector / norm if norm else vector).astype(np.float32)


# Words and their parts repeat: an index of documents asks for each thousands of times.
@lru_cache(1 << 18)
def _hash(gram: str) -> int:
    return zlib.crc32(gram.encode("utf-8", "surrogatepass"))


@lru_cache(1 << 16)
def _grams(word: str) -> tuple[str, ...]:
    """Return the bordered word and its n-grams, repeated ones too."""
    bordered = f"<{word}>"
    return (
        bordered,
        *(
            bordered[i : i + n]
            for n in NGRAMS
            for i in range(len(bordered) - n + 1)
            if n < len(bordered)
        ),
    )


def fuse(rankings: list[list[int]], constant: float = 60.0) -> list[tuple[int, float]]:
    """Merge rankings by reciprocal rank: score(d) = Σ 1/(constant + rank). Best first; ties by id.

    Source: Cormack, Clarke, Büttcher 2009, who use 60.
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1.0 / (constant + rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
