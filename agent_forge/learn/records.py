"""The record of a training step, in memory and bit-exact on disk, and the types of batches, losses
and controllers.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor

from agent_forge.core.events import EventLog

# (model, batch, step) -> (loss, metrics). With `teachers`, a list of models that it runs without
# gradients, these are run as the trained one is: compiled, and told that attention is causal.
LossFn = Callable[[Any, dict[str, Tensor], int], tuple[Tensor, Mapping[str, Any]]]


class Batches(Protocol):
    """A source of batches; `batch(step)` depends on step alone (and on a controller's saved state).

    A source whose batches depend on the step alone may set `pure = True`, so that other processes
    may prepare them. With `fingerprint() -> str` a stage refuses to resume on other data.
    """

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the tensors of one step, rows first."""
        ...


@dataclass(slots=True, kw_only=True)
class StepRecord:
    """What one step did.

    loss: in nats. grad_norm: the norm before clipping. metrics: what the loss function returned.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    metrics: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; floats as hex, so that a log can be compared bit by bit."""
        return {
            **asdict(self),
            "loss": self.loss.hex(),
            "lr": self.lr.hex(),
            "grad_norm": self.grad_norm.hex(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "StepRecord":
        """Return what `to_json` wrote."""
        return cls(
            **{
                **content,
                **{key: float.fromhex(content[key]) for key in ("loss", "lr", "grad_norm")},
            }
        )


@dataclass(frozen=True, slots=True)
class StageChoices:
    """Where a stage makes known what it chose by itself.

    decide: makes several processes agree on a number that each has measured.
    """

    stage: str
    events: EventLog
    decide: Callable[[float], float]

    def message(self, text: str) -> None:
        """Report a choice."""
        self.events.message(f"{self.stage}: {text}", stage=self.stage)

    def warning(self, text: str) -> None:
        """Report a choice that costs something."""
        self.events.warning(f"{self.stage}: {text}")


# May return {"lr_scale": x, "noise": s, "keep": True, "rollback": True}; see `train`.
OnStep = Callable[[StepRecord, Any], Mapping[str, Any] | None]
