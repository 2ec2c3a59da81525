"""All that training changes: weights, buffers, the optimisers' moments, the average of the last
steps, and the copy that a rollback returns to.

All of it has a name, so that a stage is saved, restored, rolled back and handed on as one flat dict
of tensors.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from agent_forge.config import OptimConfig
from agent_forge.learn import state as states
from agent_forge.learn.averaging import TailAverage
from agent_forge.learn.distribution import whole
from agent_forge.learn.optimisers import Optimisers

LAST = "last/"  # what the names of the last step's weights begin with


class Trained:
    """The model (or working copy) of a stage and what belongs to it."""

    def __init__(
        self, model: nn.Module, optim: OptimConfig, parameters: list[Any] | None, decay: float
    ) -> None:
        self.model = model
        self.optimisers = Optimisers(model, optim, parameters)
        stored = set(model.state_dict())
        self.buffers = {name: value for name, value in model.named_buffers() if name in stored}
        self.average = TailAverage(decay)
        self.remembered: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}

    def keep(self) -> None:
        """Remember weights and optimiser as they are."""
        self.remembered = {key: value.detach().clone() for key, value in self._live().items()}

    def go_back(self) -> None:
        """Return to what `keep` remembered."""
        self._load(self.remembered)

    def finish(self, *, keep_last: bool = False) -> None:
        """Put the average in place, and drop all but weights and moments.

        keep_last: also keep the weights of the last step, where an average takes their place.
        """
        if keep_last and self.average.tensors:
            self.last = {name: weight.detach().clone() for name, weight in self.optimisers.named}
        self.average.put_into(self.optimisers.named)
        self.optimisers.zero_grad()
        self.remembered = {}

    def tensors(self, *, moments: bool) -> dict[str, Tensor]:
        """Return everything by name, as whole tensors; all processes must call it.

        moments: whether the optimisers' state is included.
        """
        named = self._live() if moments else self._weights()
        named |= {f"average/{key}": value for key, value in self.average.tensors.items()}
        named |= {f"kept/{key}": value for key, value in self.remembered.items()}
        named |= {f"{LAST}{key}": value for key, value in self.last.items()}
        return {key: whole(value) for key, value in named.items()}

    def load(self, tensors: Mapping[str, Tensor], averaged_steps: int) -> None:
        """Restore weights, moments and average from a saved state; the rollback's copy stays."""
        parameters: dict[str, Tensor] = dict(self.optimisers.named)
        self.average.load(under("average/", tensors), averaged_steps, parameters)
        self._load(tensors)

    def hand_back(self, model: nn.Module) -> None:
        """Put the result of a sharded working copy into the caller's model."""
        if model is self.model:
            return
        targets = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, value in [*self.optimisers.named, *self.buffers.items()]:
            states.copy_into(targets[name], whole(value.detach()))

    def _weights(self) -> dict[str, Tensor]:
        weights = {
            f"weight/{name}": parameter.detach() for name, parameter in self.optimisers.named
        }
        return weights | {f"buffer/{name}": value for name, value in self.buffers.items()}

    def _live(self) -> dict[str, Tensor]:
        return self._weights() | {
            f"optimiser/{key}": value for key, value in self.optimisers.tensors().items()
        }

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.optimisers.named:
            states.copy_into(parameter, tensors[f"weight/{name}"])
        for name, buffer in self.buffers.items():
            states.copy_into(buffer, tensors[f"buffer/{name}"])
        self.optimisers.load_tensors(under("optimiser/", tensors))


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose name begins with `prefix`, without it."""
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
