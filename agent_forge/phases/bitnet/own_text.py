"""Training windows that the parent writes, for when there is no data: `train.mix.own` above 0.

Each window begins with a token drawn from the whole vocabulary and goes on as the parent samples
(LLM-QAT, arXiv:2305.17888; departure: no greedy beginning). Reads the parent, writes nothing.
"""

import hashlib
from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from agent_forge import models
from agent_forge.core.seeds import numpy_generator

KIND = "own"


def first_tokens(vocabulary: int, count: int, never: Collection[int], seed: int) -> list[int]:
    """Return the ids that windows begin with, drawn from all but those in `never`."""
    allowed = np.setdiff1d(np.arange(vocabulary), np.asarray(sorted(never), np.int64))
    drawn = numpy_generator(seed, "bitnet", "own", "first").choice(allowed, count)
    return [int(token) for token in drawn]


def sample(
    parent: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    length: int,
    temperature: float,
    seed: int,
) -> Tensor:
    """Return the windows that the parent writes from beginnings of one length: (n, length) int64."""
    starts = [list(prompt) for prompt in prompts]
    decoding = models.Decoding(
        max_new_tokens=length - len(starts[0]), temperature=temperature, seed=seed
    )
    rest = models.generate(parent, starts, decoding)
    return torch.tensor(
        [start + continuation for start, continuation in zip(starts, rest, strict=True)]
    )


class OwnText:
    """Windows (count, length) that can be taken at random. A shorter window is the beginning of
    one.
    """

    def __init__(self, windows: Tensor) -> None:
        self.windows = windows

    def take(
        self, generator: np.random.Generator, length: int
    ) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return a random window as (ids, labels)."""
        ids = self.windows[int(generator.integers(len(self.windows)))][:length].numpy()
        return ids, ids.copy()

    def fingerprint(self) -> str:
        """Return a hash of all ids."""
        return hashlib.sha256(self.windows.numpy().tobytes()).hexdigest()[:16]
