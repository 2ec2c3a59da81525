"""Steer training by measurements: a PI controller, a guard that rolls back, and several of them as
one.

Each controller is called after a step with (record, model), answers with controls of `learn.train`,
and keeps its state as JSON so that a resumed run goes on exactly.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from agent_forge.core.errors import PhaseError
from agent_forge.core.events import EventLog
from agent_forge.learn import StepRecord
from agent_forge.phases.train import ChaosConfig, RollbackConfig

SMOOTHING = 0.9  # the share of the running mean of the loss that a step keeps


class Controller(Protocol):
    """Something that the training loop calls after each step."""

    def __call__(self, record: StepRecord, model: Any) -> Mapping[str, Any]:
        """Return controls for the steps that follow."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


class CombinedController:
    """Several controllers as one.

    Their learning rate scales multiply, the largest noise holds, and any rollback or keep counts.
    """

    def __init__(self, members: Mapping[str, Controller]) -> None:
        self.members = dict(members)
        self.lr_scales = dict.fromkeys(self.members, 1.0)
        self.noises = dict.fromkeys(self.members, 0.0)

    def __call__(self, record: StepRecord, model: Any) -> dict[str, Any]:
        """Call the members in order and merge their controls.

        A step that is not finite goes only to members that can roll back.
        """
        merged: dict[str, Any] = {}
        for name, member in self.members.items():
            if not (
                math.isfinite(record.loss) and math.isfinite(record.grad_norm)
            ) and not isinstance(member, Rollback):
                continue
            answer = member(record, model)
            self.lr_scales[name] = answer.get("lr_scale", self.lr_scales[name])
            self.noises[name] = answer.get("noise", self.noises[name])
            merged |= {key: True for key in ("keep", "rollback") if answer.get(key)}
        # A member that answered nothing keeps its last scale, so both are taken from what is
        # remembered.
        merged["lr_scale"] = math.prod(self.lr_scales.values())
        merged["noise"] = max(self.noises.values(), default=0.0)
        return merged

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all."""
        members = {name: member.state_dict() for name, member in self.members.items()}
        return {"members": members, "lr_scales": self.lr_scales, "noises": self.noises}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all."""
        for name, member in self.members.items():
            member.load_state_dict(state["members"][name])
        self.lr_scales, self.noises = dict(state["lr_scales"]), dict(state["noises"])


class ExponentControl:
    """Hold a measured exponent at its target.

    Below the target, noise and learning rate rise; above it, the learning rate falls. `measure`
    returns nats per block. With the error e, the control u = proportional * e + integral * sum(e),
    limited to [-1, 1]; the sum stops growing while u is at a limit. Then lr_scale is
    1 + lr_range * u, and noise is max_noise * max(u, 0).
    """

    def __init__(self, config: ChaosConfig, measure: Callable[[Any], float]) -> None:
        self.config, self.measure = config, measure
        self.summed = 0.0
        self.log: list[tuple[int, float, float]] = []  # (step, exponent, control)

    def control(self, exponent: float) -> float:
        """Return u in [-1, 1] for a measured exponent, and remember the error."""
        # Positive where training is too calm.
        error = self.config.target_exponent - exponent
        if abs(error) < self.config.deadband:
            error = 0.0
        control = self.config.proportional * error + self.config.integral * (self.summed + error)
        # At a limit, only errors that lead away from it are summed. Otherwise the sum would grow
        # without effect, and hold the control at the limit long after the error has turned.
        if abs(control) <= 1 or control * error < 0:
            self.summed += error
        return max(-1.0, min(1.0, control))

    def __call__(self, record: StepRecord, model: Any) -> dict[str, Any]:
        """Measure every `every_steps` steps and return the controls."""
        if (record.step + 1) % self.config.every_steps:
            return {}
        exponent = self.measure(model)
        u = self.control(exponent)
        self.log.append((record.step, exponent, u))
        return {
            "lr_scale": 1 + self.config.lr_range * u,
            "noise": self.config.max_noise * max(u, 0.0),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the sum of errors and the log."""
        return {"summed": self.summed, "log": self.log}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        self.summed = state["summed"]
        self.log = [(step, exponent, u) for step, exponent, u in state["log"]]


class Rollback:
    """Keep weights while the loss stays near its mean; where it leaps above, go back to them.

    Each time, the learning rate is lowered.
    """

    def __init__(self, config: RollbackConfig, stage: str, events: EventLog) -> None:
        self.config, self.stage, self.events = config, stage, events
        self.mean: float | None = None
        self.lr_scale = 1.0
        self.count = 0
        self.kept = False

    def __call__(self, record: StepRecord, model: Any) -> dict[str, Any]:  # noqa: ARG002 - the contract of a controller
        """Return the controls: keep the weights, go back to kept ones, or neither.

        Raises PhaseError when the stage diverges once more than allowed.
        """
        finite = math.isfinite(record.loss) and math.isfinite(record.grad_norm)
        if (
            self.mean is not None
            and self.kept
            and not (finite and record.loss <= self.mean + self.config.limit_nats)
        ):
            return self._go_back(record)
        self.mean = (
            record.loss
            if self.mean is None
            else SMOOTHING * self.mean + (1 - SMOOTHING) * record.loss
        )
        # The first step counts too: a stage that diverges at once needs something to go back to.
        due = record.step == 0 or (record.step + 1) % self.config.every_steps == 0
        # Half the limit: weights that are kept on the way up would already carry the instability.
        if not (due and record.loss <= self.mean + self.config.limit_nats / 2):
            return {}
        self.kept = True
        return {"keep": True}

    def _go_back(self, record: StepRecord) -> dict[str, Any]:
        self.count += 1
        if self.count > self.config.most:
            raise PhaseError(
                f"train, stage {self.stage}, step {record.step}: diverged again after {self.config.most} rollbacks "
                f"(loss {record.loss:.4g}, running mean {self.mean:.4g}); lower optim.lr or raise rollback.most"
            )
        self.lr_scale *= self.config.lr_factor
        self.events.warning(
            f"{self.stage}, step {record.step}: loss {record.loss:.4g} against a mean of {self.mean:.4g}; went back to "
            f"kept weights, learning rate times {self.lr_scale:.3g}",
            stage=self.stage,
        )
        return {"rollback": True, "lr_scale": self.lr_scale}

    def state_dict(self) -> dict[str, Any]:
        """Return the running mean and the rollbacks so far."""
        return {
            "mean": self.mean,
            "lr_scale": self.lr_scale,
            "count": self.count,
            "kept": self.kept,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.mean, self.lr_scale = state["mean"], state["lr_scale"]
        self.count, self.kept = state["count"], state["kept"]
