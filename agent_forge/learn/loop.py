"""The one training loop: batches, loss, clipping, optimiser, schedule, averaging, state, telemetry.

Reads `batches.batch(step)`, a pure function of step; changes the model in place; writes its state under
`out.resume_dir(stage)`. torch is reseeded from (seed, stage, step) before every step, so a run that was killed and
resumed gives the same bytes on CPU as one that was not. How the work is run (compiled, in parts, by several processes,
how long) is read from the phase's `runtime` settings. Sources: warm-up-stable-decay (arXiv:2404.06395), tail averaging
(SWA, arXiv:1803.05407).
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from agent_forge.checkpoint.workspace import Workspace
from agent_forge.config import OptimConfig, RuntimeConfig
from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import seed_for
from agent_forge.learn import distribution, feed
from agent_forge.learn import state as states
from agent_forge.learn.attention import fast_bfloat16_attention
from agent_forge.learn.distribution import World, whole
from agent_forge.learn.optimisers import Optimisers, Parameters, outside
from agent_forge.learn.plan import Plan
from agent_forge.learn.records import Batches, LossFn, OnStep, StepRecord
from agent_forge.learn.speed import Compiler, no_memory_fill, recomputing

# Where a caller's workspace carries no runtime settings.
PLAIN = RuntimeConfig(
    device="cpu", dtype="float32", threads=0, save_every_seconds=60.0, compile="off", workers=0, accumulate=1,
    checkpoint_activations=False, shard=False, rollbacks=0, budget_tokens=0, budget_minutes=0.0, resume_anyway=False,
)  # fmt: skip
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
LOST = ("Connection closed", "Connection reset", "Timed out", "timeout", "NCCL", "peer")


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
    dtype: of the forward pass (autocast).
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
    given = None if parameters is None else list(parameters)
    stage_run = _Stage(
        model, batches, loss_fn, stage, steps, optim, out, events, seed, given, on_step, torch.device(device), dtype,
        runtime,
    )  # fmt: skip
    stage_run.average_decay = average_decay
    stage_run.keep_optimiser = keep_optimiser
    stage_run.settings |= {"average_decay": average_decay, "after": after, **(settings or {})}
    finished = stage_run.restore()
    if not finished:
        if after and not stage_run.records:
            stage_run.go_on_from(after)
        training = model.training
        stage_run.model.train()
        try:
            stage_run.run()
        finally:
            stage_run.model.train(training)
            model.train(training)
    stage_run.hand_back(model)
    return stage_run.records


class _Stage:
    """One stage under way: what has to be saved, and how a step is taken."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        loss_fn: LossFn,
        stage: str,
        steps: int,
        optim: OptimConfig,
        out: Workspace,
        events: EventLog,
        seed: int,
        parameters: list[Any] | None,
        on_step: OnStep | None,
        device: torch.device,
        dtype: torch.dtype,
        runtime: RuntimeConfig,
    ) -> None:
        if dtype == torch.float16:
            raise ConfigError("runtime.dtype=float16 cannot train (it needs loss scaling); use bfloat16 or float32")
        self.world = World(device)
        if runtime.shard and self.world.size > 1 and parameters is not None:
            raise ConfigError(f"runtime.shard=true cannot train chosen parameters ({stage}); set it to false")
        self.stage, self.optim, self.batches = stage, optim, batches
        self.out, self.seed, self.device, self.dtype, self.runtime = out, seed, device, dtype, runtime
        self.events = events if self.world.rank == 0 else EventLog(None, out.phase)
        self.on_step: Any = on_step
        self.directory = out.resume_dir(stage)
        self.model = distribution.working_copy(model, self.world, runtime.shard)
        objective = distribution.Objective(self.model, loss_fn, outside(self.model, parameters))
        self.called = distribution.spread(objective, self.world, runtime.shard)
        self.optimisers = Optimisers(self.model, optim, parameters)
        stored = set(self.model.state_dict())
        self.buffers = {name: value for name, value in self.model.named_buffers() if name in stored}
        self.plan = Plan(steps, optim, tokens=runtime.budget_tokens, minutes=runtime.budget_minutes)
        if runtime.budget_tokens:
            self.plan.limit_tokens(batches.batch(0)["input_ids"].numel())
        self.next_step = self.rolled_back = 0
        self.compile_choice = runtime.compile
        self.controls = {"lr_scale": 1.0, "noise": 0.0}
        self.records: list[StepRecord] = []
        self.average: dict[str, Tensor] = {}
        self.averaged_steps = 0
        self.average_decay = 0.0
        self.keep_optimiser = False
        self.kept: dict[str, Tensor] = {}
        fingerprint: Any = getattr(batches, "fingerprint", None)
        self.settings: dict[str, Any] = {
            **{f"optim.{key}": value for key, value in asdict(optim).items()},
            "steps": self.plan.steps, "seed": seed, "dtype": str(dtype),
            "parameters": {name: list(parameter.shape) for name, parameter in self.optimisers.named},
            "compile": runtime.compile, "accumulate": runtime.accumulate, "budget_minutes": runtime.budget_minutes,
            "processes": self.world.size, "data": fingerprint() if fingerprint else "",
        }  # fmt: skip

    def run(self) -> None:
        """Take the steps that are left, save on time and on a stop signal, and leave the final state."""
        self._warn_of_slow_dtype()
        compiler = Compiler(self.compile_choice, self.model, self.stage, self.events, self.world.same)
        workers = feed.usable_workers(self.batches, self.runtime.workers, self.stage, self.events)
        self.feed = feed.Feed(self.batches, self.next_step, self.plan.steps, workers, self.device)
        if self.runtime.rollbacks and not self.next_step:
            self.save("step-00000000")
        try:
            reduced = self.dtype == torch.bfloat16
            with (
                no_memory_fill(), recomputing(self.model, self.runtime.checkpoint_activations),
                fast_bfloat16_attention(reduced),
            ):  # fmt: skip
                compiler.start(self.device)
                self._take_steps(compiler)
        finally:
            compiler.stop()
            self.feed.close()
        self.finish()

    def _take_steps(self, compiler: Compiler) -> None:
        saved_at = time.monotonic()
        while not self.plan.over(self.next_step):
            due = time.monotonic() - saved_at >= self.out.save_every_seconds
            stop, save_now, self.plan.seconds = self.world.largest(
                [float(self.out.stop_signal), float(due and self.next_step > 0), self.plan.seconds]
            )
            if stop or save_now:
                self.save(f"step-{self.next_step:08}")
                saved_at = time.monotonic()
            if stop:
                self.out.stop_signal = int(stop)
                self.out.check_stop()
            started = time.monotonic()
            with self._named_errors():
                record = self.take_step(self.next_step)
            self.records.append(record)
            self.next_step += 1
            seconds = max(time.monotonic() - started, 1e-9)
            self.plan.seconds += seconds
            compiler.note(seconds, self.plan.steps - self.next_step)
            self.compile_choice = compiler.choice
            shown = {"loss": record.loss, "tokens_per_second": record.tokens / seconds}
            self.events.progress(self.stage, self.next_step, self.plan.steps, shown)

    def take_step(self, step: int) -> StepRecord:
        """Do one update and let the controller speak."""
        self._reseed(step)
        lr = self.optimisers.set_scale(self.plan.lr_share(step) * self.controls["lr_scale"])
        batch = self.feed.batch(step)
        self.optimisers.zero_grad()
        loss, metrics = self._gradients(batch, step)
        if step + 1 < self.plan.steps:
            self.feed.prepare(step + 1)
        if self.controls["noise"]:
            if self.world.size > 1:
                torch.manual_seed(seed_for(self.seed, self.stage, step, "noise"))  # the same noise everywhere
            _add_noise(self.optimisers.parameters, self.controls["noise"])
        record = StepRecord(
            step=step, loss=float(loss), lr=lr, grad_norm=self._clip(), tokens=batch["input_ids"].numel(),
            metrics={key: float(value) for key, value in metrics.items()},
        )  # fmt: skip
        if not (math.isfinite(record.loss) and math.isfinite(record.grad_norm)):
            self._diverged(record, batch)
            return record
        self.optimisers.step()
        self._update_average(step)
        if self.on_step is not None:
            self._obey(self.on_step(record, self.model) or {})
        return record

    def _reseed(self, step: int) -> None:
        others = (self.world.rank,) if self.world.rank else ()
        torch.manual_seed(seed_for(self.seed, self.stage, step, *others))

    def _gradients(self, batch: dict[str, Tensor], step: int) -> tuple[Any, Mapping[str, Any]]:
        """Leave the gradient of the whole batch in the parameters; return its loss and metrics."""
        if self.world.size == 1 and self.runtime.accumulate == 1:
            loss, metrics = self._forward(batch, step)
            loss.backward()
            return loss.detach(), metrics
        mine = feed.parts_of(batch, self.world.size, "number of processes")[self.world.rank]
        parts = feed.parts_of(mine, self.runtime.accumulate, "runtime.accumulate")
        counts = [feed.trained_tokens(part) for part in parts]
        total = self.world.sums([float(sum(counts))])[0]
        sums: dict[str, float] = {}
        for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
            if not count:
                # Every process must take part in every exchange: an empty part trains on its ids with weight 0.
                part = {**part, "labels": part["input_ids"]}
            share = count / max(total, 1.0)
            last = number + 1 == len(parts)
            with contextlib.nullcontext() if last else distribution.unsynchronised(self.called):
                loss, metrics = self._forward(part, step)
                # DDP and FSDP average over processes; the shares already add up to 1.
                (loss * (share * self.world.size)).backward()
            for key, value in {**metrics, "": loss.detach()}.items():
                sums[key] = sums.get(key, 0.0) + share * float(value) if count else sums.get(key, 0.0)
        names = sorted(sums)
        found = dict(zip(names, self.world.sums([sums[name] for name in names]), strict=True))
        return found.pop(""), found

    def _forward(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, Mapping[str, Any]]:
        reduced = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype) if reduced else contextlib.nullcontext():
            found: tuple[Tensor, Mapping[str, Any]] = self.called(batch, step)
        return found

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn what torch says of memory and lost processes into one line with the remedy."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            text = str(error)
            if self.out.stop_signal and "DataLoader worker" in text:
                # The signal reached a worker that was just being born; the step was not taken.
                self.save(f"step-{self.next_step:08}")
                self.out.check_stop()
            if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in text for sign in OUT_OF_MEMORY):
                raise self._out_of_memory() from error
            if self.world.size > 1 and any(sign in text for sign in LOST):
                raise distribution.lost(self.world.rank, error) from error
            raise

    def _out_of_memory(self) -> PhaseError:
        rows, length = self.batches.batch(self.next_step)["input_ids"].shape[:2]
        parts = self.runtime.accumulate
        cut = f"runtime.accumulate={2 * parts} (the same gradient from half the rows at a time), " if rows > 1 else ""
        return PhaseError(
            f"{self.out.phase}, stage {self.stage}, step {self.next_step}: out of memory with {rows} rows of {length} "
            f"tokens in {parts} part(s); try {cut}runtime.checkpoint_activations=true, or fewer rows "
            f"(batch size {max(rows // 2, 1)})"
        )

    def _warn_of_slow_dtype(self) -> None:
        if self.dtype == torch.bfloat16 and self.device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
            self.events.warning(f"{self.stage}: this processor has no bfloat16 arithmetic; float32 is faster here")

    def _clip(self) -> float:
        gradients = [p.grad for p in self.optimisers.parameters if p.grad is not None]
        if not gradients:
            raise PhaseError(f"{self.stage}: no trained parameter has a gradient; the loss does not depend on them")
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        if self.optim.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.optimisers.parameters, self.optim.clip_norm, norm)
        return float(norm)

    def _diverged(self, record: StepRecord, batch: Mapping[str, Tensor]) -> None:
        """Let the controller go back to kept weights, or go back to the last saved state; else end the phase."""
        answer = (self.on_step(record, self.model) or {}) if self.on_step is not None and self.kept else {}
        if answer.get("rollback"):
            self._obey(answer)
            return
        what = "loss" if not math.isfinite(record.loss) else "gradient norm"
        value = record.loss if what == "loss" else record.grad_norm
        where = f"{self.out.phase}, stage {self.stage}, step {record.step}: the {what} is {value}"
        where += f" (batch {record.step}, ids {feed.describe(batch)})"
        saved = states.newest(self.directory, self.stage, self.events) if self.runtime.rollbacks else None
        if self.rolled_back >= self.runtime.rollbacks or saved is None:
            again = f" after {self.rolled_back} rollback(s)" if self.rolled_back else ""
            raise PhaseError(
                f"{where}{again}; try a lower learning rate (now {record.lr:.3g}), more warm-up, clip_norm=1.0, "
                "dtype=float32, or runtime.rollbacks=3"
            )
        self.rolled_back += 1
        self._restore_tensors(*saved)
        self.events.warning(
            f"{where}; went back to the weights of step {saved[1]['next_step']} "
            f"(rollback {self.rolled_back} of {self.runtime.rollbacks}) and skip this batch"
        )

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
        if not self.plan.averages(step):
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
                states.copy_into(parameter, whole(self.average[name]))
        self.optimisers.zero_grad()
        self.average, self.kept = {}, {}
        self.save(states.FINAL)

    def hand_back(self, model: nn.Module) -> None:
        """Put the result of a sharded working copy into the caller's model."""
        if model is self.model:
            return
        targets = dict(model.named_parameters())
        for name, parameter in self.optimisers.named:
            states.copy_into(targets[name], whole(parameter.detach()))
        buffers = dict(model.named_buffers())
        for name, value in self.buffers.items():
            states.copy_into(buffers[name], value)

    def save(self, name: str) -> None:
        """Write everything that the next step depends on; rank 0 alone writes. The final state holds no optimiser.

        Raises PhaseError, writing nothing, when a weight is NaN or infinite.
        """
        final = name == states.FINAL
        live = self._weights() if final and not self.keep_optimiser else self._live()
        live |= {f"average/{key}": value for key, value in self.average.items()}
        live |= {f"kept/{key}": value for key, value in self.kept.items()}
        tensors = {key: whole(value) for key, value in live.items()}
        self._refuse_non_finite(tensors)
        own = self.on_step.state_dict() if hasattr(self.on_step, "state_dict") else None
        record = {
            "stage": self.stage, "next_step": self.next_step, "finished": final, "settings": self.settings,
            "controls": self.controls, "averaged_steps": self.averaged_steps, "controller": own,
            "rolled_back": self.rolled_back, "compile": self.compile_choice, "seconds": self.plan.seconds,
            "records": [record.to_json() for record in self.records],
        }  # fmt: skip
        if self.world.rank == 0:
            states.write(self.directory, name, tensors, record)
        self.world.barrier()

    def _refuse_non_finite(self, tensors: Mapping[str, Tensor]) -> None:
        for key, value in tensors.items():
            if key.startswith("weight/") and not bool(torch.isfinite(value).all()):
                raise PhaseError(
                    f"{self.out.phase}, stage {self.stage}, step {self.next_step}: {key.removeprefix('weight/')} holds "
                    "NaN or infinite weights, so no state was saved; the last one is whole: lower the learning rate"
                )

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
        self.next_step, self.controls = record["next_step"], record["controls"]
        self.records = [StepRecord.from_json(entry) for entry in record["records"]]
        self.rolled_back, self.plan.seconds = record["rolled_back"], record["seconds"]
        if record["settings"]["compile"] == self.runtime.compile:
            self.compile_choice = record["compile"]
        self.kept = _under("kept/", {key: value.to(self.device) for key, value in tensors.items()})
        self._restore_tensors(tensors, record)
        if record["controller"] is not None and hasattr(self.on_step, "load_state_dict"):
            self.on_step.load_state_dict(record["controller"])
        return bool(record["finished"])

    def _restore_tensors(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Take weights, optimiser and average from a saved state."""
        self.averaged_steps = record["averaged_steps"]
        parameters = dict(self.optimisers.named)
        self.average = {
            name: distribution.laid_out_like(value.to(self.device), parameters[name])
            for name, value in _under("average/", tensors).items()
        }
        self._load_live(tensors)

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
