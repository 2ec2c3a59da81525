"""Evolve merges of models of one shape: parameter space (how to mix weights) and data-flow space
(which layers to run).

Candidates are merged in memory from shared task vectors and raced on items of the search split, in
this process, a process pool or on Ray. The parents, their uniform soup and the greedy soup are
members from the start, so the winner is never worse than they are on the search fitness; it is
judged on the test split, against them and random search. Source: Akiba et al. 2024,
arXiv:2403.13187. Reads the trunk (first of `sources`, the base that task vectors need) and its
specialists; writes the winner with its recipe, merge.yaml, and a model card, README.md.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from agent_forge.config import Phase, PhaseConfig
from agent_forge.config.limits import (
    MANY,
    Count,
    CountOrNone,
    Fitness,
    Plugin,
    PositiveShare,
    Range,
    Share,
    Weight,
)
from agent_forge.core.errors import ConfigError
from agent_forge.search.settings import EvolveSettings


@dataclass(slots=True, kw_only=True)
class MergeConfig:
    """The space of recipes. Ranges are [low, high]."""

    techniques: list[Annotated[str, Plugin("agent_forge.merge.methods", "merge method")]]
    anchors: Count
    weight: list[Annotated[float, Range(-1000, 1000)]]
    density: list[PositiveShare]
    strength: list[Annotated[float, Range(-1000, 1000)]]
    input_scale: list[Annotated[float, Range(0, 1000, above=True)]]
    extra_layers: CountOrNone
    fewer_layers: CountOrNone

    def validate(self) -> None:
        """Check settings that depend on each other. Raises ConfigError."""
        for name in ("weight", "density", "strength", "input_scale"):
            bounds = list(getattr(self, name))
            if len(bounds) != 2 or bounds[0] > bounds[1]:
                raise ConfigError(f"merge.{name} must be [low, high], got {bounds}; try [0.5, 1.0]")
        if not list(self.techniques):
            raise ConfigError("merge.techniques is empty; name at least one, for example [linear]")


@dataclass(slots=True, kw_only=True)
class Config(PhaseConfig):
    """Settings of the evomerge phase."""

    fitness: Fitness
    items: Annotated[int, Range(4, MANY)]
    final_items: CountOrNone
    test_items: Annotated[int, Range(4, MANY)]
    floor: Share
    floor_penalty: Weight
    batch_tokens: CountOrNone
    samples: Count
    baseline: bool
    merge: MergeConfig
    search: EvolveSettings

    def work_tokens(self) -> float:
        """Return the cost of the forward passes over search items, in trained tokens.

        An item counts as about 100 tokens.
        """
        shares = self.search.race
        raced = sum(
            share * 0.5**i
            for i, share in enumerate(shares[:1] + [b - a for a, b in pairwise(shares)])
        )
        candidates = self.search.population + self.search.generations * self.search.children * raced
        final = (self.search.population * self.search.islands + 8) * self.final_items
        searched = (candidates * self.items * self.search.islands + final) * (
            2 if self.baseline else 1
        )
        # On the test split: the winner, four sources, two soups, random search.
        examined = self.test_items * 8
        return (searched + examined) * len(self.fitness) * 100 / 3

    def step_tokens(self) -> float:
        """Return the tokens of one batch of scoring, which keeps no activations."""
        return self.batch_tokens / 20


PHASE = Phase(
    "evomerge",
    2,
    "Evolve a merge of the trunk and its specialists",
    Config,
    effort=1.5,
    copies=15.0,
    example="search=nano",
)
