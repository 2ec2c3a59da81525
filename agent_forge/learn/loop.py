"""The one training loop: batches, loss, clipping, optimiser, schedule, averaging, state, telemetry.

Reads `batches.batch(step)`, a pure function of step; changes the model in place; writes its state under
`out.resume_dir(stage)`. torch is reseeded from (seed, stage, step) before every step, so a run that was killed and
resumed gives the same bytes on CPU as one that was not. How the work is run (arithmetic, compiled, in parts, by several
processes, how long) is read from the phase's `runtime` settings. Source of the schedule: warm-up-stable-decay,
arXiv:2404.06395.
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
from agent_forge.config import OptimConfig, RuntimeConfig
from agent_forge.core.device import keep_freed_memory
from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import seed_for
from agent_forge.learn import distribution, faults, feed, gradients, precision
from agent_forge.learn import state as states
from agent_forge.learn.attention import fast_bfloat16_attention
from agent_forge.learn.distribution import World
from agent_forge.learn.optimisers import Parameters, outside
from agent_forge.learn.plan import Plan
from agent_forge.learn.records import Batches, LossFn, OnStep, StepRecord
from agent_forge.learn.speed import Compiler, garbage_at_intervals, no_memory_fill, recomputing
from agent_forge.learn.trained import Trained, under

# Where a caller's workspace carries no runtime settings.
PLAIN = RuntimeConfig(
    device="cpu", dtype="float32", threads=0, save_every_seconds=60.0, compile="off", workers=0, processes=1, accumulate=1,
    checkpoint_activations=False, shard=False, rollbacks=0, budget_tokens=0, budget_minutes=0.0, resume_anyway=False,
)  # fmt: skip
LOSS, NORM = "", " "  # names that no metric has
CONTROLS = {"lr_scale", "noise", "keep", "rollback"}


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
    runtime: RuntimeConfig | None = None,
) -> list[StepRecord]:
    """Train `model` in place for `steps` steps and return one record a step; a finished stage is restored instead.

    parameters: parameters or groups {"params", "lr_scale"}; None trains all that require a gradient.
    on_step: called after each step; may return, for the steps that follow, "lr_scale" (times the schedule) and "noise"
        (standard deviation of Gaussian noise on each gradient tensor, relative to its RMS); "keep": True remembers
        weights and optimiser, "rollback": True goes back to them (the step count goes on). With `state_dict()` and
        `load_state_dict()` its own JSON state is saved too. It hears of a non-finite loss only while something is kept.
    dtype: of the forward pass (autocast); with runtime.dtype=auto it is measured instead.
    average_decay: above 0, the average over the last optim.average_share of the steps is exponential, not uniform.
    settings: further values that must not change on resume.
    after: a finished stage, run with keep_optimiser=True, whose optimiser state this stage goes on from.
    runtime: how the work is run; None takes the settings of the phase, which `out` carries.
    With several parts or processes a loss must be a mean over trained tokens: that is how the parts are weighted.
    Raises PhaseError on a NaN or infinite loss or gradient, out of memory, or a lost process; ConfigError on other
    settings than the stage began with; Interrupted after a stop signal, with the state saved.
    """
    if runtime is None:
        carried = out.config.get("runtime")
        runtime = RuntimeConfig(**carried) if carried else PLAIN
    asked = _Asked(
        batches=batches, loss_fn=loss_fn, stage=stage, steps=steps, optim=optim, out=out, events=events, seed=seed,
        parameters=None if parameters is None else list(parameters), on_step=on_step, device=torch.device(device),
        dtype=dtype, average_decay=average_decay, settings=settings or {}, after=after, keep_optimiser=keep_optimiser,
        runtime=runtime,
    )  # fmt: skip
    keep_freed_memory()
    return _Stage(model, asked).trained_records(model)


@dataclass(slots=True, kw_only=True)
class _Asked:
    """The arguments of `train`."""

    batches: Batches
    loss_fn: LossFn
    stage: str
    steps: int
    optim: OptimConfig
    out: Workspace
    events: EventLog
    seed: int
    parameters: list[Any] | None
    on_step: Any
    device: torch.device
    dtype: torch.dtype
    average_decay: float
    settings: Mapping[str, Any]
    after: str
    keep_optimiser: bool
    runtime: RuntimeConfig


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
    """One stage under way: how a step is taken, what is saved when, and what happens when a step fails."""

    def __init__(self, model: nn.Module, asked: _Asked) -> None:
        runtime, parameters = asked.runtime, asked.parameters
        if asked.dtype == torch.float16:
            raise ConfigError("runtime.dtype=float16 cannot train (it needs loss scaling); use bfloat16 or float32")
        self.asked, self.runtime, self.out, self.stage = asked, runtime, asked.out, asked.stage
        self.world = World(asked.device)
        if runtime.shard and self.world.size > 1 and parameters is not None:
            raise ConfigError(f"runtime.shard=true cannot train chosen parameters ({asked.stage}); set it to false")
        self.events = asked.events if self.world.rank == 0 else EventLog(None, asked.out.phase)
        self.directory = asked.out.resume_dir(asked.stage)
        self.model = distribution.working_copy(model, self.world, runtime.shard)
        objective = distribution.Objective(self.model, asked.loss_fn, outside(self.model, parameters))
        called = distribution.spread(objective, self.world, runtime.shard)
        self.trained = Trained(self.model, asked.optim, parameters, asked.average_decay)
        self.optimisers = self.trained.optimisers
        self.gradients = gradients.Gradients(called, self.world, runtime.accumulate, asked.device, asked.dtype)
        self.plan = Plan(asked.steps, asked.optim, tokens=runtime.budget_tokens, minutes=runtime.budget_minutes)
        if runtime.budget_tokens:
            self.plan.limit_tokens(asked.batches.batch(0)["input_ids"].numel())
        self.at = _Progress(compile_choice=runtime.compile)
        self.settings = self._settings()

    def _settings(self) -> dict[str, Any]:
        """Return what must not change on resume."""
        asked, runtime = self.asked, self.runtime
        fingerprint: Any = getattr(asked.batches, "fingerprint", None)
        return {
            **{f"optim.{key}": value for key, value in asdict(asked.optim).items()},
            "steps": self.plan.steps, "seed": asked.seed, "dtype": "auto" if self._measures_dtype() else str(asked.dtype),
            "parameters": {name: list(parameter.shape) for name, parameter in self.optimisers.named},
            "compile": runtime.compile, "accumulate": runtime.accumulate, "budget_minutes": runtime.budget_minutes,
            "processes": self.world.size, "data": fingerprint() if fingerprint else "",
            "average_decay": asked.average_decay, "after": asked.after, **asked.settings,
        }  # fmt: skip

    def _measures_dtype(self) -> bool:
        return self.runtime.dtype == "auto" and self.asked.dtype == torch.float32

    def trained_records(self, model: nn.Module) -> list[StepRecord]:
        """Restore, train what is left, and hand the weights back to the caller's model."""
        if not self.restore():
            if self.asked.after and not self.at.records:
                self._go_on_from(self.asked.after)
            training = model.training
            self.model.train()
            try:
                self._run()
            finally:
                self.model.train(training)
                model.train(training)
        self.trained.hand_back(model)
        return self.at.records

    def _run(self) -> None:
        """Take the steps that are left, save on time and on a stop signal, and leave the final state."""
        asked = self.asked
        self._settle_dtype()
        compiler = self.compiler = Compiler(
            self.at.compile_choice, self.model, self.stage, self.events, self.world.same,
            teachers=getattr(asked.loss_fn, "teachers", ()),
            whole=not (self.runtime.shard and self.world.size > 1),
        )  # fmt: skip
        workers = feed.usable_workers(asked.batches, self.runtime.workers, self.stage, self.events)
        self.feed = feed.Feed(asked.batches, self.at.next_step, self.plan.steps, workers, asked.device)
        if self.runtime.rollbacks and not self.at.next_step:
            self.save("step-00000000")
        try:
            with (
                no_memory_fill(), recomputing(self.model, self.runtime.checkpoint_activations),
                fast_bfloat16_attention(self.gradients.dtype == torch.bfloat16), garbage_at_intervals() as collect,
            ):  # fmt: skip
                compiler.start(asked.device)
                self._take_steps(compiler, collect)
        finally:
            compiler.stop()
            self.feed.close()
        self.trained.finish()
        self.save(states.FINAL)

    def _settle_dtype(self) -> None:
        """Choose the arithmetic of products, once a stage."""
        if not self._measures_dtype():
            precision.warn_of_slow(self.asked.dtype, self.asked.device, self.stage, self.events)
            return
        if not self.at.dtype_choice:
            tokens = self.asked.batches.batch(self.at.next_step)["input_ids"].numel()
            tokens //= self.world.size * self.runtime.accumulate
            device, events = self.asked.device, self.events
            found = precision.chosen(self.model, tokens, device, self.stage, events, self.world.same)
            self.at.dtype_choice = str(found).removeprefix("torch.")
        self.gradients.dtype = getattr(torch, self.at.dtype_choice)

    def _take_steps(self, compiler: Compiler, collect: Callable[[int], None]) -> None:
        saved_at = time.monotonic()
        while not self.plan.over(self.at.next_step):
            due = time.monotonic() - saved_at >= self.out.save_every_seconds
            stop, save_now, self.plan.seconds = self.world.largest(
                [float(self.out.stop_signal), float(due and self.at.next_step > 0), self.plan.seconds]
            )
            if stop or save_now:
                self.save(f"step-{self.at.next_step:08}")
                saved_at = time.monotonic()
            if stop:
                self.out.stop_signal = int(stop)
                self.out.check_stop()
            started = time.monotonic()
            with self._named_errors():
                record = self._take_step(self.at.next_step)
            self.at.records.append(record)
            self.at.next_step += 1
            seconds = max(time.monotonic() - started, 1e-9)
            self.plan.seconds += seconds
            compiler.note(seconds, self.plan.steps - self.at.next_step)
            self.at.compile_choice = compiler.choice
            collect(self.at.next_step)
            shown = {"loss": record.loss, "tokens_per_second": record.tokens / seconds}
            self.events.progress(self.stage, self.at.next_step, self.plan.steps, shown)

    def _take_step(self, step: int) -> StepRecord:
        """Do one update and let the controller speak."""
        lr = self.optimisers.set_scale(self.plan.lr_share(step) * self.at.controls["lr_scale"])
        batch = self.feed.batch(step)
        loss, metrics = self._gradient(batch, step)
        if step + 1 < self.plan.steps:
            self.feed.prepare(step + 1)
        if self.at.controls["noise"]:
            if self.world.size > 1:
                torch.manual_seed(seed_for(self.asked.seed, self.stage, step, "noise"))  # the same noise everywhere
            gradients.add_noise(self.optimisers.parameters, self.at.controls["noise"])
        norm = gradients.clip(self.optimisers.parameters, self.asked.optim.clip_norm)
        if norm is None:
            raise PhaseError(f"{self.stage}: no trained parameter has a gradient; the loss does not depend on them")
        read = gradients.numbers({**metrics, LOSS: loss, NORM: norm})
        record = StepRecord(
            step=step, loss=read.pop(LOSS), lr=lr, grad_norm=read.pop(NORM), tokens=batch["input_ids"].numel(),
            metrics=read,
        )  # fmt: skip
        if not (math.isfinite(record.loss) and math.isfinite(record.grad_norm)):
            self._diverged(record, batch)
            return record
        self.optimisers.step()
        if self.plan.averages(step):
            self.trained.average.add(self.optimisers.named)
        if self.asked.on_step is not None:
            self._obey(self.asked.on_step(record, self.model) or {})
        return record

    def _gradient(self, batch: dict[str, Tensor], step: int) -> tuple[Any, Mapping[str, Any]]:
        """Leave the gradient of a batch in the parameters; return loss and metrics, which may still be on their way."""
        while True:
            self._reseed(step)
            self.optimisers.zero_grad()
            try:
                return self.gradients.leave(batch, step)
            except RuntimeError as error:
                if not self.compiler.retreats(error):
                    raise

    def _reseed(self, step: int) -> None:
        others = (self.world.rank,) if self.world.rank else ()
        torch.manual_seed(seed_for(self.asked.seed, self.stage, step, *others))

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        step = self.at.next_step
        try:
            with faults.named(self._place(step), self.asked.batches, step, self.runtime.accumulate, self.world):
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
        """Let the controller go back to kept weights, or go back to the last saved state; else end the phase."""
        asked = self.asked
        hears = asked.on_step is not None and self.trained.kept
        answer = (asked.on_step(record, self.model) or {}) if hears else {}
        if answer.get("rollback"):
            self._obey(answer)
            return
        what = faults.non_finite(self._place(record.step), record, batch)
        saved = states.newest(self.directory, self.stage, self.events) if self.runtime.rollbacks else None
        if self.at.rolled_back >= self.runtime.rollbacks or saved is None:
            raise faults.diverged(what, self.at.rolled_back, record.lr)
        self.at.rolled_back += 1
        self.trained.load(saved[0], saved[1]["averaged_steps"])
        self.events.warning(
            f"{what}; went back to the weights of step {saved[1]['next_step']} "
            f"(rollback {self.at.rolled_back} of {self.runtime.rollbacks}) and skip this batch"
        )

    def _obey(self, answer: Mapping[str, Any]) -> None:
        unknown = set(answer) - CONTROLS
        if unknown:
            raise PhaseError(f"{self.stage}: on_step returned unknown controls {sorted(unknown)}")
        if answer.get("rollback"):
            if not self.trained.kept:
                raise PhaseError(f"{self.stage}: on_step asked to roll back, but nothing was kept")
            self.trained.go_back()
        if answer.get("keep"):
            self.trained.keep()
        self.at.controls |= {key: float(answer[key]) for key in ("lr_scale", "noise") if key in answer}

    def save(self, name: str) -> None:
        """Write everything that the next step depends on; rank 0 alone writes. The final state holds no optimiser.

        Raises PhaseError, writing nothing, when a weight is NaN or infinite.
        """
        final, at, on_step = name == states.FINAL, self.at, self.asked.on_step
        tensors = self.trained.tensors(moments=not final or self.asked.keep_optimiser)
        faults.refuse_non_finite(self._place(at.next_step), tensors)
        own = on_step.state_dict() if hasattr(on_step, "state_dict") else None
        record = {
            "stage": self.stage, "next_step": at.next_step, "finished": final, "settings": self.settings,
            "controls": at.controls, "averaged_steps": self.trained.average.steps, "controller": own,
            "rolled_back": at.rolled_back, "compile": at.compile_choice, "dtype": at.dtype_choice,
            "seconds": self.plan.seconds, "records": [record.to_json() for record in at.records],
        }  # fmt: skip
        if self.world.rank == 0:
            states.write(self.directory, name, tensors, record)
        self.world.barrier()

    def restore(self) -> bool:
        """Load the newest state, if any; return whether the stage is finished."""
        self.world.barrier()
        found = states.newest(self.directory, self.stage, self.events)
        if found is None:
            return False
        tensors, record = found
        changed = states.changes(record["settings"], _plain(self.settings))
        if changed and not self.runtime.resume_anyway:
            states.refuse(self.stage, self.directory, changed)
        if changed:
            self.events.warning(f"{self.stage}: resumes with other settings, as asked: {'; '.join(changed)}")
        at = self.at
        at.next_step, at.controls, at.rolled_back = record["next_step"], record["controls"], record["rolled_back"]
        at.records = [StepRecord.from_json(entry) for entry in record["records"]]
        at.dtype_choice, self.plan.seconds = record.get("dtype", ""), record["seconds"]
        if record["settings"]["compile"] == self.runtime.compile:
            at.compile_choice = record["compile"]
        self.trained.kept = under("kept/", {key: value.to(self.asked.device) for key, value in tensors.items()})
        self.trained.load(tensors, record["averaged_steps"])
        if record["controller"] is not None and hasattr(self.asked.on_step, "load_state_dict"):
            self.asked.on_step.load_state_dict(record["controller"])
        return bool(record["finished"])

    def _go_on_from(self, stage: str) -> None:
        """Take over the optimiser state of a finished stage. Raises PhaseError when it was not kept."""
        found = states.newest(self.out.resume_dir(stage), stage, self.events)
        moments = under("optimiser/", found[0]) if found is not None else {}
        if not moments:
            raise PhaseError(
                f"{self.stage}: no optimiser state of {stage} to go on from; run it with keep_optimiser=True"
            )
        self.optimisers.load_tensors(moments)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they look after a round trip through JSON."""
    return dict(json.loads(json.dumps(settings)))
