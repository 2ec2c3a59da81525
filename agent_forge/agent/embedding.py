"""Text vectors without a model: signed hashes of character n-grams, so similar spellings are near.

Feature hashing of n-grams (Weinberger et al. 2009, arXiv:0902.2206) with fastText's word borders.
Exact and the same in every process.
"""

import re
import zlib
from collections import Counter
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
    vector = np.zeros(DIMENSIONS, np.float64)
    for gram, count in Counter(_grams(text)).items():
        hashed = zlib.crc32(gram.encode())
        vector[hashed % DIMENSIONS] += (1.0 if hashed >> 31 else -1.0) * (1.0 + np.log(count))
    norm = float(np.linalg.norm(vector))
    return (vector / norm if norm else vector).astype(np.float32)


def _grams(text: str) -> list[str]:
    grams = []
    for word in words(text):
        bordered = f"<{word}>"
        grams.append(bordered)
        grams += [
            bordered[i : i + n]
            for n in NGRAMS
            for i in range(len(bordered) - n + 1)
            if n < len(bordered)
        ]
    return grams


def fuse(rankings: list[list[int]], constant: float = 60.0) -> list[tuple[int, float]]:
    """Merge rankings by reciprocal rank: score(d) = Σ 1/(constant + rank). Best first; ties by id.

    Source: Cormack, Clarke, Büttcher 2009, who use 60.
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1.0 / (constant + rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
