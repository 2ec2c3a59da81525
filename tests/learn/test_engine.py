# ruff: noqa: ARG001, ARG002 - callbacks have the signature of the contract
"""How the work is run must not change what is learned: parts, recomputation, compiling, workers,
budgets, faults.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from agent_forge.anatomy.stack import blocks
from agent_forge.checkpoint import Workspace
from agent_forge.config import OptimConfig, RuntimeConfig
from agent_forge.config.compose import default_runtime
from agent_forge.core.errors import CheckpointError, ConfigError, PhaseError
from agent_forge.core.events import EventLog, read_events
from agent_forge.core.seeds import torch_generator
from agent_forge.learn import (
    StepRecord,
    TrainRequest,
    feed,
    gradients,
    lm_loss,
    precision,
    speed,
    state,
    train,
)
from agent_forge.learn.distribution import World
from agent_forge.learn.records import StageChoices
from agent_forge.learn.schedule import StageSchedule
from tests.pretend import pretend_accelerator

PLAIN = default_runtime()
OPTIM = OptimConfig(
    method="adamw", lr=3e-3, muon_lr=2e-2, warmup_steps=2, cooldown_share=0.4, weight_decay=0.1, beta1=0.9, beta2=0.95,
    clip_norm=1.0, average_share=0.5,
)  # fmt: skip
STEPS = 6


class Tokens:
    """Seeded random tokens; half of them have no label, unevenly over the rows."""

    pure = True

    def __init__(self, name: str = "one") -> None:
        self.name = name

    def batch(self, step: int) -> dict[str, Tensor]:
        ids = torch.randint(64, (4, 12), generator=torch_generator(0, self.name, step))
        labels = ids.clone()
        for row in range(4):
            labels[row, : 2 * row] = -100
        return {"input_ids": ids, "labels": labels}

    def fingerprint(self) -> str:
        return self.name


def choices(log: EventLog) -> StageChoices:
    return StageChoices("stage", log, lambda value: value)


def workspace(path: Path) -> Workspace:
    out = Workspace(path / "out", phase="test", seed=0, config={})
    out.save_every_seconds = 0.0
    return out


def fresh(tiny_llama: LlamaForCausalLM) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_llama.config).eval()


def go(
    model: nn.Module, path: Path, *, runtime: RuntimeConfig = PLAIN, **keys: Any
) -> list[StepRecord]:
    settings: dict[str, Any] = {
        "stage": "stage", "steps": STEPS, "optim": OPTIM, "seed": 7, "out": workspace(path),
        "events": EventLog(None, "test"), "batches": Tokens(), "loss_fn": lm_loss, "runtime": runtime, **keys,
    }  # fmt: skip
    return train(model, TrainRequest(**settings))


def losses(records: list[StepRecord]) -> list[str]:
    return [record.loss.hex() for record in records]


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, parts: int
) -> None:
    whole = go(fresh(tiny_llama), tmp_path / "whole")
    cut = go(fresh(tiny_llama), tmp_path / "parts", runtime=replace(PLAIN, accumulate=parts))
    for one, other in zip(whole, cut, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)


def test_more_parts_than_rows_are_refused(tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"runtime\.accumulate=5 .* has only 4"):
        go(fresh(tiny_llama), tmp_path, runtime=replace(PLAIN, accumulate=5))


def test_recomputed_activations_give_the_same_bits_from_less_memory(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    plain, saving = fresh(tiny_llama), fresh(tiny_llama)
    expected = go(plain, tmp_path / "plain")
    saved_bytes: dict[str, int] = {}

    def measured(model: Any, batch: dict[str, Tensor], step: int) -> Any:
        total = [0]

        def pack(tensor: Tensor) -> Tensor:
            total[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = lm_loss(model, batch, step)
        saved_bytes["saving"] = total[0]
        return result

    result = go(
        saving,
        tmp_path / "saving",
        runtime=replace(PLAIN, checkpoint_activations=True),
        loss_fn=measured,
    )
    assert losses(result) == losses(expected)
    one_layer = saved_bytes["saving"]
    go(fresh(tiny_llama), tmp_path / "again", loss_fn=measured)
    assert one_layer < 0.5 * saved_bytes["saving"]
    assert all("forward" not in vars(block) for block in blocks(saving))


def test_workers_change_no_bit_also_across_a_restart(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    expected = go(fresh(tiny_llama), tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(record: StepRecord, model: Any) -> None:
        if record.step == 3:
            raise Killed

    with pytest.raises(Killed):
        go(fresh(tiny_llama), tmp_path / "parts", runtime=replace(PLAIN, workers=2), on_step=kill)
    result = go(fresh(tiny_llama), tmp_path / "parts", runtime=replace(PLAIN, workers=1))
    assert losses(result) == losses(expected)


def test_batches_that_depend_on_training_stay_in_line_and_say_so(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    class Steered(Tokens):
        pure = False

    log = EventLog(tmp_path / "events.jsonl", "test")
    go(
        fresh(tiny_llama),
        tmp_path,
        runtime=replace(PLAIN, workers=2),
        batches=Steered(),
        events=log,
    )
    assert [
        e.message
        for e in read_events(tmp_path / "events.jsonl")
        if "workers=2 is not used" in e.message
    ]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # dynamo looks at every input's gradient
def test_compiled_blocks_learn_the_same_and_are_left_as_they_were(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    plain, compiled = fresh(tiny_llama), fresh(tiny_llama)
    expected = go(plain, tmp_path / "plain")
    result = go(compiled, tmp_path / "compiled", runtime=replace(PLAIN, compile="on"))
    for one, other in zip(expected, result, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-4)
    assert all(block._compiled_call_impl is None for block in blocks(compiled))


def test_compiling_without_a_compiler_says_so_and_goes_on(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    log = EventLog(tmp_path / "events.jsonl", "test")
    result = go(
        fresh(tiny_llama), tmp_path / "on", runtime=replace(PLAIN, compile="on"), events=log
    )
    assert losses(result) == losses(go(fresh(tiny_llama), tmp_path / "off"))
    warnings = [
        event.message for event in read_events(tmp_path / "events.jsonl") if event.kind == "warning"
    ]
    assert len(warnings) == 1
    assert "no C++ compiler" in warnings[0]


class Switched(nn.Module):
    """A block that counts how often it is compiled, for a compiler that only measures."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def compile(self, *args: Any, **keys: Any) -> None:
        self.calls.append("compile")


@pytest.mark.parametrize(
    ("eager", "compiled", "left", "choice"),
    [(1.0, 0.7, 1000, "on"), (1.0, 1.2, 1000, "off"), (0.01, 0.001, 100, "off")],
)
def test_auto_keeps_the_faster_way_and_does_not_try_where_it_cannot_pay(
    tmp_path: Path, eager: float, compiled: float, left: int, choice: str
) -> None:
    block, log = Switched(), EventLog(tmp_path / "events.jsonl", "test")
    compiler = speed.Compiler("auto", nn.ModuleList([block]), choices(log))
    compiler.start(torch.device("cpu"))
    for _ in range(speed.MEASURED):
        compiler.note(eager, left)
    tried = bool(block.calls)
    if tried:
        for seconds in (30.0, *[compiled] * (speed.MEASURED - 1)):
            compiler.note(seconds, left)
    assert compiler.choice == choice
    assert tried == (eager == 1.0)
    assert [
        event
        for event in read_events(tmp_path / "events.jsonl")
        if f"torch.compile {choice}" in event.message
    ]


def test_the_choice_is_reported_with_what_compiling_cost_and_what_it_saves(tmp_path: Path) -> None:
    """Four steps each, the first apart: 30.5 s - .5 s to compile, and 100 steps that save .5 s
    each.
    """
    log = EventLog(tmp_path / "events.jsonl", "test")
    compiler = speed.Compiler("auto", Switched(), choices(log))
    compiler._eager, compiled = [9.0, 1.0, 1.0, 1.0], [30.5, 0.5, 0.5, 0.5]
    for seconds in compiled:
        compiler.note(seconds, 100)
    assert [event.message for event in read_events(tmp_path / "events.jsonl")] == [
        "stage: torch.compile on: 1.000 s per step eager, 0.500 s compiled, 30 s to compile; over 100 steps that is +20 s"
    ]


def test_only_the_last_part_of_a_batch_exchanges_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mean(nn.Linear):
        def forward(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
            order.append("forward")
            return super().forward(batch["x"]).mean(), {}

    class Local:
        def __enter__(self) -> None:
            order.append("local")

        def __exit__(self, *error: object) -> None:
            order.append("end")

    order: list[str] = []
    monkeypatch.setattr(gradients.distribution, "unsynchronised", lambda _: Local())
    run = gradients.Gradients(
        Mean(2, 1), World(torch.device("cpu")), 3, torch.device("cpu"), torch.float32
    )
    run.backward({"x": torch.ones(3, 2), "labels": torch.ones(3, 2, dtype=torch.long)}, 0)
    assert order == ["local", "forward", "end"] * 2 + ["forward"]


class Squares(nn.Module):
    """The mean squared error over trained tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))

    def forward(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Any]]:
        trained = batch["labels"][:, 1:] != -100
        error = (batch["x"][:, 1:] @ self.weight - batch["y"][:, 1:])[trained]
        return error.square().mean(), {"error": error.mean().detach()}


class OneOfTwo(World):
    """One process of two that knows how many tokens both have, and what the other sums up to."""

    def __init__(self, rank: int, tokens: int) -> None:
        super().__init__(torch.device("cpu"))
        self.size, self.rank, self.totals = 2, rank, [[float(tokens)]]

    def sums(self, values: list[float]) -> list[float]:
        return self.totals.pop() if self.totals else values


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("trained", [[1, 2, 0, 4], [0, 1, 0, 0]])
def test_processes_and_parts_weigh_a_tokens_gradient_as_the_whole_batch_does(
    parts: int, trained: list[int]
) -> None:
    """A batch may have a single trained token, in one part of one process."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(9, (4, 5), generator=generator)
    x, y = torch.randn(4, 5, 3, generator=generator), torch.randn(4, 5, generator=generator)
    labels = ids.clone()
    for row, count in enumerate(trained):
        labels[row, : 5 - count] = -100
    batch = {"input_ids": ids, "labels": labels, "x": x, "y": y}
    whole = Squares()
    loss, metrics = whole(batch, 0)
    loss.backward()
    gradient, both = torch.zeros(3), {"loss": 0.0, "error": 0.0}
    for rank in range(2):
        mine = Squares()
        world = OneOfTwo(rank, sum(trained))
        run = gradients.Gradients(mine, world, parts, torch.device("cpu"), torch.float32)
        share, own = run.backward(batch, 0)
        assert mine.weight.grad is not None
        gradient += mine.weight.grad / 2  # Distributed training averages over its processes.
        both["loss"] += float(share)
        both["error"] += own["error"]
    torch.testing.assert_close(gradient, whole.weight.grad)
    assert both["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert both["error"] == pytest.approx(float(metrics["error"]), rel=1e-5)


def test_a_budget_of_tokens_ends_the_whole_schedule_earlier(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    shorter = go(
        fresh(tiny_llama), tmp_path / "budget", runtime=replace(PLAIN, budget_tokens=3 * 48 + 1)
    )
    assert losses(shorter) == losses(go(fresh(tiny_llama), tmp_path / "steps", steps=4))


def test_a_budget_of_tokens_needs_no_batch_but_the_first(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    class OneBatch(Tokens):
        def batch(self, step: int) -> dict[str, Tensor]:
            assert step == 0
            return super().batch(step)

    runtime = replace(PLAIN, budget_tokens=1000)
    assert len(go(fresh(tiny_llama), tmp_path, runtime=runtime, batches=OneBatch(), steps=1)) == 1


def test_a_budget_of_minutes_cools_down_in_time() -> None:
    plan = StageSchedule(1000, replace(OPTIM, cooldown_share=0.5, warmup_steps=0), minutes=1.0)
    shares = []
    for step in range(8):
        if plan.over(step):
            break
        shares.append(plan.lr_share(step))
        plan.seconds += 10
    assert shares == pytest.approx([1, 1, 1, 1, 2 / 3, 1 / 3])
    assert plan.averages(7)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_average_takes_its_share_of_the_last_steps_and_of_the_last_minutes(
    share: float,
) -> None:
    plan = StageSchedule(10, replace(OPTIM, average_share=share))
    assert sum(plan.averages(step) for step in range(10)) == round(10 * share)
    assert not share or plan.averages(9)
    timed = StageSchedule(10**6, replace(OPTIM, average_share=share), minutes=2.0)
    taken = []
    for timed.seconds in range(1, 121):
        taken.append(timed.averages(0))
    assert taken == [bool(share) and second >= 120 * (1 - share) for second in range(1, 121)]


def test_each_next_batch_is_prepared_while_a_step_is_computed_and_none_after_the_last(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[int] = []
    monkeypatch.setattr(feed.Feed, "prepare", lambda _, step: prepared.append(step))
    go(fresh(tiny_llama), tmp_path, steps=4)
    assert prepared == [1, 2, 3]


def test_a_prepared_batch_is_taken_once_and_only_by_its_step() -> None:
    drawn: list[int] = []

    class Noted(Tokens):
        def batch(self, step: int) -> dict[str, Tensor]:
            drawn.append(step)
            return super().batch(step)

    with pretend_accelerator() as device:
        batches = Noted()
        batch_feed = feed.Feed(batches, 0, 4, 0, device)
        batch_feed.prepare(1)
        for step, known in ((1, [1]), (1, [1, 1]), (2, [1, 1, 2])):
            batch = batch_feed.batch(step)
            assert batch["input_ids"].device.type == device.type
            assert drawn == known
        batch_feed.prepare(3)
        assert torch.equal(batch_feed.batch(0)["labels"].cpu(), Tokens().batch(0)["labels"])
        batches.pure = False
        batch_feed.prepare(5)
    assert drawn == [1, 1, 2, 3, 0]
    on_cpu = feed.Feed(Noted(), 0, 4, 0, torch.device("cpu"))
    on_cpu.prepare(7)
    assert 7 not in drawn  # there is nothing to wait for


def test_a_batch_without_labels_counts_its_rows_and_others_their_predicted_labels() -> None:
    ids = torch.zeros(3, 5, dtype=torch.long)
    assert feed.trained_tokens({"input_ids": ids}) == 3
    labels = ids.clone()
    labels[:, :3] = feed.IGNORE
    labels[2] = feed.IGNORE
    labels[2, 0] = 1  # nothing before it predicts it
    assert feed.trained_tokens({"input_ids": ids, "labels": labels}) == 4


def test_other_data_is_refused_with_the_difference_unless_asked_for(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    def kill(record: StepRecord, model: Any) -> None:
        if record.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(fresh(tiny_llama), tmp_path, on_step=kill)
    with pytest.raises(ConfigError, match=r"data was 'one', is 'two'.*runtime\.resume_anyway=true"):
        go(fresh(tiny_llama), tmp_path, batches=Tokens("two"))
    log = EventLog(tmp_path / "events.jsonl", "test")
    anyway = replace(PLAIN, resume_anyway=True)
    assert (
        len(go(fresh(tiny_llama), tmp_path, batches=Tokens("two"), runtime=anyway, events=log))
        == STEPS
    )
    assert [
        e
        for e in read_events(tmp_path / "events.jsonl")
        if e.kind == "warning" and "data was 'one'" in e.message
    ]


def test_a_non_finite_loss_names_its_batch(tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    ids = Tokens().batch(2)["input_ids"]
    named = hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:12]
    with pytest.raises(PhaseError, match=rf"step 2: the loss is nan \(batch 2, ids {named}\)"):
        go(fresh(tiny_llama), tmp_path, loss_fn=poisoned({2}))


def poisoned(steps: set[int]) -> Any:
    def loss(model: Any, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = lm_loss(model, batch, step)
        return value * (float("nan") if step in steps else 1.0), metrics

    return loss


def test_a_rollback_goes_on_from_the_last_saved_state_and_skips_the_batch(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    seen: dict[int, Tensor] = {}

    def loss(model: Any, batch: dict[str, Tensor], step: int) -> Any:
        seen[step] = model.model.norm.weight.detach().clone()
        return poisoned({3})(model, batch, step)

    log = EventLog(tmp_path / "events.jsonl", "test")
    records = go(
        fresh(tiny_llama), tmp_path, loss_fn=loss, runtime=replace(PLAIN, rollbacks=1), events=log
    )
    assert torch.equal(seen[4], seen[3])
    assert [record.loss != record.loss for record in records] == [
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    assert [e for e in read_events(tmp_path / "events.jsonl") if "rollback 1 of 1" in e.message]


def test_rollbacks_run_out(tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(PhaseError, match=r"step 4: the loss is nan.*after 1 rollback"):
        go(
            fresh(tiny_llama),
            tmp_path,
            loss_fn=poisoned({2, 4}),
            runtime=replace(PLAIN, rollbacks=1),
        )


def test_out_of_memory_suggests_parts_and_leaves_no_half_state(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    def loss(model: Any, batch: dict[str, Tensor], step: int) -> Any:
        if step == 3:
            raise torch.OutOfMemoryError("out of memory")
        return lm_loss(model, batch, step)

    with pytest.raises(
        PhaseError,
        match=r"4 rows of 12 tokens in 1 part\(s\); try runtime\.accumulate=2 .*size 2\)",
    ):
        go(fresh(tiny_llama), tmp_path, loss_fn=loss)
    result = go(fresh(tiny_llama), tmp_path)
    assert losses(result) == losses(go(fresh(tiny_llama), tmp_path / "whole"))


def test_non_finite_weights_are_not_saved(tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    def spoil(record: StepRecord, model: Any) -> None:
        if record.step == 3:
            with torch.no_grad():
                model.model.norm.weight[0] = float("inf")

    with pytest.raises(
        PhaseError, match=r"step 4: model\.norm\.weight holds NaN or infinite weights"
    ):
        go(fresh(tiny_llama), tmp_path, on_step=spoil)
    names = sorted(path.name for path in workspace(tmp_path).resume_dir("stage").iterdir())
    assert names[-1] == "step-00000003"


def test_retention_never_deletes_the_only_state_that_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"weight/x": torch.ones(3)}
    for name in ("step-00000001", "step-00000002"):
        state.write(tmp_path, name, tensors, {"next_step": 1})
    real = state.atomic.write_directory

    def rotten(target: Path, fill: Any) -> None:
        real(target, fill)
        content = bytearray((target / state.TENSORS).read_bytes())
        content[-1] ^= 1
        (target / state.TENSORS).write_bytes(bytes(content))

    monkeypatch.setattr(state.atomic, "write_directory", rotten)
    for name in ("step-00000003", "final"):
        with pytest.raises(CheckpointError, match="does not hold what was written"):
            state.write(tmp_path, name, tensors, {"next_step": 3})
    result = state.newest(tmp_path, "stage", EventLog(None, "test"))
    assert result is not None
    assert {path.name for path in tmp_path.iterdir()} >= {"step-00000001", "step-00000002"}


@pytest.mark.slow
def test_sigterm_to_the_whole_group_with_live_workers_is_resumable(tmp_path: Path) -> None:
    """The signal reaches trainer and workers alike: exit 75, a whole state, and the same losses
    after a resume.
    """
    script = Path(__file__).with_name("engine_child.py")

    def start(folder: str, pause: float, workers: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / folder), str(pause), str(workers)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    stopped = start("stopped", 0.3, 2)
    assert stopped.stdout is not None
    for line in stopped.stdout:
        if line.strip() == "step 3":
            break
    os.killpg(stopped.pid, signal.SIGTERM)
    _, errors = stopped.communicate(timeout=120)
    assert stopped.returncode == 75, errors
    resumed, _ = start("stopped", 0.0, 0).communicate(timeout=120)
    whole, _ = start("whole", 0.0, 0).communicate(timeout=120)
    assert json.loads(resumed.splitlines()[-1]) == json.loads(whole.splitlines()[-1])
    time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.killpg(stopped.pid, 0)


@pytest.mark.parametrize("there", [False, True])
def test_bfloat16_is_taken_from_a_fifth_more_speed_on_and_wherever_an_accelerator_has_it(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet, model = choices(EventLog(None, "test")), nn.Linear(2, 2)
    for gain, dtype in ((1.2, torch.bfloat16), (1.199, torch.float32)):
        monkeypatch.setattr(precision, "measured_gain", lambda *_, gain=gain: gain)
        assert precision.chosen(model, 9, torch.device("cpu"), quiet) == dtype
    monkeypatch.setattr(precision, "has_bfloat16", lambda _: there)
    monkeypatch.setattr(precision, "describe", lambda _: "an accelerator")
    taken = precision.chosen(model, 9, torch.device("cuda"), quiet)
    assert taken == (torch.bfloat16 if there else torch.float32)


@pytest.mark.parametrize(("gain", "taken"), [(2.0, "bfloat16"), (1.1, "float32")])
def test_auto_dtype_takes_what_measures_faster_says_so_and_keeps_it_on_resume(
    tiny_llama: LlamaForCausalLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gain: float,
    taken: str,
) -> None:
    auto = replace(PLAIN, dtype="auto")
    monkeypatch.setattr(precision, "measured_gain", lambda *_: gain)
    events = EventLog(tmp_path / "events.jsonl", "test")
    expected = fresh(tiny_llama), fresh(tiny_llama)
    result = go(expected[0], tmp_path / "auto", runtime=auto, events=events)
    assert losses(result) == losses(
        go(expected[1], tmp_path / "named", dtype=getattr(torch, taken))
    )
    said = [
        event.message
        for event in read_events(tmp_path / "events.jsonl")
        if "products" in event.message
    ]
    assert said == [
        f"stage: {taken} products (bfloat16 measured {gain:.1f} times as fast as float32)"
    ]

    class Stop:
        def __call__(self, record: StepRecord, model: Any) -> None:
            if record.step == 2:
                raise KeyboardInterrupt

    model = fresh(tiny_llama)
    with pytest.raises(KeyboardInterrupt):
        go(model, tmp_path / "cut", runtime=auto, on_step=Stop())
    monkeypatch.setattr(
        precision, "measured_gain", lambda *_: 3.1 - gain
    )  # would choose the other one now
    assert losses(go(model, tmp_path / "cut", runtime=auto)) == losses(result)


def test_the_measurement_is_a_ratio_of_this_models_products(tiny_llama: LlamaForCausalLM) -> None:
    assert 0.01 < precision.measured_gain(tiny_llama, 48, torch.device("cpu")) < 100
    assert precision.measured_gain(nn.LayerNorm(3), 48, torch.device("cpu")) == 1.0


@pytest.mark.parametrize("crowded", [0, 7, 30])
def test_work_beside_the_measurement_does_not_decide_it(
    crowded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first products, whatever their form, take ten times as long."""
    clock, calls = [0.0], [0]

    def linear(rows: Tensor, weight: Tensor) -> Tensor:
        calls[0] += 1
        own = 0.001 if weight.dtype == torch.bfloat16 else 0.003
        clock[0] += own * (10 if calls[0] <= crowded else 1)
        return rows

    monkeypatch.setattr(precision.functional, "linear", linear)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[0])
    assert precision.measured_gain(nn.Linear(8, 8), 4, torch.device("cpu")) == pytest.approx(3.0)
    assert calls[0] <= 2 * precision.MOST_TRIALS


def test_the_measured_gain_weighs_each_shape_by_how_often_it_occurs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """float32 takes rows times columns, bfloat16 a third of it for square weights and all of it for
    others.
    """
    rows: dict[tuple[int, ...], int] = {}

    def seconds(inputs: Tensor, weight: Tensor) -> dict[torch.dtype, float]:
        rows[tuple(weight.shape)] = len(inputs)
        size, square = weight.numel(), weight.shape[0] == weight.shape[1]
        return {torch.float32: size, torch.bfloat16: size / (3 if square else 1)}

    monkeypatch.setattr(precision, "_least_seconds", seconds)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    gain = precision.measured_gain(model, 48, torch.device("cpu"))
    assert gain == pytest.approx((2 * 16 + 8) / (2 * 16 / 3 + 8))
    assert rows == {(4, 4): 48, (2, 4): 48}
    monkeypatch.setattr(precision, "MEASURED_FLOP", 10 * 2 * 16)
    precision.measured_gain(model, 48, torch.device("cpu"))
    assert rows == {(4, 4): 10, (2, 4): 20}
    monkeypatch.setattr(precision, "MEASURED_FLOP", 1)
    precision.measured_gain(model, 48, torch.device("cpu"))
    assert rows == {(4, 4): 1, (2, 4): 1}
