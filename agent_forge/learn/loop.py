"""The one training loop: batches, loss, clipping, optimiser, schedule, averaging, state, telemetry.

Reads `batches.batch(step)`, a pure function of step; changes the model in place; writes its state under
`out.resume_dir(stage)`. torch is reseeded from (seed, stage, step) before every step, so a run that was killed and
resumed gives the same bytes on CPU as one that was not. Sources: warm-up-stable-decay (arXiv:2404.06395), tail
averaging (SWA, arXiv:1803.05407).
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from agent_forge.checkpoint.workspace import Workspace
from agent_forge.config import OptimConfig
from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import seed_for
from agent_forge.learn import state as states
from agent_forge.learn.optimisers import Optimisers, Parameters, wsd

LossFn = Callable[[Any, dict[str, Tensor], int], tuple[Tensor, Mapping[str, Any]]]


class Batches(Protocol):
    """A source of batches; `batch(step)` depends on step alone (and on a controller's saved state)."""

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the tensors of one step, rows first."""
        ...


@dataclass(slots=True, kw_only=True)
class StepRecord:
    """What one step did. `loss` is in nats, `grad_norm` before clipping, `metrics` the loss function's."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    metrics: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; floats as hex, so that a log can be compared bit by bit."""
        return {**asdict(self), "loss": self.loss.hex(), "lr": self.lr.hex(), "grad_norm": self.grad_norm.hex()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "StepRecord":
        """Return what `to_json` wrote."""
        return cls(**{**content, **{key: float.fromhex(content[key]) for key in ("loss", "lr", "grad_norm")}})


# May return {"lr_scale": x, "noise": s, "keep": True, "rollback": True}; see `train`.
OnStep = Callable[[StepRecord, Any], Mapping[str, Any] | None]


def train(
    model: nn.Module,
    batches: Batches,
    loss_fn: LossFn,
    *,
    stage: str,
    steps: int,
    optim: OptimConfig,
    out: Workspace,
    events: EventLog,
    seed: int,
    parameters: Parameters | None = None,
    on_step: OnStep | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    average_decay: float = 0.0,
    settings: Mapping[str, Any] | None = None,
    after: str = "",
    keep_optimiser: bool = False,
) -> list[StepRecord]:
    """Train `model` in place for `steps` steps and return one record a step; a finished stage is restored instead.

    parameters: parameters or groups {"params", "lr_scale"}; None trains all that require a gradient.
    on_step: called after each step; may return, for the steps that follow, "lr_scale" (times the schedule) and "noise"
        (standard deviation of Gaussian noise on each gradient tensor, relative to its RMS); "keep": True remembers
        weights and optimiser, "rollback": True goes back to them (the step count goes on). With `state_dict()` and
        `load_state_dict()` its own JSON state is saved too. It hears of a non-finite loss only while something is kept.
    dtype: of the forward pass (autocast).
    average_decay: above 0, the average over the last optim.average_share of the steps is exponential, not uniform.
    settings: further values that must not change on resume.
    after: a finished stage, run with keep_optimiser=True, whose optimiser state this stage goes on from.
    Raises PhaseError on a NaN or infinite loss or gradient, ConfigError on other settings than the stage began with,
    Interrupted after a stop signal, with the state saved.
    """
    stage_run = _Stage(model, stage, steps, optim, out, events, seed, parameters, on_step, torch.device(device), dtype)
    stage_run.average_decay = average_decay
    stage_run.keep_optimiser = keep_optimiser
    stage_run.settings |= {"average_decay": average_decay, "after": after, **(settings or {})}
    if stage_run.restore():
        return stage_run.records
    if after and not stage_run.records:
        stage_run.go_on_from(after)
    training = model.training
    model.train()
    try:
        stage_run.run(batches, loss_fn)
    finally:
        model.train(training)
    return stage_run.records


class _Stage:
    """One stage under way: what has to be saved, and how a step is taken."""

    def __init__(
        self,
        model: nn.Module,
        stage: str,
        steps: int,
        optim: OptimConfig,
        out: Workspace,
        events: EventLog,
        seed: int,
        parameters: Parameters | None,
        on_step: OnStep | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if dtype == torch.float16:
            raise ConfigError("runtime.dtype=float16 cannot train (it needs loss scaling); use bfloat16 or float32")
        self.model, self.stage, self.steps, self.optim = model, stage, steps, optim
        self.out, self.events, self.seed, self.device, self.dtype = out, events, seed, device, dtype
        self.on_step: Any = on_step
        self.directory = out.resume_dir(stage)
        self.optimisers = Optimisers(model, optim, parameters)
        stored = set(model.state_dict())
        self.buffers = {name: value for name, value in model.named_buffers() if name in stored}
        self.next_step = 0
        self.controls = {"lr_scale": 1.0, "noise": 0.0}
        self.records: list[StepRecord] = []
        self.average: dict[str, Tensor] = {}
        self.averaged_steps = 0
        self.average_decay = 0.0
        self.keep_optimiser = False
        self.kept: dict[str, Tensor] = {}
        self.settings: dict[str, Any] = {
            **{f"optim.{key}": value for key, value in asdict(optim).items()},
            "steps": steps, "seed": seed, "dtype": str(dtype),
            "parameters": {name: list(parameter.shape) for name, parameter in self.optimisers.named},
        }  # fmt: skip

    def run(self, batches: Batches, loss_fn: LossFn) -> None:
        """Take the steps that are left, save on time and on a stop signal, and leave the final state."""
        saved_at = time.monotonic()
        for step in range(self.next_step, self.steps):
            if self.out.stop_signal:
                self.save(f"step-{step:08}")
                self.out.check_stop()
            started = time.monotonic()
            record = self.take_step(step, batches, loss_fn)
            self.records.append(record)
            self.next_step = step + 1
            seconds = max(time.monotonic() - started, 1e-9)
            shown = {"loss": record.loss, "tokens_per_second": record.tokens / seconds}
            self.events.progress(self.stage, self.next_step, self.steps, shown)
            if self.next_step < self.steps and time.monotonic() - saved_at >= self.out.save_every_seconds:
                self.save(f"step-{self.next_step:08}")
                saved_at = time.monotonic()
        self.finish()

    def take_step(self, step: int, batches: Batches, loss_fn: LossFn) -> StepRecord:
        """Do one update and let the controller speak."""
        torch.manual_seed(seed_for(self.seed, self.stage, step))
        schedule = wsd(step, self.steps, self.optim.warmup_steps, self.optim.cooldown_share)
        lr = self.optimisers.set_scale(schedule * self.controls["lr_scale"])
        batch = {key: value.to(self.device) for key, value in batches.batch(step).items()}
        self.optimisers.zero_grad()
        reduced = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype) if reduced else contextlib.nullcontext():
            loss, metrics = loss_fn(self.model, batch, step)
        loss.backward()
        if self.controls["noise"]:
            _add_noise(self.optimisers.parameters, self.controls["noise"])
        record = StepRecord(
            step=step, loss=float(loss.detach()), lr=lr, grad_norm=self._clip(), tokens=batch["input_ids"].numel(),
            metrics={key: float(value) for key, value in metrics.items()},
        )  # fmt: skip
        if not (math.isfinite(record.loss) and math.isfinite(record.grad_norm)):
            self._diverged(record)
            return record
        self.optimisers.step()
        self._update_average(step)
        if self.on_step is not None:
            self._obey(self.on_step(record, self.model) or {})
        return record

    def _clip(self) -> float:
        gradients = [p.grad for p in self.optimisers.parameters if p.grad is not None]
        if not gradients:
            raise PhaseError(f"{self.stage}: no trained parameter has a gradient; the loss does not depend on them")
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.optim.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.optimisers.parameters, self.optim.clip_norm, norm)
        return float(norm)

    def _diverged(self, record: StepRecord) -> None:
        """Let the controller go back to kept weights; without that, end the phase."""
        answer = (self.on_step(record, self.model) or {}) if self.on_step is not None and self.kept else {}
        if not answer.get("rollback"):
            what = "loss" if not math.isfinite(record.loss) else "gradient norm"
            value = record.loss if what == "loss" else record.grad_norm
            raise PhaseError(
                f"{self.out.phase}, stage {self.stage}, step {record.step}: the {what} is {value}; try a lower "
                f"learning rate (now {record.lr:.3g}), more warm-up, clip_norm=1.0 or dtype=float32"
            )
        self._obey(answer)

    def _obey(self, answer: Mapping[str, Any]) -> None:
        unknown = set(answer) - {"lr_scale", "noise", "keep", "rollback"}
        if unknown:
            raise PhaseError(f"{self.stage}: on_step returned unknown controls {sorted(unknown)}")
        if answer.get("rollback"):
            if not self.kept:
                raise PhaseError(f"{self.stage}: on_step asked to roll back, but nothing was kept")
            self._load_live(self.kept)
        if answer.get("keep"):
            self.kept = {key: value.detach().clone() for key, value in self._live().items()}
        self.controls |= {key: float(answer[key]) for key in ("lr_scale", "noise") if key in answer}

    def _update_average(self, step: int) -> None:
        first = self.steps - round(self.optim.average_share * self.steps)
        if step < first:
            return
        self.averaged_steps += 1
        weight = 1.0 / self.averaged_steps
        if self.average_decay > 0:
            # The bias-corrected exponential mean, as a running update: (1 - b) / (1 - b^n).
            weight = (1 - self.average_decay) / (1 - self.average_decay**self.averaged_steps)
        for name, parameter in self.optimisers.named:
            if name not in self.average:
                self.average[name] = parameter.detach().float().clone()
            else:
                self.average[name].lerp_(parameter.detach().float(), weight)

    def finish(self) -> None:
        """Put the average in place and leave the final state, which a second run restores."""
        for name, parameter in self.optimisers.named:
            if name in self.average:
                states.copy_into(parameter, self.average[name])
        self.optimisers.zero_grad()
        self.average, self.kept = {}, {}
        self.save(states.FINAL)

    def save(self, name: str) -> None:
        """Write everything that the next step depends on. The final state holds no optimiser."""
        final = name == states.FINAL
        tensors = self._weights() if final and not self.keep_optimiser else self._live()
        tensors |= {f"average/{key}": value for key, value in self.average.items()}
        tensors |= {f"kept/{key}": value for key, value in self.kept.items()}
        own = self.on_step.state_dict() if hasattr(self.on_step, "state_dict") else None
        record = {
            "stage": self.stage, "next_step": self.next_step, "finished": final, "settings": self.settings,
            "controls": self.controls, "averaged_steps": self.averaged_steps, "controller": own,
            "records": [record.to_json() for record in self.records],
        }  # fmt: skip
        states.write(self.directory, name, tensors, record)

    def restore(self) -> bool:
        """Load the newest state, if any; return whether the stage is finished."""
        found = states.newest(self.directory, self.stage, self.events)
        if found is None:
            return False
        tensors, record = found
        states.refuse_other_settings(self.stage, self.directory, record["settings"], _plain(self.settings))
        self.next_step, self.controls = record["next_step"], record["controls"]
        self.averaged_steps = record["averaged_steps"]
        self.records = [StepRecord.from_json(entry) for entry in record["records"]]
        on_device = {key: value.to(self.device) for key, value in tensors.items()}
        self.average, self.kept = _under("average/", on_device), _under("kept/", on_device)
        self._load_live(tensors)
        if record["controller"] is not None and hasattr(self.on_step, "load_state_dict"):
            self.on_step.load_state_dict(record["controller"])
        return bool(record["finished"])

    def go_on_from(self, stage: str) -> None:
        """Take over the optimiser state of a finished stage. Raises PhaseError when it was not kept."""
        found = states.newest(self.out.resume_dir(stage), stage, self.events)
        moments = _under("optimiser/", found[0]) if found is not None else {}
        if not moments:
            raise PhaseError(
                f"{self.stage}: no optimiser state of {stage} to go on from; run it with keep_optimiser=True"
            )
        self.optimisers.load_tensors(moments)

    def _weights(self) -> dict[str, Tensor]:
        found = {f"weight/{name}": parameter.detach() for name, parameter in self.optimisers.named}
        return found | {f"buffer/{name}": value for name, value in self.buffers.items()}

    def _live(self) -> dict[str, Tensor]:
        return self._weights() | {f"optimiser/{key}": value for key, value in self.optimisers.tensors().items()}

    def _load_live(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.optimisers.named:
            states.copy_into(parameter, tensors[f"weight/{name}"])
        for name, buffer in self.buffers.items():
            states.copy_into(buffer, tensors[f"buffer/{name}"])
        self.optimisers.load_tensors(_under("optimiser/", tensors))


def _add_noise(parameters: list[nn.Parameter], relative: float) -> None:
    """Add Gaussian noise to each gradient, `relative` times its root mean square."""
    for parameter in parameters:
        if parameter.grad is not None:
            scale = relative * parameter.grad.float().square().mean().sqrt()
            parameter.grad.add_(torch.randn_like(parameter.grad) * scale.to(parameter.grad.dtype))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose name begins with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they look after a round trip through JSON."""
    return dict(json.loads(json.dumps(settings)))
