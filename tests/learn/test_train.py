# ruff: noqa: ARG001, ARG002, ARG005 - callbacks have the signature of the contract
"""The training loop: resume is bit-identical, state survives damage, schedule and averages follow
their formulas.
"""

import copy
import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from agent_forge.checkpoint import Workspace
from agent_forge.config import OptimConfig
from agent_forge.core.errors import ConfigError, Interrupted, PhaseError
from agent_forge.core.events import EventLog, read_events
from agent_forge.core.seeds import seed_for, torch_generator
from agent_forge.learn import StepRecord, TrainRequest, feed, last_weights, lm_loss, train, wsd
from agent_forge.learn import state as states
from agent_forge.learn.optimisers import Optimisers

OPTIM = OptimConfig(
    method="adamw", lr=3e-3, muon_lr=2e-2, warmup_steps=2, cooldown_share=0.4, weight_decay=0.1, beta1=0.9, beta2=0.95,
    clip_norm=1.0, average_share=0.5,
)  # fmt: skip
STEPS = 8


class RandomTokens:
    """Batches of seeded random tokens over the whole vocabulary."""

    def __init__(self, vocabulary: int = 64) -> None:
        self.vocabulary = vocabulary

    def batch(self, step: int) -> dict[str, Tensor]:
        ids = torch.randint(self.vocabulary, (2, 12), generator=torch_generator(0, "tokens", step))
        return {"input_ids": ids, "labels": ids}


class Killed(Exception):
    """Stands for a kill at a chosen step."""


def dropout_loss(
    model: Any, batch: dict[str, Tensor], step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss that also draws random numbers, as dropout does."""
    loss, metrics = lm_loss(model, batch, step)
    return loss * (1 + 0.01 * torch.randn(())), metrics


def workspace(path: Path) -> Workspace:
    out = Workspace(path / "out", phase="test", seed=0, config={})
    out.save_every_seconds = 0.0
    return out


def go(model: nn.Module, path: Path, *, steps: int = STEPS, **keys: Any) -> list[StepRecord]:
    settings: dict[str, Any] = {
        "batches": RandomTokens(), "loss_fn": dropout_loss, "stage": "stage", "steps": steps, "optim": OPTIM,
        "seed": 7, "out": workspace(path), "events": EventLog(None, "test"),
    }  # fmt: skip
    return train(model, TrainRequest(**settings | keys))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def fresh(tiny_llama: LlamaForCausalLM) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama.config)
    return model.eval()


@pytest.mark.parametrize("method", ["adamw", "muon"])
@pytest.mark.parametrize("killed_at", [0, 3, 5, 7])
def test_a_killed_and_resumed_run_ends_in_the_same_bits(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, method: str, killed_at: int
) -> None:
    optim = replace(OPTIM, method=method)
    whole, parts = fresh(tiny_llama), fresh(tiny_llama)
    expected = go(whole, tmp_path / "whole", optim=optim)

    def kill(record: StepRecord, model: Any) -> None:
        if record.step == killed_at:
            raise Killed

    with pytest.raises(Killed):
        go(parts, tmp_path / "parts", optim=optim, on_step=kill)
    resumed = fresh(tiny_llama)
    result = go(resumed, tmp_path / "parts", optim=optim)
    assert [record.loss.hex() for record in result] == [record.loss.hex() for record in expected]
    assert [record.grad_norm.hex() for record in result] == [
        record.grad_norm.hex() for record in expected
    ]
    assert_same(weights(resumed), weights(whole))


def test_a_finished_stage_is_restored_and_not_trained_again(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    first, second = fresh(tiny_llama), fresh(tiny_llama)
    expected = go(first, tmp_path)

    def forbidden(
        model: Any, batch: dict[str, Tensor], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        raise AssertionError("trained again")

    assert go(second, tmp_path, loss_fn=forbidden) == expected
    assert_same(weights(first), weights(second))


def test_a_damaged_state_falls_back_to_the_older_one(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    whole = fresh(tiny_llama)
    go(whole, tmp_path / "whole")

    def kill(record: StepRecord, model: Any) -> None:
        if record.step == 5:
            raise Killed

    with pytest.raises(Killed):
        go(fresh(tiny_llama), tmp_path / "parts", on_step=kill)
    directory = workspace(tmp_path / "parts").resume_dir("stage")
    states = sorted(path.name for path in directory.iterdir())
    assert states == ["step-00000004", "step-00000005"]
    file = directory / states[1] / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))
    resumed, log = fresh(tiny_llama), EventLog(tmp_path / "events.jsonl", "test")
    go(resumed, tmp_path / "parts", events=log)
    assert_same(weights(resumed), weights(whole))
    warnings = [
        event.message for event in read_events(tmp_path / "events.jsonl") if event.kind == "warning"
    ]
    assert len(warnings) == 1
    assert "step-00000005" in warnings[0]


def test_a_record_that_was_changed_by_hand_is_not_resumed(tmp_path: Path) -> None:
    """The record has a hash of its own: the step count in it decides what is trained next."""
    events = EventLog(tmp_path / "events.jsonl", "test")
    states.write(tmp_path, "step-00000001", {"w": torch.ones(2)}, {"next_step": 1})
    states.write(tmp_path, "step-00000002", {"w": torch.zeros(2)}, {"next_step": 2})
    assert states.newest(tmp_path, "stage", events)[1]["next_step"] == 2  # type: ignore[index]
    file = tmp_path / "step-00000002" / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "next_step": 20}))
    tensors, record = states.newest(tmp_path, "stage", events)  # type: ignore[misc]
    assert record["next_step"] == 1
    assert torch.equal(tensors["w"], torch.ones(2))
    warnings = [
        event.message for event in read_events(tmp_path / "events.jsonl") if event.kind == "warning"
    ]
    assert ["state.json does not have its recorded hash" in text for text in warnings] == [True]


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_and_heads_are_neither_orthogonalised_nor_decayed(
    tiny_llama: LlamaForCausalLM, tied: bool
) -> None:
    shape = copy.deepcopy(tiny_llama.config)
    shape.tie_word_embeddings = tied
    model = LlamaForCausalLM(shape)
    optimisers = Optimisers(model, replace(OPTIM, method="muon"), None)
    adam, muon = optimisers.all
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    undecayed = {
        names[id(p)]
        for group in adam.param_groups
        if not group["weight_decay"]
        for p in group["params"]
    }
    assert by_muon == {name for name in names.values() if name.endswith("_proj.weight")}
    assert undecayed == set(names.values()) - by_muon
    assert "model.embed_tokens.weight" in undecayed
    assert ("lm_head.weight" in undecayed) is not tied
    plain = Optimisers(model, OPTIM, None).all[0]
    decayed = {
        names[id(p)]
        for group in plain.param_groups
        if group["weight_decay"]
        for p in group["params"]
    }
    assert decayed == by_muon


def test_with_every_state_damaged_the_stage_restarts(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    whole = fresh(tiny_llama)
    go(whole, tmp_path)
    for file in workspace(tmp_path).resume_dir("stage").rglob("state.json"):
        file.write_text(file.read_text()[:-20])
    again = fresh(tiny_llama)
    go(again, tmp_path)
    assert_same(weights(again), weights(whole))


def test_a_stop_signal_saves_the_state_and_raises_interrupted(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    whole = fresh(tiny_llama)
    go(whole, tmp_path / "whole")
    out = workspace(tmp_path / "parts")
    out.save_every_seconds = 1e9

    def stop(record: StepRecord, model: Any) -> None:
        if record.step == 3:
            out.stop_signal = int(signal.SIGTERM)

    with pytest.raises(Interrupted):
        go(fresh(tiny_llama), tmp_path / "parts", out=out, on_step=stop)
    assert [path.name for path in out.resume_dir("stage").iterdir()] == ["step-00000004"]
    resumed = fresh(tiny_llama)
    go(resumed, tmp_path / "parts")
    assert_same(weights(resumed), weights(whole))


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused_with_the_difference(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, finished: bool
) -> None:
    def kill(record: StepRecord, model: Any) -> None:
        if record.step == 3 and not finished:
            raise Killed

    with pytest.raises(Killed) if not finished else _nothing():
        go(fresh(tiny_llama), tmp_path, on_step=kill)
    with pytest.raises(ConfigError, match=r"optim\.lr was 0\.003, is 0\.001"):
        go(fresh(tiny_llama), tmp_path, optim=replace(OPTIM, lr=1e-3))


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_loss_aborts_naming_stage_and_step(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, bad: float
) -> None:
    def loss(model: Any, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = lm_loss(model, batch, step)
        return value * (bad if step == 2 else 1.0), metrics

    with pytest.raises(
        PhaseError, match=r"stage stage, step 2: the loss is (nan|inf).*learning rate"
    ):
        go(fresh(tiny_llama), tmp_path, loss_fn=loss)


def test_a_controller_rolls_back_a_diverged_step_to_what_it_kept(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    def loss(model: Any, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = lm_loss(model, batch, step)
        if step == 4:
            seen["before"] = weights(model)
        if step == 5:
            seen["after"] = weights(model)
        return value * (float("nan") if step == 4 else 1.0), metrics

    def control(record: StepRecord, model: Any) -> dict[str, Any]:
        if record.step == 1:
            seen["kept"] = weights(model)
            return {"keep": True}
        if record.loss != record.loss:
            return {"rollback": True, "lr_scale": 0.5}
        return {}

    records = go(fresh(tiny_llama), tmp_path, loss_fn=loss, on_step=control)
    assert_same(seen["after"], seen["kept"])
    assert not torch.equal(seen["before"]["model.norm.weight"], seen["kept"]["model.norm.weight"])
    assert records[5].lr == pytest.approx(0.5 * OPTIM.lr * wsd(5, STEPS, 2, 0.4))


def test_kept_weights_and_the_controller_survive_a_kill(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    class Control:
        def __init__(self, killed_at: int) -> None:
            self.count, self.killed_at = 0, killed_at

        def __call__(self, record: StepRecord, model: Any) -> dict[str, Any]:
            if record.step == self.killed_at:
                raise Killed
            self.count += 1
            return {
                "keep": self.count == 2,
                "rollback": self.count == 6,
                "lr_scale": 1 / self.count,
                "noise": 0.3,
            }

        def state_dict(self) -> dict[str, int]:
            return {"count": self.count}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.count = state["count"]

    whole, resumed = fresh(tiny_llama), fresh(tiny_llama)
    expected = go(whole, tmp_path / "whole", on_step=Control(-1))
    with pytest.raises(Killed):
        go(fresh(tiny_llama), tmp_path / "parts", on_step=Control(4))
    result = go(resumed, tmp_path / "parts", on_step=Control(-1))
    assert [record.to_json() for record in result] == [record.to_json() for record in expected]
    assert_same(weights(resumed), weights(whole))


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_the_average_at_the_end_equals_its_closed_form(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, decay: float
) -> None:
    visited: list[Tensor] = []
    model = fresh(tiny_llama)
    head = model.model.layers[0].mlp.up_proj.weight

    def remember(record: StepRecord, model: Any) -> None:
        visited.append(head.detach().clone().double())

    go(model, tmp_path, on_step=remember, average_decay=decay)
    tail = torch.stack(visited[-4:])
    shares = torch.tensor(
        [decay**k for k in (3, 2, 1, 0)] if decay else [1.0] * 4, dtype=torch.float64
    )
    expected = (tail * shares[:, None, None]).sum(0) / shares.sum()
    torch.testing.assert_close(head.double(), expected, rtol=1e-5, atol=1e-7)


def test_plain_adamw_written_by_hand_gives_the_same_bits(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    optim = replace(OPTIM, average_share=0.0, weight_decay=0.0)
    ours, hand = fresh(tiny_llama), fresh(tiny_llama)
    go(ours, tmp_path, optim=optim, loss_fn=lm_loss)
    adam = torch.optim.AdamW(
        hand.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    hand.train()
    for step in range(STEPS):
        torch.manual_seed(seed_for(7, "stage", step))
        adam.param_groups[0]["lr"] = OPTIM.lr * wsd(step, STEPS, 2, 0.4)
        batch = RandomTokens().batch(step)
        loss, _ = lm_loss(hand, batch, step)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(hand.parameters(), 1.0)
        adam.step()
    for name, value in weights(ours).items():
        assert torch.equal(value, weights(hand)[name]), name


def test_the_schedule_rises_stays_and_falls_to_zero() -> None:
    assert [wsd(step, 10, 2, 0.4) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert wsd(0, 10, 0, 0.0) == 1.0
    assert wsd(9, 10, 0, 0.0) == 1.0


def test_training_learns_a_repeated_sentence(tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    class Same:
        def batch(self, step: int) -> dict[str, Tensor]:
            ids = torch.arange(3, 23)[None]
            return {"input_ids": ids, "labels": ids}

    for method in ("adamw", "muon"):
        optim = replace(OPTIM, method=method, lr=1e-2, average_share=0.0)
        records = go(
            fresh(tiny_llama),
            tmp_path / method,
            optim=optim,
            batches=Same(),
            loss_fn=lm_loss,
            steps=40,
        )
        assert records[-1].loss < 0.2 * records[0].loss, method


def test_only_the_given_parameters_change_and_groups_scale_their_rate(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    model = fresh(tiny_llama)
    before = weights(model)
    norm, up = model.model.norm.weight, model.model.layers[0].mlp.up_proj.weight
    groups = [{"params": [norm]}, {"params": [up], "lr_scale": 0.0}]
    optim = replace(OPTIM, average_share=0.0, weight_decay=0.0)
    go(model, tmp_path, parameters=groups, optim=optim)
    changed = {
        name for name, value in weights(model).items() if not torch.equal(value, before[name])
    }
    assert changed == {"model.norm.weight"}


def test_parameters_outside_the_model_are_trained_and_restored(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    def run() -> nn.Linear:
        torch.manual_seed(1)
        extra = nn.Linear(4, 4)

        def loss(
            model: Any, batch: dict[str, Tensor], step: int
        ) -> tuple[Tensor, dict[str, Tensor]]:
            value, metrics = lm_loss(model, batch, step)
            return value + extra(torch.ones(4)).square().sum(), metrics

        model = fresh(tiny_llama)
        go(model, tmp_path, loss_fn=loss, parameters=[*model.parameters(), *extra.parameters()])
        return extra

    first, second = run(), run()
    assert torch.equal(first.weight, second.weight)
    torch.manual_seed(1)
    assert not torch.equal(first.weight, nn.Linear(4, 4).weight)


def test_noise_zero_and_no_controller_are_the_same_bits(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    plain, controlled, noisy = fresh(tiny_llama), fresh(tiny_llama), fresh(tiny_llama)
    go(plain, tmp_path / "plain")
    go(controlled, tmp_path / "zero", on_step=lambda record, model: {"noise": 0.0, "lr_scale": 1.0})
    go(noisy, tmp_path / "noisy", on_step=lambda record, model: {"noise": 0.1})
    assert_same(weights(plain), weights(controlled))
    assert not torch.equal(weights(plain)["model.norm.weight"], weights(noisy)["model.norm.weight"])


def test_zero_steps_change_nothing(tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    model = fresh(tiny_llama)
    before = weights(model)
    assert go(model, tmp_path, steps=0) == []
    assert_same(weights(model), before)


def test_bfloat16_autocast_trains_float32_weights(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    model = fresh(tiny_llama)
    records = go(model, tmp_path / "bf16", dtype=torch.bfloat16)
    exact = go(fresh(tiny_llama), tmp_path / "f32")
    assert model.model.norm.weight.dtype == torch.float32
    assert records[0].loss != exact[0].loss
    assert records[0].loss == pytest.approx(exact[0].loss, rel=2e-2)
    with pytest.raises(ConfigError, match="float16"):
        go(model, tmp_path / "f16", dtype=torch.float16)


def test_progress_events_carry_loss_and_speed(tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", "test", interval_seconds=0.0)
    records = go(fresh(tiny_llama), tmp_path, events=log)
    result = [event for event in read_events(tmp_path / "events.jsonl") if event.kind == "progress"]
    assert [event.step for event in result] == list(range(1, STEPS + 1))
    assert [event.metrics["loss"] for event in result] == [record.loss for record in records]
    assert all(event.metrics["tokens_per_second"] > 0 for event in result)
    # A process with torch has more than 50 MB.
    assert all(event.metrics["memory_bytes"] > 50e6 for event in result)


def test_nothing_to_train_is_a_config_error(tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    model = fresh(tiny_llama).requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        go(model, tmp_path)


def test_records_survive_json_bit_by_bit() -> None:
    record = StepRecord(
        step=1, loss=0.1 + 0.2, lr=1e-3, grad_norm=1 / 3, tokens=5, metrics={"a": 0.7}
    )
    assert StepRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_a_stage_that_goes_on_from_another_is_the_same_as_one_long_stage(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, method: str
) -> None:
    optim = replace(OPTIM, method=method, warmup_steps=0, cooldown_share=0.0, average_share=0.0)

    class Later(RandomTokens):
        def batch(self, step: int) -> dict[str, Tensor]:
            return super().batch(step + 4)

    whole, parts = fresh(tiny_llama), fresh(tiny_llama)
    expected = go(whole, tmp_path / "whole", optim=optim, loss_fn=lm_loss)
    first = go(
        parts,
        tmp_path / "parts",
        optim=optim,
        loss_fn=lm_loss,
        steps=4,
        stage="first",
        keep_optimiser=True,
    )
    second = go(
        parts,
        tmp_path / "parts",
        optim=optim,
        loss_fn=lm_loss,
        steps=4,
        stage="second",
        optimiser_from="first",
        batches=Later(),
    )
    assert [record.loss.hex() for record in first + second] == [
        record.loss.hex() for record in expected
    ]
    assert_same(weights(parts), weights(whole))
    with pytest.raises(PhaseError, match="no optimiser state of second"):
        go(parts, tmp_path / "parts", optim=optim, steps=1, stage="third", optimiser_from="second")


def test_an_averaged_stage_can_leave_the_weights_of_its_last_step(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    """Bit for bit those of the same stage without an average, also after a restart."""

    def trained(place: str, average: float, keep: bool) -> tuple[Any, Workspace]:
        model, out = copy.deepcopy(tiny_llama), workspace(tmp_path / place)
        request = TrainRequest(
            batches=RandomTokens(), loss_fn=lm_loss, stage="s", steps=STEPS,
            optim=replace(OPTIM, average_share=average), out=out, events=EventLog(None, "test"),
            seed=0, keep_last=keep,
        )  # fmt: skip
        train(model, request)
        train(model, request)  # The finished stage is restored.
        return dict(model.named_parameters()), out

    plain, _ = trained("plain", 0.0, True)
    averaged, out = trained("averaged", 0.5, True)
    last = last_weights(out, "s", EventLog(None, "test"))
    assert set(last) == set(plain)
    assert all(torch.equal(last[name], value) for name, value in plain.items())
    assert not all(torch.equal(averaged[name], value) for name, value in plain.items())
    for average, keep in ((0.0, True), (0.5, False)):
        _, other = trained(f"none-{average}", average, keep)
        assert last_weights(other, "s", EventLog(None, "test")) == {}


@pytest.mark.parametrize(("pure", "workers", "used"), [(True, 3, 3), (False, 3, 0), (False, 0, 0)])
def test_workers_make_only_batches_that_depend_on_nothing_but_their_step(
    pure: bool, workers: int, used: int
) -> None:
    said: list[str] = []
    events: Any = SimpleNamespace(warning=said.append)
    batches: Any = SimpleNamespace(pure=pure)
    assert feed.usable_workers(batches, workers, "stage", events) == used
    assert [f"runtime.workers={workers} is not used" in line for line in said] == (
        [True] if workers and not used else []
    )
