"""Choose the next token of one sequence in numpy, by the random numbers of `generation.py`.

For engines that run without torch.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import ConfigError


class TokenMask(Protocol):
    """Which tokens may come next in one answer, for instance what a grammar allows."""

    def allowed(self, size: int) -> NDArray[np.bool_]:
        """Return which of the `size` tokens of a vocabulary may come next."""

    def take(self, token: int) -> None:
        """Note the token that was chosen."""


def check_sampling(temperature: float, top_p: float) -> None:
    """Raise ConfigError for a temperature or top_p outside its limits."""
    if temperature < 0 or not 0 < top_p <= 1:
        raise ConfigError(
            f"temperature must be >= 0 and top_p in (0, 1], got {temperature} and {top_p}"
        )


def choose(logits: NDArray[np.float32], temperature: float, top_p: float, draw: float) -> int:
    """Return a token from logits (vocabulary,): the likeliest at temperature 0, else by `draw`.

    draw: uniform in [0, 1); it picks the token at which the cumulated probability passes it, in the
    smallest set of likeliest tokens whose probability reaches top_p.
    """
    if temperature <= 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-weights, kind="stable")
    probabilities = weights[order] / weights.sum()
    cumulated = probabilities.cumsum()
    nucleus = int((cumulated - probabilities < top_p).sum())
    point = draw * cumulated[nucleus - 1]
    return int(order[min(int((cumulated <= point).sum()), nucleus - 1)])
