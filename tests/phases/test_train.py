# ruff: noqa: ARG002, ARG005 - callbacks and doubles have the signature of the contract
"""The train phase: exponents against closed forms, controllers, and ten stages that end in the same
bytes.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge import checkpoint, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import DataConfig, OptimConfig, Report
from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.core.events import EventLog, read_events
from agent_forge.core.seeds import torch_generator
from agent_forge.data import Mixture, RowSource, TextSource
from agent_forge.data.synthetic import reasoning
from agent_forge.learn import StepRecord, TrainRequest, lm_loss, train
from agent_forge.models.ternary import TernarySettings, ternarise
from agent_forge.phases import PhaseRun
from agent_forge.phases.train import Config, StageSteps, choice, exponents, plain
from agent_forge.phases.train import run as run_module
from agent_forge.phases.train import stages as stages_module
from agent_forge.phases.train.control import CombinedController, ExponentControl, Rollback
from agent_forge.phases.train.curriculum import Curriculum, LevelSource, hardest_level
from agent_forge.phases.train.dreams import (
    DreamSource,
    ReplayGuard,
    distinct_bigrams,
    dream,
    text_loss,
)
from agent_forge.phases.train.exponents import depth_exponent, logit_sensitivity, twin_exponent
from agent_forge.phases.train.measure import TrainBench
from agent_forge.phases.train.replay import PREFIX, beside, replayed
from agent_forge.phases.train.run import run
from agent_forge.phases.train.self_model import SelfModel, rms_normalised
from agent_forge.phases.train.stages import STAGES, Planner, mixture, plain_sources, stage_optim

SMALL = [
    "out=unused", "batch_rows=2", "length_tokens=48", "mix_rows=60", "dream.prompt_tokens=8", "dream.windows=4",
    "measure.text_items=2", "measure.tasks=[reasoning]", "measure.task_items=2", "measure.probe_rows=2",
    "measure.probe_tokens=16", "measure.twin_steps=1", "runtime.device=cpu", "optim.warmup_steps=1",
]  # fmt: skip
ALL_ON = [
    "curriculum.enabled=true", "curriculum.every_steps=1", "curriculum.items=2", "chaos.enabled=true",
    "chaos.every_steps=1", "dream.enabled=true", "dream.distinct_share=0", "dream.every_steps=1",
    "self_model.weight=0.1", "average=exponential", "average_decay=0.5", "optim.average_share=1.0",
]  # fmt: skip


def small_config(data_config: DataConfig, *overrides: str, steps: int = 1) -> Config:
    step_settings = [f"steps.{stage}={steps}" for stage in STAGES]
    return replace(compose("train", Config, [*SMALL, *step_settings, *overrides]), data=data_config)


def go(config: Config, source: Checkpoint, path: Path, events: EventLog | None = None) -> Report:
    out = Workspace(path / "out", phase="train", seed=config.seed, config=config, parents=[source])
    out.save_every_seconds = 0.0
    return run(PhaseRun(config, [source], out, events or EventLog(None, "train")))


# Exponents


class Stack(nn.Module):
    """Blocks on a stream (B, T, d) that starts as a table lookup; its loss is not of interest."""

    def __init__(self, blocks: list[nn.Module], start: Tensor) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.start = start

    def training_loss(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Any]]:
        x = self.start[input_ids]
        for block in self.blocks:
            x = block(x)
        return x.square().mean(), {}


class Orthogonal(nn.Module):
    def __init__(self, width: int, scale: float, seed: int) -> None:
        super().__init__()
        q, _ = torch.linalg.qr(
            torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
        )
        self.weight = nn.Parameter(scale * q)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Logistic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return 4 * x * (1 - x)


def ids(rows: int, tokens: int, vocabulary: int = 16) -> dict[str, Tensor]:
    result = torch.randint(vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(3))
    return {"input_ids": result, "labels": result}


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_depth_exponent_of_scaled_orthogonal_blocks_is_ln_of_the_scale(scale: float) -> None:
    model = Stack(
        [Orthogonal(8, scale, i) for i in range(5)], torch.randn(16, 8, dtype=torch.float32)
    )
    result = depth_exponent(model, ids(3, 4), relative_step=1e-2, seed=0)
    assert result == pytest.approx(math.log(scale), abs=1e-5)


def test_the_depth_exponent_of_the_logistic_map_at_four_is_ln_two() -> None:
    start = (
        torch.rand(16, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.8
        + 0.1
    )
    model = Stack([Logistic() for _ in range(400)], start)
    result = depth_exponent(model, ids(60, 2), relative_step=1e-7, seed=0)
    # Two tokens make one vector of two maps, whose exponent is again one map's.
    assert result == pytest.approx(math.log(2), abs=0.01)


def test_the_depth_exponent_equals_the_exact_jvp_of_the_blocks(
    tiny_llama: LlamaForCausalLM,
) -> None:
    batch = ids(2, 6)
    model = tiny_llama.double()
    result = depth_exponent(model, batch, relative_step=1e-3, seed=5)
    captured: list[Any] = []
    hooks = [
        block.register_forward_pre_hook(
            lambda m, args, kwargs: captured.append((m, args, kwargs)), with_kwargs=True
        )
        for block in model.model.layers
    ]
    with torch.no_grad():
        model(input_ids=batch["input_ids"], use_cache=False)
    for hook in hooks:
        hook.remove()
    tangent = torch.randn(
        captured[0][1][0].shape, generator=torch_generator(5, "depth exponent")
    ).double()
    logs = []
    for block, args, kwargs in captured:
        tangent = tangent / tangent.flatten(1).norm(dim=1)[:, None, None]
        function = lambda x, block=block, args=args, kwargs=kwargs: block(x, *args[1:], **kwargs)  # noqa: E731
        with sdpa_kernel(SDPBackend.MATH):  # the only attention with a second derivative
            _, tangent = torch.autograd.functional.jvp(function, args[0], tangent)
        logs.append(tangent.flatten(1).norm(dim=1).log())
    # transformers norms in float32 even here, so a smaller step would drown in rounding.
    assert result == pytest.approx(float(torch.stack(logs).mean()), abs=2e-4)


def test_probes_change_neither_weights_nor_mode_nor_rounding(tiny_llama: LlamaForCausalLM) -> None:
    ternarise(
        tiny_llama,
        TernarySettings(group_size=16, activation_bits=8, packing="five_trits", skip=["lm_head"]),
    )
    before = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    tiny_llama.train()
    plain = tiny_llama(**ids(1, 5)).loss
    depth_exponent(tiny_llama, ids(2, 6), relative_step=1e-3, seed=0)
    logit_sensitivity(tiny_llama, ids(2, 6)["input_ids"], relative_step=1e-3, seed=0)
    assert tiny_llama.training
    assert torch.equal(plain, tiny_llama(**ids(1, 5)).loss)
    assert all(torch.equal(value, before[name]) for name, value in tiny_llama.state_dict().items())
    assert not any(
        block._forward_hooks or block._forward_pre_hooks for block in tiny_llama.model.layers
    )


def test_the_logit_sensitivity_is_the_fisher_quadratic_form_of_a_linear_model() -> None:
    """p = softmax(W h): KL(h || h + d) -> d' W' (diag p - p p') W d / 2 for small d."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Identity()])
            self.blocks[0].register_parameter("unused", nn.Parameter(torch.zeros(1)))
            self.table = torch.randn(16, 4, dtype=torch.float64)
            self.head = torch.randn(6, 4, dtype=torch.float64)

        def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
            from types import SimpleNamespace

            return SimpleNamespace(logits=self.blocks[0](self.table[input_ids]) @ self.head.T)

    torch.manual_seed(0)
    model, tokens = Linear(), ids(3, 3)["input_ids"]
    result = logit_sensitivity(model, tokens, relative_step=1e-4, seed=9)
    h = model.table[tokens]
    d = torch.randn(h.shape, generator=torch_generator(9, "logit sensitivity")).double()
    d = d * 1e-4 * h.square().mean(-1, keepdim=True).sqrt()
    p = (h @ model.head.T).softmax(-1)
    moved = d @ model.head.T
    fisher = ((p * moved**2).sum(-1) - (p * moved).sum(-1) ** 2) / 2
    assert result == pytest.approx(float((fisher / d.square().sum(-1)).mean()), rel=1e-3)
    # A disturbance of half the stream's own size is beyond the quadratic: the divergence itself.
    d = d * 0.5e4
    p, q = (((h + step) @ model.head.T).log_softmax(-1) for step in (0 * d, d))
    divergence = (p.exp() * (p - q)).sum(-1)
    result = logit_sensitivity(model, tokens, relative_step=0.5, seed=9)
    assert result == pytest.approx(float((divergence / d.square().sum(-1)).mean()), rel=1e-6)


def test_twins_on_a_quadratic_bowl_move_apart_or_together_as_the_optimiser_says() -> None:
    """With lr 0 the distance stays, so the exponent is 0; deterministic and without touching the
    model.
    """

    class Bowl(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(1, 2, 12).reshape(3, 4))

        def training_loss(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Any]]:
            return self.weight.square().sum(), {}

    class Batches:
        def batch(self, step: int) -> dict[str, Tensor]:
            return ids(1, 3)

    model = Bowl()
    optim = OptimConfig(
        method="adamw", lr=0.0, muon_lr=0.0, warmup_steps=0, cooldown_share=0.0, weight_decay=0.0, beta1=0.9,
        beta2=0.95, clip_norm=0.0, average_share=0.0,
    )  # fmt: skip
    still = twin_exponent(model, Batches(), optim, steps=3, relative_step=1e-3, seed=0)
    assert still == pytest.approx(0.0, abs=1e-6)
    decayed = twin_exponent(
        model,
        Batches(),
        replace(optim, lr=1e-2, weight_decay=50.0),
        steps=3,
        relative_step=1e-3,
        seed=0,
    )
    # Decoupled decay shrinks every difference by 1 - lr * decay = 1/2 a step; Adam's own part adds
    # little.
    assert decayed == pytest.approx(math.log(0.5), abs=0.05)
    assert torch.equal(model.weight, torch.linspace(1, 2, 12).reshape(3, 4))
    # A disturbance is a share of the weights' own size, so weights of zero cannot be disturbed.
    with torch.no_grad():
        model.weight.zero_()
    with pytest.raises(PhaseError, match="all weights are zero"):
        twin_exponent(model, Batches(), optim, steps=3, relative_step=1e-3, seed=0)


@pytest.mark.parametrize(("limit", "share"), [(0.0, 1.0), (0.5, 0.5)])
def test_twins_are_clipped_to_the_norm_of_the_settings_and_0_clips_nothing(
    limit: float, share: float
) -> None:
    """The gradient has norm 1; the optimiser of the test takes it as it is."""

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4))

        def training_loss(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Any]]:
            return self.weight.sum() / 2, {}

    class Batches:
        def batch(self, step: int) -> dict[str, Tensor]:
            return ids(1, 3)

    line = Line()
    plain = SimpleNamespace(
        config=SimpleNamespace(clip_norm=limit),
        parameters=[line.weight],
        zero_grad=lambda: None,
        step=lambda: None,
    )
    exponents._train_step(line, plain, Batches(), 0, 0)
    assert line.weight.grad is not None
    assert float(line.weight.grad.norm()) == pytest.approx(share, abs=1e-5)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(PhaseError, match="no list of blocks"):
        depth_exponent(nn.Linear(2, 2), {}, relative_step=1e-3, seed=0)


# Controllers


def record(step: int, loss: float = 1.0) -> StepRecord:
    return StepRecord(step=step, loss=loss, lr=1e-3, grad_norm=1.0, tokens=4)


def chaos_settings(data_config: DataConfig) -> Any:
    return small_config(
        data_config, "chaos.every_steps=1", "chaos.proportional=0.5", "chaos.integral=0.5"
    ).chaos


def test_the_controller_recovers_from_a_step_disturbance(data_config: DataConfig) -> None:
    """Plant: exponent = base + 0.4 u. A disturbance of +0.2 comes at step 30 and is worked off into
    the deadband.
    """
    control = ExponentControl(chaos_settings(data_config), lambda model: 0.0)
    exponent, seen = 0.1, []
    for step in range(80):
        u = control.control(exponent)
        exponent = 0.1 + (0.2 if step >= 30 else 0.0) + 0.4 * u
        seen.append(exponent)
    assert abs(seen[29]) <= 0.02
    assert max(seen[30:33]) > 0.1
    assert all(abs(value) <= 0.02 for value in seen[-20:])


def test_rate_and_noise_follow_the_control_within_its_limits(data_config: DataConfig) -> None:
    """Without an integral the control is proportional to the error."""
    settings = replace(
        chaos_settings(data_config), target_exponent=0.1, deadband=0.0, proportional=2.0,
        integral=0.0, lr_range=0.4, max_noise=0.03,
    )  # fmt: skip
    for exponent, u in ((0.1, 0.0), (-0.15, 0.5), (0.35, -0.5), (-9.0, 1.0), (9.0, -1.0)):
        answer = ExponentControl(settings, lambda _, e=exponent: e)(record(0), None)
        assert answer["lr_scale"] == pytest.approx(1 + 0.4 * u)
        assert answer["noise"] == pytest.approx(0.03 * max(u, 0.0))


def test_an_unreachable_target_keeps_the_rate_in_its_range_and_does_not_wind_up(
    data_config: DataConfig,
) -> None:
    control = ExponentControl(chaos_settings(data_config), lambda model: 5.0)
    answers = [control(record(step), None) for step in range(50)]
    assert all(0.5 <= answer["lr_scale"] <= 1.5 and answer["noise"] == 0.0 for answer in answers)
    assert answers[-1]["lr_scale"] == 0.5
    control.measure = lambda model: -5.0
    assert control(record(50), None)["lr_scale"] == 1.5
    again = ExponentControl(chaos_settings(data_config), lambda model: 0.3)
    again.load_state_dict(json.loads(json.dumps(control.state_dict())))
    assert again.control(0.3) == control.control(0.3)


def test_rollback_keeps_on_time_goes_back_on_a_leap_and_gives_up_at_last(
    data_config: DataConfig,
) -> None:
    settings = replace(
        small_config(data_config).rollback, every_steps=4, limit_nats=1.0, lr_factor=0.5, most=2
    )
    guard = Rollback(settings, "chaos_1", EventLog(None, "train"))
    assert [guard(record(step), None).get("keep", False) for step in range(8)] == [
        1,
        0,
        0,
        1,
        0,
        0,
        0,
        1,
    ]
    assert guard(record(8, 1.9), None) == {}
    assert guard(record(9, 5.0), None) == {"rollback": True, "lr_scale": 0.5}
    assert guard(record(10, math.nan), None) == {"rollback": True, "lr_scale": 0.25}
    with pytest.raises(PhaseError, match="chaos_1, step 11: diverged again after 2 rollbacks"):
        guard(record(11, math.inf), None)


def test_rollback_keeps_no_weights_of_a_loss_that_has_begun_to_leap(
    data_config: DataConfig,
) -> None:
    """At a kept step the loss lies within half the limit of the mean.

    A loss beyond that does not make the run go back yet.
    """
    settings = replace(
        small_config(data_config).rollback, every_steps=2, limit_nats=1.0, lr_factor=0.5, most=2
    )
    guard = Rollback(settings, "chaos_1", EventLog(None, "train"))
    assert guard(record(0, 2.0), None) == {"keep": True}
    assert guard(record(1, 2.9), None) == {}
    assert guard(record(2, 2.0), None) == {}
    assert guard(record(3, 2.1), None) == {"keep": True}


@pytest.mark.parametrize("average", ["none", "exponential"])
def test_warm_up_belongs_to_the_first_stage_and_cooling_and_averaging_to_the_last(
    data_config: DataConfig, average: str
) -> None:
    config = small_config(
        data_config,
        f"average={average}",
        "optim.warmup_steps=7",
        "optim.cooldown_share=0.3",
        "optim.average_share=0.4",
    )
    stages = list(STAGES)
    schedules = [stage_optim(config, stage, stages) for stage in stages]
    assert [one.warmup_steps for one in schedules] == [7, *[0] * 9]
    assert [one.cooldown_share for one in schedules] == [*[0.0] * 9, 0.3]
    assert [one.average_share for one in schedules] == [
        *[0.0] * 9,
        0.0 if average == "none" else 0.4,
    ]
    assert {one.lr for one in schedules} == {config.optim.lr}
    alone = stage_optim(config, "dream_1", ["dream_1"])
    assert (alone.warmup_steps, alone.cooldown_share) == (7, 0.3)


@pytest.mark.parametrize("average", ["none", "uniform", "exponential"])
def test_weights_decay_in_the_average_only_where_it_is_exponential(
    data_config: DataConfig, monkeypatch: pytest.MonkeyPatch, average: str
) -> None:
    config = small_config(data_config, f"average={average}", "average_decay=0.75")
    requests: list[Any] = []
    monkeypatch.setattr(run_module, "train", lambda _, request: requests.append(request))
    plan = SimpleNamespace(batches=None, loss=None, parameters=None, controller=None)
    phase = SimpleNamespace(
        config=config, out=None, events=None, device=torch.device("cpu"), dtype=torch.float32
    )
    stages = config.taken_stages()
    for stage in stages:
        run_module._train_stage(phase, plan, stage, None)
    assert {one.average_decay for one in requests} == {0.75 if average == "exponential" else 0.0}
    assert [one.keep_optimiser for one in requests] == [True] * (len(stages) - 1) + [False]
    assert [one.optimiser_from for one in requests] == ["", *stages[:-1]]


def test_together_multiplies_rates_and_hides_a_broken_loss_from_those_who_cannot_mend_it() -> None:
    class Fixed:
        def __init__(self, answer: dict[str, Any]) -> None:
            self.answer, self.heard = answer, 0

        def __call__(self, record: StepRecord, model: Any) -> dict[str, Any]:
            self.heard += 1
            return self.answer

        def state_dict(self) -> dict[str, Any]:
            return {"heard": self.heard}

        def load_state_dict(self, state: Any) -> None:
            self.heard = state["heard"]

    one, two = (
        Fixed({"lr_scale": 0.5, "noise": 0.1}),
        Fixed({"lr_scale": 0.5, "noise": 0.3, "keep": True}),
    )
    both = CombinedController({"one": one, "two": two})
    assert both(record(0), None) == {"lr_scale": 0.25, "noise": 0.3, "keep": True}
    both(record(1, math.nan), None)
    assert (one.heard, two.heard) == (1, 1)
    quiet = CombinedController({"one": Fixed({}), "two": Fixed({"lr_scale": 0.5})})
    assert quiet(record(0), None) == {"lr_scale": 0.5, "noise": 0.0}  # silence changes nothing
    assert CombinedController({})(record(0), None) == {"lr_scale": 1.0, "noise": 0.0}
    again = CombinedController({"one": Fixed({}), "two": Fixed({})})
    again.load_state_dict(json.loads(json.dumps(both.state_dict())))
    assert again(record(2), None) == {"lr_scale": 0.25, "noise": 0.3}


def test_the_curriculum_finds_the_level_of_the_target_success(
    data_config: DataConfig, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A pupil who gets 1, .8, .5, .1, 0 of levels 1..5 right is led to level 3, from either end."""
    skill = {1: 1.0, 2: 0.8, 3: 0.5, 4: 0.1, 5: 0.0}
    for start in (0.0, 1.0):
        settings = replace(
            small_config(data_config).curriculum, every_steps=1, start=start, rate=0.1
        )
        source = LevelSource("reasoning", tiny_tokenizer, 50, 0, 0.0, start)
        curriculum = Curriculum(
            settings,
            {"reasoning": source},
            lambda model, kind, level: skill[level],
            EventLog(None, "train"),
        )
        for step in range(60):
            assert curriculum(record(step), None) == {}
        assert 1 + round(source.difficulty * 4) == 3
        again = LevelSource("reasoning", tiny_tokenizer, 50, 0, 0.0, start)
        Curriculum(
            settings, {"reasoning": again}, curriculum.success, EventLog(None, "train")
        ).load_state_dict(json.loads(json.dumps(curriculum.state_dict())))
        assert again.difficulty == source.difficulty


def test_windows_come_from_the_level_that_is_asked_for(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert hardest_level("reasoning", 0) == 5
    assert hardest_level("tools", 0) == 3
    source = LevelSource("reasoning", tiny_tokenizer, 50, 0, 0.0, 0.0)
    drawn = [source.level_at(draw) for draw in np.linspace(0, 0.999, 1000)]
    assert set(drawn) == {0}
    source.difficulty = 1.0
    assert {source.level_at(draw) for draw in (0.0, 0.5, 0.999)} == {4}
    source.difficulty = 0.5625  # 2.25 levels up: a quarter of the windows from the harder neighbour
    drawn = [source.level_at(draw) for draw in np.linspace(0, 0.9999, 1000)]
    assert set(drawn) == {2, 3}
    assert np.mean(drawn) == pytest.approx(2.25, abs=0.01)
    easiest = RowSource(reasoning.rows(10, "train", 0, difficulty=1), tiny_tokenizer)
    source.difficulty = 0.0
    result, target = (s.take(np.random.default_rng(4), 48) for s in (source, easiest))
    assert (result[1] != -100).any()
    assert result[0].shape == target[0].shape
    assert len(source.levels) == 5
    even = LevelSource(
        "reasoning", tiny_tokenizer, 50, 0, 1.0, 0.0
    )  # all levels alike, whatever the difficulty
    taken: list[int] = []
    even.levels = [
        SimpleNamespace(take=lambda *_, level=level: taken.append(level)) for level in range(5)
    ]
    generator = np.random.default_rng(0)
    for _ in range(500):
        even.take(generator, 48)
    assert [taken.count(level) / 500 for level in range(5)] == pytest.approx([0.2] * 5, abs=0.05)


# Dreams


def test_dreams_begin_with_real_text_are_reproducible_and_fill_their_window(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, data_config: DataConfig
) -> None:
    settings = small_config(data_config).dream
    text = TextSource(data_config, tiny_tokenizer, "train")
    first, again = (
        dream(tiny_llama, text, settings, length_tokens=24, seed=1, stage="dream_1")
        for _ in range(2)
    )
    assert first["dreams"].shape == first["real"].shape == (4, 24)
    assert torch.equal(first["dreams"], again["dreams"])
    assert torch.equal(first["dreams"][:, :8], first["real"][:, :8])
    assert not torch.equal(first["dreams"], first["real"])
    ids_T, labels_T = DreamSource(first["dreams"], 8).take(np.random.default_rng(0), 24)
    assert (labels_T[:8] == -100).all()
    assert (labels_T[8:] == ids_T[8:]).all()


def test_distinct_bigrams_is_one_without_and_small_with_repetition() -> None:
    assert distinct_bigrams(torch.arange(20).reshape(2, 10)) == 1.0
    assert distinct_bigrams(torch.zeros(2, 11, dtype=torch.long)) == 1 / 20


@pytest.mark.parametrize("collapsed", [False, True])
def test_dreams_that_repeat_themselves_are_not_replayed(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    data_config: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    collapsed: bool,
) -> None:
    config = small_config(
        data_config, "dream.enabled=true", "dream.distinct_share=1.0", "mix={text: 1.0}"
    )
    real = torch.arange(4 * 48).reshape(4, 48)
    dreamt = {"dreams": torch.zeros_like(real) if collapsed else real + 1, "real": real}
    monkeypatch.setattr(stages_module, "dream", lambda *_, **__: dreamt)
    events = EventLog(tmp_path / "events.jsonl", "train")
    sources = plain_sources(config, tiny_tokenizer)
    bench = TrainBench(config, tiny_tokenizer, mixture(config, sources, config.mix, "bench"))
    out = Workspace(tmp_path / "out", phase="train", seed=0, config=config)
    phase = PhaseRun(config, [], out, events)
    phase.tokenizer = tiny_tokenizer
    plan = Planner(phase, bench, sources).plan("dream_1", tiny_llama)
    assert plan.active is not collapsed
    assert ("dream" in plan.controllers) is not collapsed
    warnings = [
        event.message for event in read_events(tmp_path / "events.jsonl") if event.kind == "warning"
    ]
    assert [("dreams are not replayed" in warning) for warning in warnings] == [True] * collapsed


def test_replay_ends_for_good_when_real_text_gets_worse(data_config: DataConfig) -> None:
    class Constant:
        def __init__(self, value: int) -> None:
            self.value = value

        def batch(self, step: int) -> dict[str, Tensor]:
            return {"input_ids": torch.full((1, 1), self.value)}

    settings = replace(small_config(data_config).dream, every_steps=2, limit_nats=0.1)
    guard = ReplayGuard(
        settings,
        Constant(1),
        Constant(0),
        torch.zeros(1, 4),
        2.0,
        "dream_1",
        EventLog(None, "train"),
    )
    losses = iter([2.05, 2.2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "agent_forge.phases.train.dreams.text_loss", lambda model, windows: next(losses)
        )
        seen = []
        for step in range(6):
            seen.append(int(guard.batch(step)["input_ids"]))
            guard(record(step), None)
    assert seen == [1, 1, 1, 1, 0, 0]
    assert guard.state_dict() == {"ended_at": 3}


def test_the_loss_on_real_text_is_the_models_mean_loss(tiny_llama: LlamaForCausalLM) -> None:
    windows = ids(3, 10)["input_ids"]
    expected = tiny_llama(input_ids=windows, labels=windows).loss.item()
    assert text_loss(tiny_llama, windows) == pytest.approx(expected, rel=1e-5)


# Replay and the average


def planner_for(config: Config, tokenizer: PreTrainedTokenizerFast, path: Path) -> Planner:
    """Return the planner of a phase that has no checkpoint to start from."""
    sources = plain_sources(config, tokenizer)
    bench = TrainBench(config, tokenizer, mixture(config, sources, config.mix, "bench"))
    out = Workspace(path / "out", phase="train", seed=0, config=config)
    phase = PhaseRun(config, [], out, EventLog(None, "train"))
    phase.tokenizer = tokenizer
    return Planner(phase, bench, sources)


def test_replay_has_exactly_its_share_and_both_sides_keep_their_proportions() -> None:
    weights = beside({"text": 3.0, "tools": 1.0}, {"old": 1.0, "older": 4.0}, 0.4)
    assert weights == pytest.approx({"text": 0.45, "tools": 0.15, "old": 0.08, "older": 0.32})
    assert beside({"text": 2.0}, {"old": 1.0}, 0.0) == {"text": 2.0}


def test_every_stage_replays_real_rows_and_the_plain_run_none(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, data_config: DataConfig,
    tmp_path: Path,
) -> None:  # fmt: skip
    config = small_config(
        data_config, "mix={text: 0, tools: 1, reasoning: 0, memory: 0}", "replay.share=0.5",
        "replay.mix={text: 1.0}", "batch_rows=400",
    )  # fmt: skip
    planner = planner_for(config, tiny_tokenizer, tmp_path)
    for stage in ("adapt_1", "chaos_1", "settle"):
        batches: Any = planner.plan(stage, tiny_llama).batches
        assert batches.names == ["tools", PREFIX + "text"]
        # Running text is learned at every place, and a row of tools only in its answers.
        whole = float((batches.batch(0)["labels"] != -100).all(1).float().mean())
        assert abs(whole - 0.5) < 4 * (0.25 / 400) ** 0.5
    assert config.steered_stages() == config.taken_stages()
    assert replayed(small_config(data_config), tiny_tokenizer) == ({}, {})


def test_dreams_take_the_place_that_replay_has(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, data_config: DataConfig,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The same share of the same windows, also where the mix holds no text."""
    config = small_config(
        data_config, "mix={text: 0, tools: 1, reasoning: 0, memory: 0}", "dream.enabled=true",
        "dream.share=0.4", "dream.distinct_share=0",
    )  # fmt: skip
    planner = planner_for(config, tiny_tokenizer, tmp_path)
    guard: Any = planner.plan("dream_1", tiny_llama).batches
    assert guard.with_dreams.names == ["tools", "dream"]
    assert guard.with_dreams._weights == pytest.approx([0.6, 0.4])


@pytest.mark.parametrize("better", [True, False])
def test_the_average_stays_only_where_held_out_text_is_better(
    better: bool, tiny_checkpoint: Checkpoint, data_config: DataConfig, tmp_path: Path
) -> None:
    """A model against a copy with noise in its weights, which is worse on every piece."""
    config = small_config(data_config, "measure.text_items=12")
    good = models.load(tiny_checkpoint)
    tokenizer = models.load_tokenizer(tiny_checkpoint.path)
    worse = {
        name: value + 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(4))
        for name, value in good.named_parameters()
    }
    clean = {name: value.detach().clone() for name, value in good.named_parameters()}
    last = worse if better else clean
    if not better:
        choice.put(good, worse)
    sources = plain_sources(config, tokenizer)
    bench = TrainBench(config, tokenizer, mixture(config, sources, config.mix, "bench"))
    out = Workspace(tmp_path / "out", phase="train", seed=0, config=config)
    phase = PhaseRun(config, [], out, EventLog(None, "train"))
    row = choice.better_of(phase, bench, good, last)
    assert row["kept"] == (choice.AVERAGE if better else choice.LAST_STEP)
    assert (row["gain"] > 0) is better
    assert all(torch.equal(value, clean[name]) for name, value in good.named_parameters())


def test_half_of_every_shipped_run_cools_down() -> None:
    import yaml

    from agent_forge.config.compose import CONF

    shipped = [compose("train", Config, ["out=o", "sources=[s]"]).steps]
    for name in ("smollm2", "smollm2_gpu"):
        content = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
        shipped.append(StageSteps(**content["train"]["steps"]))
    for steps in shipped:
        total = sum(getattr(steps, stage) for stage in STAGES)
        assert steps.settle == total / 2


# Self-model


def test_the_self_model_reaches_the_backbone_and_its_error_is_the_formula(
    tiny_llama: LlamaForCausalLM,
) -> None:
    batch = ids(2, 6)
    own = SelfModel(tiny_llama, weight=0.5, targets=1, seed=0)
    loss, metrics = own.loss(tiny_llama, batch, 0)
    plain, _ = lm_loss(tiny_llama, batch, 0)
    with torch.no_grad():
        states = tiny_llama.model(batch["input_ids"], output_hidden_states=True).hidden_states
        first = states[1]
        captured: list[Tensor] = []
        hook = tiny_llama.model.layers[-1].register_forward_hook(
            lambda m, a, out: captured.append(out)
        )
        tiny_llama(**batch)
        hook.remove()
        error = (own.head(rms_normalised(captured[0])) - rms_normalised(first)).square().mean()
    torch.testing.assert_close(metrics["self_model_error"], error)
    torch.testing.assert_close(loss, plain + 0.5 * error)
    up = tiny_llama.model.layers[0].mlp.up_proj.weight
    (gradient,) = torch.autograd.grad(loss - plain, up)
    assert gradient.abs().max() > 0


def test_a_stream_of_zeros_stays_zero_when_it_is_normalised() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert torch.allclose(
        rms_normalised(x), torch.tensor([[3.0, 4.0], [0.0, 0.0]]) / 12.5**0.5, atol=1e-5
    )


def test_a_stage_reports_the_mean_loss_of_its_last_quarter() -> None:
    plan = SimpleNamespace(active=True, controllers={}, notes=dict)
    for losses, mean in (
        ([9, 9, 9, 9, 9, 9, 2, 4], 3.0),
        ([9, 9, 5], 5.0),
        ([9, 9, 9, 9, 9, 9, 9, math.nan], 9.0),
    ):
        records = [record(step, float(loss)) for step, loss in enumerate(losses)]
        assert run_module._facts("dream_1", plan, records)["loss"] == mean
    assert run_module._facts("dream_1", plan, [record(0, math.nan)])["loss"] is None


def test_self_modelling_lowers_its_own_error(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, data_config: DataConfig
) -> None:
    class Batches:
        def batch(self, step: int) -> dict[str, Tensor]:
            return ids(2, 12)

    config = small_config(data_config)
    own = SelfModel(tiny_llama, weight=1.0, targets=2, seed=0)
    out = Workspace(tmp_path / "out", phase="train", seed=0, config={})
    records = train(
        tiny_llama,
        TrainRequest(
            batches=Batches(),
            loss_fn=own.loss,
            stage="self",
            steps=30,
            optim=replace(config.optim, lr=1e-2),
            out=out,
            events=EventLog(None, "train"),
            seed=0,
            parameters=own.parameters(tiny_llama),
        ),
    )
    assert records[-1].metrics["self_model_error"] < 0.7 * records[0].metrics["self_model_error"]


# The phase


def test_with_every_mechanism_off_the_ten_stages_are_plain_training(
    tiny_checkpoint: Checkpoint,
    tiny_tokenizer: PreTrainedTokenizerFast,
    data_config: DataConfig,
    tmp_path: Path,
) -> None:
    """Bit for bit what learn.train gives without any controller on the same batches, at a
    self-model weight of 0.
    """
    config = small_config(data_config, "average=none", "measure.twin_steps=0")
    written = go(config, tiny_checkpoint, tmp_path / "phase")
    model = models.load(tiny_checkpoint)
    from agent_forge.core.seeds import seed_for
    from agent_forge.phases.train.stages import mixture, plain_sources, stage_optim

    sources = plain_sources(config, tiny_tokenizer)
    out = Workspace(tmp_path / "plain" / "out", phase="train", seed=0, config={})
    names = list(STAGES)
    for previous, stage in zip(["", *names], names, strict=False):
        train(
            model,
            TrainRequest(
                batches=mixture(config, sources, config.mix, stage),
                loss_fn=lm_loss,
                stage=stage,
                steps=1,
                optim=stage_optim(config, stage, names),
                out=out,
                events=EventLog(None, "train"),
                seed=seed_for(config.seed, "train"),
                optimiser_from=previous,
                keep_optimiser=stage != names[-1],
            ),
        )
    result = models.load(Path(written.outputs[0])).state_dict()
    assert all(torch.equal(result[name], value) for name, value in model.state_dict().items())
    assert [row["on"] for row in written.tables["stages"][1:]] == [False] * 10
    assert f"{plain.SKIPPED}: average, chaos, curriculum, dream, self model" in written.summary
    assert "gain over the parent: text " in written.summary


def test_the_baseline_of_a_steered_run_is_the_run_with_every_mechanism_off(
    tiny_checkpoint: Checkpoint,
    data_config: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit, whether it leaves the steered run at the first stage, between two, or before the
    average.
    """
    off = go(
        small_config(data_config, "average=none", "measure.twin_steps=0"),
        tiny_checkpoint,
        tmp_path / "off",
    )
    expected = models.load(Path(off.outputs[0])).state_dict()
    assert off.baseline == plain.SAME
    trained, original = [], plain.train_plainly
    monkeypatch.setattr(
        plain,
        "train_plainly",
        lambda phase, m, *rest: (trained.append(m), original(phase, m, *rest))[1],
    )
    for number, steered in enumerate(
        (ALL_ON, ["average=none", "self_model.weight=0.1"], ["average=uniform"])
    ):
        always = ["only_if_better=false", "optim.average_share=1.0", "measure.twin_steps=0"]
        config = small_config(data_config, *always, *steered)
        report = go(config, tiny_checkpoint, tmp_path / str(number))
        if not config.only_averages():
            assert all(
                torch.equal(trained[-1].state_dict()[name], value)
                for name, value in expected.items()
            )
        for row in report.tables["against plain training of equal tokens"]:
            task = row["task"]
            assert row["plain"] == off.metrics[task]["value"]
            assert row["this phase"] == report.metrics[task]["value"]
            sign = -1 if task == "text" else 1
            assert row["gain"] == pytest.approx(sign * (row["this phase"] - row["plain"]))
            assert row["low"] <= row["gain"] <= row["high"]
        assert report.baseline.startswith("gain over plain training of equal tokens: text ")
    # Beside an average alone nothing is trained: the weights of the last step are the plain run.
    assert len(trained) == 2


def test_mechanisms_that_do_not_beat_plain_training_do_not_go_on(
    tiny_checkpoint: Checkpoint, data_config: DataConfig, tmp_path: Path
) -> None:
    """Noise of 50 times the gradient against the same steps without it."""
    short = ["average=none", "measure.twin_steps=0", "measure.text_items=12", "steps.chaos_1=4"]
    noise = ["chaos.enabled=true", "chaos.every_steps=1", "chaos.target_exponent=1000"]
    off = go(small_config(data_config, *short), tiny_checkpoint, tmp_path / "off")
    noisy = [*short, *noise, "chaos.max_noise=50"]
    report = go(small_config(data_config, *noisy), tiny_checkpoint, tmp_path / "noisy")
    (row,) = report.tables["the mechanisms against plain training (search split)"]
    assert row["low"] <= 0
    assert row["kept"] == choice.PLAIN
    assert report.summary.endswith(f"; {choice.VERDICTS[choice.PLAIN]}")
    (text, _) = report.tables["against plain training of equal tokens"]
    assert text["gain"] < 0
    weights = [models.load(Path(one.outputs[0])).state_dict() for one in (off, report)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert report.metrics["text"] == off.metrics["text"]
    forced = small_config(data_config, *noisy, "only_if_better=false")
    steered = go(forced, tiny_checkpoint, tmp_path / "forced")
    assert steered.summary.endswith(f"; {choice.VERDICTS[choice.STEERED]}")
    forced_weights = models.load(Path(steered.outputs[0])).state_dict()
    assert any(not torch.equal(value, forced_weights[n]) for n, value in weights[0].items())


def test_an_average_that_is_not_better_leaves_nothing_to_compare(
    tiny_checkpoint: Checkpoint,
    data_config: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last step is plain training itself, so it is not measured against itself."""
    monkeypatch.setattr(choice.evaluate, "paired_gain", lambda *_, **__: (0.0, -0.1))
    short = ["average=uniform", "measure.twin_steps=0", "steps.settle=8"]
    report = go(small_config(data_config, *short), tiny_checkpoint, tmp_path)
    assert report.baseline == plain.SAME_AS_LAST
    assert "against plain training of equal tokens" not in report.tables
    assert report.summary.endswith(f"; {choice.VERDICTS[choice.LAST_STEP]}")


def test_without_the_baseline_the_report_says_that_none_ran(
    tiny_checkpoint: Checkpoint, data_config: DataConfig, tmp_path: Path
) -> None:
    short = ["baseline=false", "measure.twin_steps=0", "average=uniform", "only_if_better=false"]
    config = small_config(data_config, *short, "steps.settle=8")
    report = go(config, tiny_checkpoint, tmp_path / "average")
    assert report.baseline == plain.NOT_RUN
    assert list(report.tables) == ["stages", "the average against the last step (search split)"]
    assert config.work_tokens() == (9 + 8) * 2 * 48
    assert replace(config, baseline=True).work_tokens() == (9 + 8) * 2 * 48
    noisy = small_config(data_config, "chaos.enabled=true", "average=uniform")
    assert noisy.work_tokens() == (10 + 7) * 2 * 48
    # One step is too short for an average, so nothing differs from plain training.
    report = go(small_config(data_config, *short), tiny_checkpoint, tmp_path / "none")
    assert report.baseline == plain.SAME
    assert list(report.tables) == ["stages"]


def test_a_run_killed_in_any_stage_ends_in_the_same_checkpoint(
    tiny_checkpoint: Checkpoint,
    data_config: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small_config(
        data_config, *ALL_ON, "steps.adapt_3=0", "steps.chaos_3=0", "measure.twin_steps=0", steps=2
    )
    whole = go(config, tiny_checkpoint, tmp_path / "whole")
    others = ("last step", "plain training")
    stages = [row for row in whole.tables["stages"][1:] if row["stage"] not in others]
    assert all(row["on"] for row in stages)

    class Killed(Exception):
        pass

    inner, calls, limit = Mixture.batch, [0], [3]

    def counted(self: Mixture, step: int) -> dict[str, Tensor]:
        if self.name.startswith("train "):
            calls[0] += 1
            if calls[0] == limit[0]:
                raise Killed
        return inner(self, step)

    monkeypatch.setattr(Mixture, "batch", counted)
    killed = 0
    while True:
        try:
            calls[0], limit[0] = 0, limit[0] + 1
            parts = go(config, tiny_checkpoint, tmp_path / "parts")
            break
        except Killed:
            killed += 1
    assert killed >= 3
    assert parts.tables == whole.tables
    assert parts.metrics == whole.metrics
    assert checkpoint.open(parts.outputs[0]).id == checkpoint.open(whole.outputs[0]).id


def test_the_report_has_a_row_for_every_stage_and_the_parent_is_untouched(
    tiny_checkpoint: Checkpoint, data_config: DataConfig, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in tiny_checkpoint.path.iterdir()}
    log = EventLog(tmp_path / "events.jsonl", "train")
    report = go(small_config(data_config, "steps.chaos_2=0"), tiny_checkpoint, tmp_path, log)
    rows = report.tables["stages"]
    assert [row["stage"] for row in rows] == [
        "start",
        *(stage for stage in STAGES if stage != "chaos_2"),
    ]
    for row in rows:
        assert 0 < row["bits per byte"] < 20
        assert 0 <= row["reasoning right"] <= 1
        assert all(
            math.isfinite(row[name])
            for name in ("depth exponent", "logit sensitivity", "twin exponent")
        )
    assert rows[-1]["mechanism"] == "average"
    assert rows[-1]["on"] is True
    assert {path.name: path.read_bytes() for path in tiny_checkpoint.path.iterdir()} == before
    assert report.metrics["text"]["n"] == 2
    said = [
        event.message for event in read_events(tmp_path / "events.jsonl") if event.kind == "message"
    ]
    assert sum("plain training" in text for text in said) == 8


def test_a_ternary_model_stays_ternary(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    data_config: DataConfig,
    tmp_path: Path,
) -> None:
    ternarise(
        tiny_llama,
        TernarySettings(group_size=16, activation_bits=8, packing="five_trits", skip=["lm_head"]),
    )
    source = checkpoint.write(
        tmp_path / "ternary",
        lambda d: models.save(tiny_llama, tiny_tokenizer, d),
        phase="bitnet",
        seed=0,
        config={},
        name="t",
    )
    keep = ["steps.adapt_1=3", "steps.settle=1"]
    zero = [f"steps.{stage}=0" for stage in STAGES if stage not in ("adapt_1", "settle")]
    report = go(small_config(data_config, *zero, *keep), source, tmp_path / "trained")
    trained = models.load(Path(report.outputs[0]))
    name = "model.layers.0.mlp.up_proj"
    assert type(trained.get_submodule(name)).__name__ == "TernaryLinear"
    assert not torch.equal(
        trained.get_submodule(name).weight, tiny_llama.get_submodule(name).weight
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("average=median", "average must be one of"),
        ("chaos.lr_range=1.0", "chaos.lr_range"),
        ("dream.prompt_tokens=48", "dream.prompt_tokens"),
        ("rollback.every_steps=0", "rollback.every_steps"),
        ("optim.average_share=1.5", "optim.average_share"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    data_config: DataConfig, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config(data_config, override)


def test_a_run_without_steps_is_refused(
    tiny_checkpoint: Checkpoint, data_config: DataConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no step to take"):
        go(small_config(data_config, steps=0), tiny_checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("streams", "targets", "chosen"), [(4, 2, [0, 1]), (7, 3, [0, 2, 4]), (3, 2, [0, 1])]
)
def test_the_streams_that_are_predicted_are_spread_over_those_before_the_last(
    tiny_llama: LlamaForCausalLM, streams: int, targets: int, chosen: list[int]
) -> None:
    own = SelfModel(tiny_llama, weight=1.0, targets=targets, seed=0)
    size = tiny_llama.config.hidden_size
    every = [torch.randn(1, 3, size) for _ in range(streams)]
    with torch.no_grad():
        predicted = own.head(rms_normalised(every[-1]))
        expected = torch.cat([rms_normalised(every[i]) for i in chosen], -1)
        torch.testing.assert_close(own.error(every), (predicted - expected).square().mean())


def test_while_exponents_are_measured_nothing_is_rounded_and_then_all_is_as_it_was() -> None:
    inner = nn.Linear(2, 2)
    inner.activation_bits = 8  # type: ignore[assignment]
    model = nn.Sequential(inner, nn.Dropout()).train()
    with exponents._probing(model):
        assert (inner.activation_bits, model.training) == (0, False)
    assert (inner.activation_bits, model.training) == (8, True)
