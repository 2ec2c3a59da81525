"""A candidate, and how it is put into the model: always rebuilt from the input, never from another
candidate.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agent_forge.anatomy.stack import Matrix
from agent_forge.phases.adas.experts import ExpertBank
from agent_forge.phases.adas.pool import COMPOSITIONS, EDITS, Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One point of the search.

    technique: the name of a composition. alpha: the strength of each domain's expert. edits: the
    names of edits, in the order in which they are applied.
    """

    technique: str
    alpha: tuple[float, ...]
    edits: tuple[str, ...] = ()

    @property
    def changes_nothing(self) -> bool:
        """Return whether this is the input itself."""
        return not any(self.alpha) and not self.edits

    def to_plain(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> "Candidate":
        """Return what `to_plain` wrote."""
        return cls(
            technique=content["technique"],
            alpha=tuple(content["alpha"]),
            edits=tuple(content["edits"]),
        )


class MergeBench:
    """Turns the model into any candidate, and back into the input exactly.

    subject: builds the view that an edit has of the model, from a reader of current weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        bank: ExpertBank,
        matrices: Sequence[Matrix],
        subject: Callable[[Callable[[str], Tensor]], Subject],
    ) -> None:
        self.model, self.bank, self._subject = model, bank, subject
        self.known = {matrix.name for matrix in matrices}
        self._kept: dict[str, Tensor] = {}

    @contextmanager
    def applied(self, candidate: Candidate) -> Iterator[PreTrainedModel]:
        """Yield the model with the candidate's weights; restore the input's bytes afterwards."""
        self.put(candidate)
        try:
            yield self.model
        finally:
            self.restore()

    @torch.no_grad()
    def put(self, candidate: Candidate) -> None:
        """Write the candidate's weights into the model."""
        self.restore()
        if any(candidate.alpha):
            for name, delta in COMPOSITIONS[candidate.technique](
                self.bank, candidate.alpha
            ).items():
                self._write(name, self.bank.base[name] + delta)
        for edit in candidate.edits:
            view = self._subject(lambda name: self.model.get_parameter(name).detach().float())
            for name, weight in EDITS[edit].apply(view).items():
                self._write(name, weight)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the input weights bit for bit."""
        for name, original in self._kept.items():
            self.model.get_parameter(name).copy_(original)
        self._kept.clear()

    def _write(self, name: str, weight: Tensor) -> None:
        assert name in self.known, name
        parameter = self.model.get_parameter(name)
        if name not in self._kept:
            self._kept[name] = parameter.detach().clone()
        parameter.copy_(weight)
