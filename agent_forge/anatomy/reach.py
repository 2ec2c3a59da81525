"""Count the weights of a model that a method reaches, and name the kinds of the others.

Reads a model, on the meta device too, and the parameters that were reached.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

SMALLEST_SHARE = 0.005  # a kind with a smaller share of the weights is not named


@dataclass(slots=True)
class Reach:
    """How many weights of a model are reached, and of each kind in `missed`, how many are not."""

    total: int
    reached: int
    missed: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Return the share of the weights that is reached."""
        return self.reached / max(self.total, 1)

    def line(self, verb: str) -> str:
        """Return one line: what share is reached, and what the rest is, largest first."""
        rest = sorted(self.missed.items(), key=lambda one: -one[1])
        parts = [
            f"{kind} {_percent(n / self.total)}"
            for kind, n in rest
            if n >= SMALLEST_SHARE * self.total
        ]
        small = (
            self.total - self.reached - sum(n for _, n in rest if n >= SMALLEST_SHARE * self.total)
        )
        parts += (
            [f"norms, biases and other small tensors {_percent(small / self.total)}"]
            if small
            else []
        )
        return (
            f"{verb} {_percent(self.share)} of {self.total:,} weights; not reached: "
            f"{', '.join(parts) or 'nothing'}"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%" if share < 0.9995 or share == 1 else f"{100 * share:.5g}%"


def counted(model: Any, reached: Iterable[Tensor]) -> Reach:
    """Return the reach of a method over a model, each weight counted once.

    reached: parameters of this model, the same objects.
    """
    inside = {id(parameter) for parameter in reached}
    head = model.get_output_embeddings()
    reach = Reach(0, 0)
    for name, parameter in model.named_parameters():
        reach.total += parameter.numel()
        if id(parameter) in inside:
            reach.reached += parameter.numel()
            continue
        kind = _kind(model.get_submodule(name.rpartition(".")[0]), parameter, head)
        reach.missed[kind] = reach.missed.get(kind, 0) + parameter.numel()
    return reach


def _kind(owner: nn.Module, parameter: nn.Parameter, head: Any) -> str:
    """Return the kind of a parameter in words."""
    if parameter.ndim < 2:
        return "norms and biases"
    if isinstance(owner, nn.Embedding) or owner is head:
        return "embeddings and head"
    if parameter.ndim == 3 and "expert" in type(owner).__name__.lower():
        return f"fused experts ({type(owner).__name__})"
    if isinstance(owner, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return "convolutions"
    if isinstance(owner, (nn.Linear, Conv1D)):
        return "linear layers that settings leave out"
    return f"tensors of {type(owner).__name__}"
