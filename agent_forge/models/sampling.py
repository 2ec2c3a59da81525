"""How tokens are chosen: the settings that every engine shares, and the choice in numpy.

`Decoding` is what `generation.py` and `runtime/talker.py` are given; `choose` is for engines that
run without torch, by the random numbers of `generation.py`. Sources: top-k, Fan et al. 2018, arXiv:1805.04833; min-p,
Nguyen et al. 2024, arXiv:2407.01082; typical, Meister et al. 2022, arXiv:2202.00666.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """What is left out of a distribution before a token is drawn, one cut after the other.

    top_k: all but so many of the likeliest tokens; 0 keeps all. min_p: tokens below this share of
    the likeliest one's probability. typical_p: all but the tokens whose surprise is nearest to the
    entropy, up to this mass. Raises ConfigError for values outside their limits.
    """

    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0

    def __post_init__(self) -> None:
        if self.top_k < 0 or not 0 <= self.min_p <= 1 or not 0 < self.typical_p <= 1:
            raise ConfigError(
                "top_k must be >= 0, min_p in [0, 1] and typical_p in (0, 1], got "
                f"{self.top_k}, {self.min_p} and {self.typical_p}"
            )

    @property
    def any(self) -> bool:
        """Return whether anything is cut."""
        return self != NO_CUTS


NO_CUTS = Cuts()


@dataclass(frozen=True, slots=True)
class Gate:
    """A token that an answer may begin with only where it is likely enough.

    token: for instance the first one of every tool call. least: its least probability, in (0, 1],
    at temperature 1 and over the whole vocabulary. Below that the answer begins with the likeliest
    of the others. Source: the reject option, Chow 1970, On optimum recognition error and reject
    tradeoff.
    """

    token: int
    least: float

    def __post_init__(self) -> None:
        """Raise ConfigError for a probability outside its limits."""
        if not 0 < self.least <= 1:
            raise ConfigError(f"the least probability of a gate is in (0, 1], got {self.least}")

    def shut(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits (vocabulary,) without the token where it is not likely enough."""
        weights = np.exp(logits.astype(np.float64) - logits.max())
        if weights[self.token] >= self.least * weights.sum():
            return logits
        result = logits.copy()
        result[self.token] = -np.inf
        return result


TINY = 1e-300  # keeps the logarithm of a token that was cut finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How answers are decoded, and where one ends.

    stop_ids: tokens that end an answer, and are not part of it. temperature: 0 is greedy. cuts:
    what is left out beside top_p. seed: what the random numbers of all prompts come from. gate: a
    token that answers may begin with only where it is likely enough; None lets every token begin.

    The rest changes the speed alone, and tokens no more than rounding does. batch_rows: the most
    prompts in one batch. static: generate from a cache of fixed size, where the model can; None
    does so on CUDA, where it is faster. The packed engine has neither batches nor such a cache.

    Raises ConfigError for a negative temperature and a top_p outside (0, 1].
    """

    max_new_tokens: int
    stop_ids: Collection[int] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    cuts: Cuts = NO_CUTS
    seed: int = 0
    gate: Gate | None = None
    batch_rows: int = 32
    static: bool | None = None

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_p)


class TokenMask(Protocol):
    """Which tokens may come next in one answer, for instance what a grammar allows."""

    def allowed(self, size: int) -> NDArray[np.bool_]:
        """Return which of the `size` tokens of a vocabulary may come next."""

    def take(self, token: int) -> None:
        """Note the token that was chosen."""


def check_sampling(temperature: float, top_p: float, cuts: Cuts = NO_CUTS) -> None:
    """Raise ConfigError for a temperature or top_p outside its limits, and for cuts that would
    change nothing, because the likeliest token is taken at temperature 0.
    """
    if temperature < 0 or not 0 < top_p <= 1:
        raise ConfigError(
            f"temperature must be >= 0 and top_p in (0, 1], got {temperature} and {top_p}"
        )
    if temperature == 0 and cuts.any:
        raise ConfigError(
            "top_k, min_p and typical_p are for sampling, and temperature=0 takes the likeliest "
            "token; set a temperature above 0, or leave them out"
        )


def choose(
    logits: NDArray[np.float32],
    temperature: float,
    top_p: float,
    draw: float,
    cuts: Cuts = NO_CUTS,
) -> int:
    """Return a token from logits (vocabulary,): the likeliest at temperature 0, else by `draw`.

    draw: uniform in [0, 1); it picks the token at which the cumulated probability passes it, in the
    smallest set of likeliest tokens whose probability reaches top_p. cuts: made before that.
    """
    if temperature <= 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-weights, kind="stable")
    probabilities = weights[order] / weights.sum()
    if cuts.any:
        probabilities = cut(probabilities, cuts)
    cumulated = probabilities.cumsum()
    nucleus = int((cumulated - probabilities < top_p).sum())
    point = draw * cumulated[nucleus - 1]
    return int(order[min(int((cumulated <= point).sum()), nucleus - 1)])


def cut(probabilities: NDArray[np.float64], cuts: Cuts) -> NDArray[np.float64]:
    """Return a distribution (vocabulary,) that falls from left to right, after the cuts."""
    left = probabilities.copy()
    if cuts.top_k:
        left[cuts.top_k :] = 0.0
    left[left < cuts.min_p * left[0]] = 0.0
    left /= left.sum()
    if cuts.typical_p < 1:
        surprise = -np.log(np.maximum(left, TINY))
        distance = np.where(left > 0, np.abs(surprise - (left * surprise).sum()), np.inf)
        order = np.argsort(distance, kind="stable")
        mass = left[order]
        left[order[mass.cumsum() - mass >= cuts.typical_p]] = 0.0
        left /= left.sum()
    return left
