"""The three kinds of techniques and what each is given."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from agent_forge.anatomy.stack import Matrix
from agent_forge.phases.adas.experts import ExpertBank, Tensors

OURS = "ours: the summary is the whole definition"


@dataclass(frozen=True, slots=True)
class Composition:
    """A way to turn strengths (one a domain) into what is added to each matrix. Strengths of 0 add
    exactly nothing.

    needs: fewest domains with a strength other than 0. source: where the idea is from.
    """

    name: str
    family: str
    summary: str
    compose: Callable[[ExpertBank, Sequence[float]], Tensors]
    needs: int = 1
    source: str = OURS

    def __call__(self, bank: ExpertBank, alpha: Sequence[float]) -> Tensors:
        """Return what is added to each matrix; empty when there is nothing to compose."""
        active = sum(a != 0 for a in alpha)
        return self.compose(bank, alpha) if active >= self.needs else {}


@dataclass(slots=True, kw_only=True)
class Subject:
    """What an edit sees: the current weights, the role of each matrix, and how the model behaves on
    neutral text.

    weight: name -> (out, in) float32. influence[layer]: 1 - mean cosine between the stream before
    and after the layer. share[matrix name]: mean norm that a residual branch writes, relative to
    the stream. stream[layer]: mean hidden state (d) on task text minus the mean on plain text.
    """

    matrices: list[Matrix]
    weight: Callable[[str], Tensor]
    heads: int
    kv_heads: int
    influence: dict[int, float]
    share: dict[str, float]
    stream: dict[int, Tensor]
    rank_share: float
    density: float
    extra: Mapping[str, Any] = field(default_factory=dict)

    def of_role(self, *roles: str, layer: int | None = None) -> list[Matrix]:
        """Return the matrices of some roles, of one layer or all."""
        return [m for m in self.matrices if m.role in roles and layer in (None, m.layer)]

    def layers(self) -> list[int]:
        """Return the layer numbers in order."""
        return sorted({matrix.layer for matrix in self.matrices})


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of the weights of a few matrices, chosen by looking at the model.

    source: where the idea is from.
    """

    name: str
    family: str
    summary: str
    apply: Callable[[Subject], Tensors]
    source: str = OURS


@dataclass(frozen=True, slots=True)
class RunTime:
    """Settings of the agent (the manifest's `agent` entry); `examples` are solved rows it may
    show. source: where the idea is from.
    """

    name: str
    family: str
    summary: str
    settings: Callable[[Sequence[tuple[str, str]]], dict[str, Any]]
    source: str = OURS


def cut_rank(weight: Tensor, rank: int) -> Tensor:
    """Return the best approximation of a matrix (out, in) of at most `rank`."""
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]
