"""Find the allocation for a quality floor by measuring allocations along the hull."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from agent_forge.codecs import allocate
from agent_forge.codecs.allocate import Choice, Option
from agent_forge.codecs.payload import Payload
from agent_forge.core.events import EventLog
from agent_forge.models import compressed
from agent_forge.phases.compress import Config
from agent_forge.phases.compress.offers import Offer
from agent_forge.phases.compress.recover import light_copy

# So many prices are tried between the dearest and the cheapest choice.
HULL_PRICES = 400


@dataclass(frozen=True, slots=True)
class CodedModel:
    """A model and the offers of the tensors that will be coded, in their order.

    fp32_bytes: the size of everything that the model stores, in float32.
    """

    model: PreTrainedModel
    offers: Mapping[str, list[Offer]]
    fp32_bytes: int

    @property
    def options(self) -> list[list[Option]]:
        """Return bytes and distortion of every offer, tensor by tensor."""
        return [[offer.option() for offer in offers] for offers in self.offers.values()]

    @property
    def weights(self) -> int:
        """Return how many weights will be coded."""
        return sum(offers[0].shape[0] * offers[0].shape[1] for offers in self.offers.values())

    def build(self, choice: Choice) -> PreTrainedModel:
        """Return a compressed copy of the model; the model itself stays as it is."""
        return build(self.model, self.offers, choice)


def picked(offers: Mapping[str, list[Offer]], choice: Choice) -> dict[str, Payload]:
    """Return the payload of each tensor that the choice selects."""
    return {
        name: options[i].payload(name)
        for (name, options), i in zip(offers.items(), choice, strict=True)
    }


def build(
    model: PreTrainedModel, offers: Mapping[str, list[Offer]], choice: Choice
) -> PreTrainedModel:
    """Return a compressed copy of `model`; the model itself stays as it is."""
    return compressed.compress(light_copy(model, offers), picked(offers, choice))


def hull(tensors: Sequence[Sequence[Option]], max_seed_blocks: int) -> list[Choice]:
    """Return the distinct choices along the Lagrangian's hull, from most to fewest bytes."""
    slopes = [
        (a.distortion - b.distortion) / (b.size_bytes - a.size_bytes)
        for options in tensors
        for a in options
        for b in options
        if b.size_bytes > a.size_bytes and a.distortion > b.distortion
    ]
    prices = [0.0, float("inf")]
    if slopes:
        low, high = math.log(min(slopes)) - 0.1, math.log(max(slopes)) + 0.1
        prices[1:1] = [
            math.exp(low + (high - low) * i / (HULL_PRICES - 1)) for i in range(HULL_PRICES)
        ]
    choices: list[Choice] = []
    for price in prices:
        choice = allocate.at_price(tensors, price, max_seed_blocks=max_seed_blocks)
        if choice not in choices:
            choices.append(choice)
    return sorted(choices, key=lambda c: -allocate.total_bytes(tensors, c))


def smallest_above_floor(
    choices: Sequence[Choice],
    tensors: Sequence[Sequence[Option]],
    measured: Callable[[Choice], dict[str, Any]],
    config: Config,
    events: EventLog,
) -> tuple[Choice, list[dict[str, Any]]]:
    """Return the smallest measured choice whose quality is at the floor or above, and all points
    measured.

    Bisects the hull on the assumption that quality falls with bytes. When no measured choice
    reaches the floor, the largest is taken with a warning: the gate decides.
    """
    floor, points = config.budget.quality_floor, []
    low, high, best = 0, len(choices) - 1, None
    for step in range(config.budget.search_steps):
        if low > high:
            break
        middle = (low + high) // 2
        figures = measured(choices[middle])
        points.append(figures)
        events.progress("allocate", step + 1, config.budget.search_steps, figures)
        if figures["quality"] >= floor:
            best, low = middle, middle + 1
        else:
            high = middle - 1
    if best is None:
        best = 0
        figures = measured(choices[best])
        points.append(figures)
        if figures["quality"] < floor:
            size = allocate.total_bytes(tensors, choices[best])
            events.warning(
                f"no allocation of these candidates keeps quality {floor}: the best has {figures['quality']} at "
                f"{size:,} bytes; add candidates of more bits to codec.candidates"
            )
    return choices[best], points
