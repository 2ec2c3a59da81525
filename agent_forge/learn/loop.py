"""The one training loop: batches, loss, clipping, optimiser, schedule, averaging, state, telemetry.

Reads `batches.batch(step)`, a pure function of step; changes the model in place; writes its state
under `out.resume_dir(stage)`. torch is reseeded from (seed, stage, step) before every step, so a
run that was killed and resumed gives the same bytes on CPU as one that was not. How the work is run
(arithmetic, compiled, in parts, by several processes, how long) is read from the phase's `runtime`
settings. Source of the schedule: warm-up-stable-decay, arXiv:2404.06395.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from agent_forge.checkpoint.workspace import Workspace
from agent_forge.config import RuntimeConfig
from agent_forge.config.compose import default_runtime
from agent_forge.core.device import keep_freed_memory, used_bytes
from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import seed_for
from agent_forge.learn import distribution, faults, feed, gradients, precision
from agent_forge.learn import state as states
from agent_forge.learn.attention import fast_bfloat16_attention
from agent_forge.learn.distribution import World
from agent_forge.learn.optimisers import outside
from agent_forge.learn.records import StageChoices, StepRecord
from agent_forge.learn.request import TrainRequest
from agent_forge.learn.schedule import StageSchedule
from agent_forge.learn.speed import Compiler, garbage_at_intervals, no_memory_fill, recomputing
from agent_forge.learn.trained import LAST, Trained, under

LOSS, NORM = "", " "  # names that no metric has
CONTROLS = {"lr_scale", "noise", "keep", "rollback"}


def train(model: nn.Module, request: TrainRequest) -> list[StepRecord]:
    """Train `model` in place and return one record per step; a finished stage is restored instead.

    With several parts or processes a loss must be a mean over trained tokens: that is how the parts
    are weighted. Raises PhaseError on a NaN or infinite loss or gradient, out of memory, or a lost
    process; ConfigError on other settings than the stage began with; Interrupted after a stop
    signal, with the state saved.
    """
    keep_freed_memory()
    return _Stage(model, request).trained_records(model)


def last_weights(out: Workspace, stage: str, events: EventLog) -> dict[str, Tensor]:
    """Return the weights of the last step of a finished stage, by name.

    There are none where the stage averaged nothing, or ran without keep_last.
    """
    saved = states.newest(out.resume_dir(stage), stage, events)
    return under(LAST, saved[0]) if saved is not None else {}


def _runtime_of(request: TrainRequest) -> RuntimeConfig:
    """Return how the work is run: as requested, by the settings of the phase, or by the
    defaults.
    """
    if request.runtime is not None:
        return request.runtime
    carried = request.out.config.get("runtime")
    return RuntimeConfig(**carried) if carried else default_runtime()


@dataclass(slots=True)
class _Progress:
    """How far a stage has come, beside its tensors: what a resumed run must know."""

    next_step: int = 0
    rolled_back: int = 0
    compile_choice: str = ""
    dtype_choice: str = ""
    controls: dict[str, float] = field(default_factory=lambda: {"lr_scale": 1.0, "noise": 0.0})
    records: list[StepRecord] = field(default_factory=list)


class _Stage:
    """One stage under way: how a step is taken, what is saved when, and what happens when a step
    fails.
    """

    def __init__(self, model: nn.Module, request: TrainRequest) -> None:
        runtime, device = _runtime_of(request), torch.device(request.device)
        parameters: list[Any] | None = (
            None if request.parameters is None else list(request.parameters)
        )
        if request.dtype == torch.float16:
            raise ConfigError(
                "runtime.dtype=float16 cannot train (it needs loss scaling); use bfloat16 or float32"
            )
        self.request, self.runtime, self.device = request, runtime, device
        self.out, self.stage = request.out, request.stage
        self.world = World(device)
        if runtime.shard and self.world.size > 1 and parameters is not None:
            raise ConfigError(
                f"runtime.shard=true cannot train chosen parameters ({request.stage}); set it to false"
            )
        self.events = request.events if self.world.rank == 0 else EventLog(None, request.out.phase)
        self.choices = StageChoices(request.stage, self.events, self.world.same)
        self.directory = request.out.resume_dir(request.stage)
        self.model = distribution.working_copy(model, self.world, runtime.shard)
        objective = distribution.StageObjective(
            self.model, request.loss_fn, outside(self.model, parameters)
        )
        called = distribution.spread(objective, self.world, runtime.shard)
        self.trained = Trained(self.model, request.optim, parameters, request.average_decay)
        self.optimisers = self.trained.optimisers
        self.gradients = gradients.Gradients(
            called, self.world, runtime.accumulate, device, request.dtype
        )
        self.schedule = StageSchedule(
            request.steps,
            request.optim,
            tokens=runtime.budget_tokens,
            minutes=runtime.budget_minutes,
        )
        if runtime.budget_tokens:
            self.schedule.limit_tokens(request.batches.batch(0)["input_ids"].numel())
        self.progress = _Progress(compile_choice=runtime.compile)
        self.settings = self._settings()

    def _settings(self) -> dict[str, Any]:
        """Return what must not change on resume."""
        request, runtime = self.request, self.runtime
        fingerprint: Any = getattr(request.batches, "fingerprint", None)
        return {
            **{f"optim.{key}": value for key, value in asdict(request.optim).items()},
            "steps": self.schedule.steps, "seed": request.seed,
            "dtype": "auto" if self._measures_dtype() else str(request.dtype),
            "parameters": {name: list(parameter.shape) for name, parameter in self.optimisers.named},
            "compile": runtime.compile, "accumulate": runtime.accumulate, "budget_minutes": runtime.budget_minutes,
            "processes": self.world.size, "data": fingerprint() if fingerprint else "",
            "average_decay": request.average_decay, "after": request.optimiser_from,
            **request.settings,
        }  # fmt: skip

    def _measures_dtype(self) -> bool:
        return self.runtime.dtype == "auto" and self.request.dtype == torch.float32

    def trained_records(self, model: nn.Module) -> list[StepRecord]:
        """Restore, train what is left, and hand the weights back to the caller's model."""
        if not self.restore():
            if self.request.optimiser_from and not self.progress.records:
                self._go_on_from(self.request.optimiser_from)
            training = model.training
            self.model.train()
            try:
                self._run()
            finally:
                self.model.train(training)
                model.train(training)
        self.trained.hand_back(model)
        return self.progress.records

    def _run(self) -> None:
        """Take the steps that are left, save on time and on a stop signal, and leave the final
        state.
        """
        request = self.request
        self._settle_dtype()
        compiler = self.compiler = Compiler(
            self.progress.compile_choice, self.model, self.choices,
            teachers=getattr(request.loss_fn, "teachers", ()),
            whole=not (self.runtime.shard and self.world.size > 1),
        )  # fmt: skip
        workers = feed.usable_workers(
            request.batches, self.runtime.workers, self.stage, self.events
        )
        self.feed = feed.Feed(
            request.batches, self.progress.next_step, self.schedule.steps, workers, self.device
        )
        if self.runtime.rollbacks and not self.progress.next_step:
            self.save("step-00000000")
        try:
            with (
                no_memory_fill(), recomputing(self.model, self.runtime.checkpoint_activations),
                fast_bfloat16_attention(self.gradients.dtype == torch.bfloat16), garbage_at_intervals() as collect,
            ):  # fmt: skip
                compiler.start(self.device)
                self._take_steps(compiler, collect)
        finally:
            compiler.stop()
            self.feed.close()
        self.trained.finish(keep_last=self.request.keep_last)
        self.save(states.FINAL)

    def _settle_dtype(self) -> None:
        """Choose the data type of products, once per stage."""
        if not self._measures_dtype():
            precision.warn_of_slow(self.request.dtype, self.device, self.choices)
            return
        if not self.progress.dtype_choice:
            tokens = self.request.batches.batch(self.progress.next_step)["input_ids"].numel()
            tokens //= self.world.size * self.runtime.accumulate
            dtype = precision.chosen(self.model, tokens, self.device, self.choices)
            self.progress.dtype_choice = str(dtype).removeprefix("torch.")
        self.gradients.dtype = getattr(torch, self.progress.dtype_choice)

    def _take_steps(self, compiler: Compiler, collect: Callable[[int], None]) -> None:
        saved_at = time.monotonic()
        while not self.schedule.over(self.progress.next_step):
            due = time.monotonic() - saved_at >= self.out.save_every_seconds
            stop, save_now, self.schedule.seconds = self.world.largest(
                [
                    float(self.out.stop_signal),
                    float(due and self.progress.next_step > 0),
                    self.schedule.seconds,
                ]
            )
            if stop or save_now:
                self.save(f"step-{self.progress.next_step:08}")
                saved_at = time.monotonic()
            if stop:
                self.out.stop_signal = int(stop)
                self.out.check_stop()
            started = time.monotonic()
            with self._named_errors():
                record = self._take_step(self.progress.next_step)
            self.progress.records.append(record)
            self.progress.next_step += 1
            seconds = max(time.monotonic() - started, 1e-9)
            self.schedule.seconds += seconds
            compiler.note(seconds, self.schedule.steps - self.progress.next_step)
            self.progress.compile_choice = compiler.choice
            collect(self.progress.next_step)
            shown = {
                "loss": record.loss, "tokens_per_second": record.tokens / seconds,
                "memory_bytes": used_bytes(self.device),
            }  # fmt: skip
            self.events.progress(self.stage, self.progress.next_step, self.schedule.steps, shown)

    def _take_step(self, step: int) -> StepRecord:
        """Do one update and apply the controls that the controller answers with."""
        lr = self.optimisers.set_scale(
            self.schedule.lr_share(step) * self.progress.controls["lr_scale"]
        )
        batch = self.feed.batch(step)
        loss, metrics = self._gradient(batch, step)
        if step + 1 < self.schedule.steps:
            self.feed.prepare(step + 1)
        if self.progress.controls["noise"]:
            if self.world.size > 1:
                torch.manual_seed(
                    seed_for(self.request.seed, self.stage, step, "noise")
                )  # the same noise everywhere
            gradients.add_noise(self.optimisers.parameters, self.progress.controls["noise"])
        norm = gradients.clip(self.optimisers.parameters, self.request.optim.clip_norm)
        if norm is None:
            raise PhaseError(
                f"{self.stage}: no trained parameter has a gradient; the loss does not depend on them"
            )
        read = gradients.numbers({**metrics, LOSS: loss, NORM: norm})
        record = StepRecord(
            step=step, loss=read.pop(LOSS), lr=lr, grad_norm=read.pop(NORM), tokens=batch["input_ids"].numel(),
            metrics=read,
        )  # fmt: skip
        if not (math.isfinite(record.loss) and math.isfinite(record.grad_norm)):
            self._diverged(record, batch)
            return record
        self.optimisers.step()
        if self.schedule.averages(step):
            self.trained.average.add(self.optimisers.named)
        if self.request.on_step is not None:
            self._apply_controls(self.request.on_step(record, self.model) or {})
        return record

    def _gradient(self, batch: dict[str, Tensor], step: int) -> tuple[Any, Mapping[str, Any]]:
        """Accumulate the gradient of a batch; return loss and metrics, which may still be on their
        way.
        """
        while True:
            self._reseed(step)
            self.optimisers.zero_grad()
            try:
                return self.gradients.backward(batch, step)
            except RuntimeError as error:
                if not self.compiler.retreats(error):
                    raise

    def _reseed(self, step: int) -> None:
        others = (self.world.rank,) if self.world.rank else ()
        torch.manual_seed(seed_for(self.request.seed, self.stage, step, *others))

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        step = self.progress.next_step
        try:
            with faults.named(
                self._place(step), self.request.batches, step, self.runtime.accumulate, self.world
            ):
                yield
        except RuntimeError as error:
            if self.out.stop_signal and "DataLoader worker" in str(error):
                # The signal reached a worker that was just being born; the step was not taken.
                self.save(f"step-{step:08}")
                self.out.check_stop()
            raise

    def _place(self, step: int) -> str:
        return f"{self.out.phase}, stage {self.stage}, step {step}"

    def _diverged(self, record: StepRecord, batch: Mapping[str, Tensor]) -> None:
        """Go back to remembered weights or to the last saved state, or else end the phase."""
        on_step: Any = self.request.on_step
        can_recover = on_step is not None and bool(self.trained.remembered)
        answer = (on_step(record, self.model) or {}) if can_recover else {}
        if answer.get("rollback"):
            self._apply_controls(answer)
            return
        what = faults.non_finite(self._place(record.step), record, batch)
        saved = (
            states.newest(self.directory, self.stage, self.events)
            if self.runtime.rollbacks
            else None
        )
        if self.progress.rolled_back >= self.runtime.rollbacks or saved is None:
            raise faults.diverged(what, self.progress.rolled_back, record.lr)
        self.progress.rolled_back += 1
        self.trained.load(saved[0], saved[1]["averaged_steps"])
        self.events.warning(
            f"{what}; went back to the weights of step {saved[1]['next_step']} "
            f"(rollback {self.progress.rolled_back} of {self.runtime.rollbacks}) and skip this batch"
        )

    def _apply_controls(self, answer: Mapping[str, Any]) -> None:
        unknown = set(answer) - CONTROLS
        if unknown:
            raise PhaseError(f"{self.stage}: on_step returned unknown controls {sorted(unknown)}")
        if answer.get("rollback"):
            if not self.trained.remembered:
                raise PhaseError(
                    f"{self.stage}: on_step asked to roll back, but no weights are remembered"
                )
            self.trained.go_back()
        if answer.get("keep"):
            self.trained.keep()
        self.progress.controls |= {
            key: float(answer[key]) for key in ("lr_scale", "noise") if key in answer
        }

    def save(self, name: str) -> None:
        """Write everything that the next step depends on; rank 0 alone writes. The final state
        holds no optimiser.

        Raises PhaseError, writing nothing, when a weight is NaN or infinite.
        """
        final, progress = name == states.FINAL, self.progress
        on_step: Any = self.request.on_step
        tensors = self.trained.tensors(moments=not final or self.request.keep_optimiser)
        faults.refuse_non_finite(self._place(progress.next_step), tensors)
        own = on_step.state_dict() if hasattr(on_step, "state_dict") else None
        record = {
            "stage": self.stage, "next_step": progress.next_step, "finished": final, "settings": self.settings,
            "controls": progress.controls, "averaged_steps": self.trained.average.steps, "controller": own,
            "rolled_back": progress.rolled_back, "compile": progress.compile_choice, "dtype": progress.dtype_choice,
            "seconds": self.schedule.seconds, "records": [record.to_json() for record in progress.records],
        }  # fmt: skip
        if self.world.rank == 0:
            states.write(self.directory, name, tensors, record)
        self.world.barrier()

    def restore(self) -> bool:
        """Load the newest state, if any; return whether the stage is finished."""
        self.world.barrier()
        saved = states.newest(self.directory, self.stage, self.events)
        if saved is None:
            return False
        tensors, record = saved
        changed = states.changes(record["settings"], _plain(self.settings))
        if changed and not self.runtime.resume_anyway:
            states.refuse(self.stage, self.directory, changed)
        if changed:
            self.events.warning(
                f"{self.stage}: resumes with other settings, as asked: {'; '.join(changed)}"
            )
        progress = self.progress
        progress.next_step, progress.controls = record["next_step"], record["controls"]
        progress.rolled_back = record["rolled_back"]
        progress.records = [StepRecord.from_json(entry) for entry in record["records"]]
        progress.dtype_choice, self.schedule.seconds = record.get("dtype", ""), record["seconds"]
        if record["settings"]["compile"] == self.runtime.compile:
            progress.compile_choice = record["compile"]
        self.trained.remembered = under(
            "kept/", {key: value.to(self.device) for key, value in tensors.items()}
        )
        self.trained.load(tensors, record["averaged_steps"])
        on_step: Any = self.request.on_step
        if record["controller"] is not None and hasattr(on_step, "load_state_dict"):
            on_step.load_state_dict(record["controller"])
        return bool(record["finished"])

    def _go_on_from(self, stage: str) -> None:
        """Take over the optimiser state of a finished stage. Raises PhaseError when it was not
        kept.
        """
        saved = states.newest(self.out.resume_dir(stage), stage, self.events)
        moments = under("optimiser/", saved[0]) if saved is not None else {}
        if not moments:
            raise PhaseError(
                f"{self.stage}: no optimiser state of {stage} to go on from; run it with keep_optimiser=True"
            )
        self.optimisers.load_tensors(moments)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they look after a round trip through JSON."""
    return dict(json.loads(json.dumps(settings)))
