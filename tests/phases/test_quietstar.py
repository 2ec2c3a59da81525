"""The quietstar phase end to end on a tiny Llama, and its parts against closed forms."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agent_forge import checkpoint, data, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import DataConfig
from agent_forge.config.compose import compose
from agent_forge.core.errors import CheckpointError, ConfigError, Interrupted
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import seed_for, torch_generator
from agent_forge.learn import StepRecord, TrainRequest, lm_loss, train
from agent_forge.models.thought import ThoughtForCausalLM, Thoughts
from agent_forge.phases import PhaseRun
from agent_forge.phases.quietstar import PHASE, Config, measure
from agent_forge.phases.quietstar import run as run_module
from agent_forge.phases.quietstar.objective import (
    QuietStarLoss,
    clip_by_group,
    draw_positions,
    outcome,
)
from agent_forge.phases.quietstar.run import run

TINY = [
    "steps=4", "batch_rows=2", "length_tokens=64", "positions=4", "thought_length=2", "thoughts=2", "measure.windows=4",
    "measure.positions=5", "measure.samples=50", "measure.shown=2", "optim.warmup_steps=1", "runtime.device=cpu",
    "only_if_better=false",
]  # fmt: skip


def settings(data_config: DataConfig, out: Path, parent: Checkpoint, *more: str) -> Config:
    config = compose("quietstar", Config, [*TINY, f"out={out}", f"sources=[{parent.path}]", *more])
    return dataclasses.replace(config, data=data_config)


def forge(config: Config, parent: Checkpoint) -> Any:
    out = Workspace(
        config.out, phase="quietstar", seed=config.seed, config=config, parents=[parent]
    )
    return run(PhaseRun(config, [parent], out, EventLog(None, "quietstar")))


@pytest.fixture(scope="module")
def forged(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    config = settings(data_config, tmp_path_factory.mktemp("quietstar") / "out", tiny_checkpoint)
    return config, forge(config, tiny_checkpoint)


def test_the_phase_writes_a_thinking_model_that_plain_transformers_opens(
    forged: Any, tiny_checkpoint: Checkpoint
) -> None:
    from transformers import AutoModelForCausalLM

    config, report = forged
    written = checkpoint.open(config.out)
    assert report.outputs == [config.out]
    assert written.manifest.parents[0]["id"] == tiny_checkpoint.id
    model = AutoModelForCausalLM.from_pretrained(config.out)
    assert isinstance(model, ThoughtForCausalLM)
    assert model.config.thought_length == 2
    assert (
        written.manifest.deployable_bytes == (Path(config.out) / "model.safetensors").stat().st_size
    )
    assert model.config.gate_entropy_nats == report.metrics["gate_entropy_nats"]


def test_training_changes_base_head_and_meta_vectors(
    forged: Any, tiny_checkpoint: Checkpoint
) -> None:
    config, _ = forged
    parent, child = models.load(tiny_checkpoint), models.load(config.out)
    changed = [
        name
        for name, value in parent.state_dict().items()
        if not torch.equal(value, child.base.state_dict()[name])
    ]
    assert len(changed) == len(parent.state_dict())
    newline = models.load_tokenizer(config.out).encode("\n", add_special_tokens=False)
    first = parent.get_input_embeddings()(torch.tensor(newline)).mean(0)
    assert not torch.equal(child.start, first)
    assert not torch.equal(child.end, first)
    assert child.mixing.weight_3.any()


def test_the_report_speaks_of_the_windows_that_it_measured(forged: Any) -> None:
    _, report = forged
    rows = {
        row["data"]: row for row in report.tables["thinking on held-out tokens (validation split)"]
    }
    assert set(rows) == {"reasoning", "text", "all"}
    assert rows["text"]["tokens"] == 4 * 5
    assert rows["all"]["tokens"] == rows["text"]["tokens"] + rows["reasoning"]["tokens"]
    for row in rows.values():
        assert row["gain of thinking"] == pytest.approx(
            row["base (nats)"] - row["thinking (nats)"], abs=1e-6
        )
        assert row["gain low"] <= row["gain of thinking"] <= row["gain high"]
        assert row["base (nats)"] == pytest.approx(
            row["parent (nats)"] - row["gain of base over parent"], abs=1e-6
        )
    assert sum(row["tokens"] for row in report.tables["by difficulty"]) == rows["all"]["tokens"]
    assert len(report.samples) == 2
    assert "thinks" in report.samples[0]


def test_plain_training_sees_the_same_windows_and_its_gain_is_told(
    forged: Any, tiny_checkpoint: Checkpoint
) -> None:
    """The plain run against the parent trained here, and the figures of the report against it."""
    config, report = forged
    tokenizer = models.load_tokenizer(tiny_checkpoint)
    kinds = list(config.mix)

    def sources(split: str, rows: int) -> dict[str, Any]:
        return {
            kind: data.source(kind, config.data, tokenizer, split, config.seed, rows=rows)
            for kind in kinds
        }

    model = models.load(tiny_checkpoint)
    optim = dataclasses.replace(config.optim, lr=config.base_lr, clip_norm=config.group_clip_norm)
    train(
        model,
        TrainRequest(
            batches=data.Mixture(
                sources("train", run_module.TRAIN_ROWS), config.mix, rows=2, length_tokens=64,
                seed=config.seed, name="quietstar",
            ),
            loss_fn=lm_loss, stage="alone", steps=4, optim=optim, seed=config.seed,
            out=Workspace(f"{config.out}-alone", phase="quietstar", seed=config.seed, config={}),
            events=EventLog(None, "quietstar"),
        ),
    )  # fmt: skip
    windows = measure.held_out(config, sources("validation", 40), "validation")
    losses = measure.base_losses(model.eval(), windows, 2, torch.device("cpu"))
    plain = float(torch.cat([losses[kind].flatten() for kind in kinds]).nanmean())
    rows = {r["data"]: r for r in report.tables["thinking on held-out tokens (validation split)"]}
    thinking, base = (rows["all"][f"{name} (nats)"] for name in ("thinking", "base"))
    deciles = report.tables["by difficulty"]
    tokens = sum(row["tokens"] for row in deciles)
    everywhere = sum(row["gain over plain"] * row["tokens"] for row in deciles) / tokens
    assert everywhere == pytest.approx(plain - thinking, abs=1e-5)
    gain = report.metrics["gain_over_plain_nats"]
    assert gain["low"] <= gain["value"] <= gain["high"]
    if report.metrics["gate_entropy_nats"] is None:  # then nothing is thought
        assert gain["value"] == pytest.approx(plain - base, abs=1e-5)
    assert report.baseline.startswith("gain over plain training of equal tokens, ")


def test_the_gain_over_plain_training_thinks_where_the_gate_opens() -> None:
    record = {
        "a/base": torch.tensor([[2.0, 4.0]]), "a/mixed": torch.tensor([[1.0, 1.0]]),
        "a/entropy": torch.tensor([[0.5, 2.0]]),
    }  # fmt: skip
    plain = {"a": torch.tensor([[2.5, 2.5]])}
    config = compose("quietstar", Config, [*TINY, "out=x"])
    for gate, expected in ((None, -0.5), (0.0, 1.5), (1.0, 1.0)):
        gain = measure.over_plain(record, plain, ["a"], gate, config)
        assert gain["value"] == pytest.approx(expected)
        assert gain["n"] == 2


@pytest.mark.parametrize("opens", [True, False])
def test_a_parent_goes_on_unchanged_where_thinking_brings_nothing(
    opens: bool,
    data_config: DataConfig,
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no gate opens, and where one opens and plain training does as well."""
    gate = 0.0 if opens else None
    monkeypatch.setattr(measure, "choose_gate", lambda *_: (gate, []))
    monkeypatch.setattr(
        measure, "over_plain", lambda *_: {"value": 0.0, "low": -0.1, "high": 0.1, "n": 40}
    )
    only = settings(data_config, tmp_path / "out", tiny_checkpoint, "only_if_better=true")
    report = forge(only, tiny_checkpoint)
    parent, child = models.load(tiny_checkpoint), models.load(only.out)
    assert type(child) is type(parent)
    assert all(torch.equal(v, child.state_dict()[k]) for k, v in parent.state_dict().items())
    assert "the parent's weights go on unchanged (only_if_better=false" in report.summary
    assert ("plain training of equal tokens does as well" in report.summary) is opens


class StopAt:
    """A workspace attribute that asks to stop at the n-th look."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def __get__(self, instance: object, owner: type) -> int:
        self.looks -= 1
        return 15 if self.looks <= 0 else 0

    def __set__(self, instance: object, value: int) -> None:
        pass


@pytest.mark.parametrize("looks", [1, 3, 7])
def test_a_stopped_phase_run_again_ends_in_the_same_bytes(
    looks: int, forged: Any, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config, _ = forged
    again = dataclasses.replace(config, out=str(tmp_path / "out"))
    stopping = type("Stopping", (Workspace,), {"stop_signal": StopAt(looks)})
    out = stopping(
        again.out, phase="quietstar", seed=again.seed, config=again, parents=[tiny_checkpoint]
    )
    with pytest.raises(Interrupted):
        run(PhaseRun(again, [tiny_checkpoint], out, EventLog(None, "quietstar")))
    assert not Path(again.out).exists()
    forge(again, tiny_checkpoint)
    assert checkpoint.open(again.out).id == checkpoint.open(config.out).id


def test_a_frozen_base_stays_bit_equal(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = settings(data_config, tmp_path / "out", tiny_checkpoint, "base_lr=0")
    forge(config, tiny_checkpoint)
    child = models.load(config.out)
    state = child.base.state_dict()
    assert all(
        torch.equal(value, state[name])
        for name, value in models.load(tiny_checkpoint).state_dict().items()
    )
    assert child.mixing.weight_3.any()


def test_a_thinking_parent_is_refused(forged: Any, data_config: DataConfig, tmp_path: Path) -> None:
    config, _ = forged
    parent = checkpoint.open(config.out)
    with pytest.raises(CheckpointError, match="thinking model already"):
        forge(settings(data_config, tmp_path / "out", parent), parent)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("objective=rpl", "objective"),
        ("thoughts=1", "thoughts"),
        ("positions=63", "length_tokens"),
        ("gate_shares=[0.0]", "gate_shares"),
    ],
)
def test_settings_that_cannot_work_are_refused(override: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        compose("quietstar", Config, [*TINY, "out=x", override])


def made_up(
    batch: int = 2, places: int = 3, count: int = 2, ahead: int = 2, vocab: int = 5
) -> tuple[Thoughts, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    positions = torch.tensor([[0, 3, 6]]).expand(batch, places)
    thoughts = Thoughts(
        positions=positions, tokens=torch.zeros(batch, places, count, 1, dtype=torch.long),
        log_probs=normal(batch, places, count, 1),
        prefix_logits=normal(batch, 8, vocab), base_logits=normal(batch, places, ahead, vocab),
        thought_logits=normal(batch, places, count, ahead, vocab),
        weights=torch.rand(batch, places, count, ahead, generator=generator),
    )  # fmt: skip
    labels = torch.randint(0, vocab, (batch, 8), generator=generator)
    labels[0, 4] = -100
    return thoughts, labels


def test_the_work_is_training_and_a_third_of_the_measurements_forward_passes() -> None:
    overrides = [
        "out=x", "thought_length=4", "lookahead=2", "thoughts=3", "positions=5", "batch_rows=2", "length_tokens=40",
        "mix={text: 1, reasoning: 1}", "measure.windows=6", "measure.positions=7", "baseline=false",
    ]  # fmt: skip
    measured = 2 * 6 * (40 + 2 * (40 + 7 * 3 * (4 + 1 + 2))) / 3
    assert compose("quietstar", Config, [*overrides, "steps=0"]).work_tokens() == pytest.approx(
        measured
    )
    trained = 2 * (40 + 5 * 3 * 8 * 4 / 3)
    assert compose("quietstar", Config, [*overrides, "steps=10"]).work_tokens() == pytest.approx(
        10 * trained + measured
    )
    plainly = 10 * 2 * 40 + 2 * 2 * 6 * 40 / 3
    config = compose("quietstar", Config, [*overrides, "steps=10", "baseline=true"])
    assert config.work_tokens() == pytest.approx(10 * trained + measured + plainly)


def test_the_work_of_verified_thoughts_is_tuning_and_replies_that_are_read_three_times() -> None:
    """Each is sampled, scored by the reference, and learned from; four measurements are forward."""
    config = compose("quietstar", Config, [
        "out=x", "objective=task_thoughts", "batch_rows=2", "length_tokens=40", "task.steps=5",
        "task.control=false", "task.reinforce_steps=3", "task.items=4", "task.samples=6",
        "task.max_new_tokens=7", "task.measure_items=9",
    ])  # fmt: skip
    tuned, replies, scored = 5 * 2 * 40, 3 * 4 * 6 * 7, 4 * 9 * 7
    assert config.work_tokens() == pytest.approx(tuned + 3 * replies + scored / 3)
    # Answers alone are trained beside the rationales, for as many steps.
    config.task.control = True
    assert config.work_tokens() == pytest.approx(2 * tuned + 3 * replies + scored / 3)
    assert config.step_tokens() == 2 * (40 + config._thought_tokens())


def test_losses_after_a_thought_are_those_of_the_tokens_that_follow() -> None:
    thoughts, labels = made_up()
    result = outcome(thoughts, labels, 2)
    assert result.counted[0].tolist() == [[True, True], [False, True], [True, False]]
    mixed = thoughts.mixed_logits().log_softmax(-1)
    base = thoughts.base_logits.log_softmax(-1)
    expected = -mixed[1, 1, 1, 1, labels[1, 5]]
    torch.testing.assert_close(result.mixed[1, 1, 1, 1], expected)
    torch.testing.assert_close(result.base[1, 1, 1], -base[1, 1, 1, labels[1, 5]])
    reward = result.rewards()
    assert reward[0, 1, 0] == pytest.approx(
        float(result.base[0, 1, 1] - result.mixed[0, 1, 0, 1]), abs=1e-6
    )


def test_positions_are_drawn_before_trained_tokens_and_evenly() -> None:
    labels = torch.full((1, 20), -100)
    labels[0, 10:18] = 1
    counts = torch.zeros(20)
    for step in range(800):
        drawn = draw_positions(labels, 2, torch.Generator().manual_seed(step))
        assert drawn[0, 0] < drawn[0, 1]
        counts[drawn[0]] += 1
    assert counts[:9].sum() == 0
    assert counts[17:].sum() == 0
    assert ((counts[9:17] - 200).abs() < 5 * (800 * 0.25 * 0.75) ** 0.5).all()


def test_groups_are_clipped_each_on_its_own() -> None:
    large, small = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([0.1]))
    unused = nn.Parameter(torch.tensor([1.0]))
    loss = 100 * (large * torch.tensor([3.0, 4.0])).sum() + 0.5 * small.sum()
    clipped = clip_by_group(loss, [[large], [small, unused]], 1.0)
    assert torch.equal(clipped, loss)
    clipped.backward()
    assert large.grad is not None
    assert small.grad is not None
    assert unused.grad is None
    torch.testing.assert_close(large.grad, torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(small.grad, torch.tensor([0.5]))


def test_the_loss_is_the_weighted_sum_of_its_parts(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = settings(data_config, tmp_path, tiny_checkpoint)
    base = models.load(tiny_checkpoint).eval()
    model = ThoughtForCausalLM.wrap(
        base, start_ids=[5], end_ids=[6], thought_length=2, thoughts=2, temperature=1.0
    ).eval()
    for parameter in model.mixing.parameters():  # before training thoughts weigh nothing
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))
    ids = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "labels": ids}

    def loss(mixed: float, policy: float, plain: float) -> float:
        weights = dataclasses.replace(
            config, mixed_weight=mixed, policy_weight=policy, base_weight=plain
        )
        value, metrics = QuietStarLoss(weights, [list(model.parameters())])(model, batch, 3)
        assert float(metrics["mixed_nats"]) == pytest.approx(parts[0], rel=1e-5)
        return float(value.detach())

    with torch.no_grad():
        thoughts = model.think(
            ids, positions=draw_positions(
                ids, config.positions, torch_generator(config.seed, "quietstar", "positions", 3)
            ),
            thoughts=config.thoughts, lookahead=config.lookahead, temperature=config.temperature,
            seed=seed_for(config.seed, "quietstar", "thoughts", 3),
        )  # fmt: skip
        result = outcome(thoughts, ids, config.lookahead)
        rewards = result.rewards()
        others = (rewards.sum(-1, keepdim=True) - rewards) / (config.thoughts - 1)
        advantage = rewards - others
        if config.normalise_advantage:
            advantage = advantage / (advantage.square().mean().sqrt() + 1e-6)
        counted = result.counted[:, :, None].expand_as(result.mixed)
        parts = [
            float(result.mixed[counted].mean()),
            float(-(advantage * thoughts.log_probs.sum(-1)).mean()),
            float(base(input_ids=ids, labels=ids).loss),
        ]
    assert abs(parts[1]) > 1e-4  # thoughts of a random model are hardly unlike
    for weights in ((1.0, 0.0, 0.0), (0.0, 100.0, 0.0), (0.5, 500.0, 0.25)):
        expected = sum(w * part for w, part in zip(weights, parts, strict=True))
        assert loss(*weights) == pytest.approx(expected, rel=1e-3)


def record(gain: Tensor, entropy: Tensor) -> dict[str, Tensor]:
    base = torch.full_like(gain, 3.0)
    return {
        "text/base": base,
        "text/mixed": base - gain,
        "text/entropy": entropy,
        "text/weight": torch.zeros_like(gain),
    }


def test_the_gate_opens_exactly_where_thinking_helps(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = settings(
        data_config, tmp_path, tiny_checkpoint, "gate_shares=[1.0,0.5,0.25]", "measure.samples=400"
    )
    entropy = torch.rand(40, 20, generator=torch.Generator().manual_seed(0))
    noise = 0.05 * torch.randn(40, 20, generator=torch.Generator().manual_seed(1))
    unsure = record(torch.where(entropy > 0.75, 0.4, -0.2) + noise, entropy)
    gate, rows = measure.choose_gate(unsure, ["text"], config)
    assert gate == pytest.approx(float(np.quantile(entropy.numpy(), 0.75)))
    assert [row["share of tokens"] for row in rows] == [1.0, 0.5, 0.25]
    assert rows[2]["gain (nats)"] == pytest.approx(0.4, abs=0.02)
    everywhere, _ = measure.choose_gate(record(0.1 + noise, entropy), ["text"], config)
    assert everywhere == 0.0
    nowhere, _ = measure.choose_gate(record(noise - noise.mean() - 0.01, entropy), ["text"], config)
    assert nowhere is None


def windows_with(z: float) -> dict[str, Tensor]:
    """Return a record whose mean gain over 60 windows is `z` of its standard errors above zero."""
    noise = torch.randn(60, 1, generator=torch.Generator().manual_seed(2)).expand(60, 8)
    noise = (noise - noise.mean()) / noise[:, 0].std(correction=0)
    gain = noise + z / 60**0.5
    entropy = torch.rand(60, 8, generator=torch.Generator().manual_seed(3))
    return record(gain, entropy)


def test_a_gain_that_may_be_chance_keeps_the_gate_shut(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = settings(
        data_config, tmp_path, tiny_checkpoint, "gate_shares=[1.0]", "measure.samples=2000"
    )
    for z, opens in ((0.5, False), (1.5, False), (2.6, True)):
        gate, rows = measure.choose_gate(windows_with(z), ["text"], config)
        assert rows[0]["gain (nats)"] > 0
        assert (gate == 0.0) is opens
        assert (rows[0]["low"] > 0) is opens


def test_shares_that_are_tried_together_must_each_clear_a_higher_bar(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    # 2.3 standard errors are enough for one share (1.96), and not for any of eight (2.73 by
    # Bonferroni).
    near = windows_with(2.3)
    near["text/entropy"] = torch.ones_like(near["text/entropy"])
    for shares, opens in (([1.0], True), ([1.0] * 8, False)):
        text = ",".join(map(str, shares))
        config = settings(
            data_config, tmp_path, tiny_checkpoint, f"gate_shares=[{text}]", "measure.samples=4000"
        )
        gate, rows = measure.choose_gate(near, ["text"], config)
        assert len(rows) == len(shares)
        assert (gate is not None) is opens
        exact = 2.3 / 60**0.5 - (1.96 if opens else 2.73) / 60**0.5
        assert rows[0]["low"] == pytest.approx(exact, abs=0.05)


def test_windows_without_a_token_change_no_interval_and_no_gate(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = settings(
        data_config, tmp_path, tiny_checkpoint, "gate_shares=[1.0]", "measure.samples=400"
    )
    full = windows_with(2.6)
    wider = {
        name: torch.cat([value, torch.full((20, 8), torch.nan)]) for name, value in full.items()
    }
    assert measure.choose_gate(wider, ["text"], config) == measure.choose_gate(
        full, ["text"], config
    )
    gains, more = (of["text/base"].numpy() - of["text/mixed"].numpy() for of in (full, wider))
    expected = measure.interval(gains, ~np.isnan(gains), 100, 0)
    assert measure.interval(more, ~np.isnan(more), 100, 0) == expected
    assert expected["n"] == 60 * 8
    nothing = measure.interval(gains, np.zeros(gains.shape, bool), 100, 0)
    assert nothing == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 0}


def test_of_two_shares_that_pay_the_one_of_more_gain_in_all_wins(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Half of the tokens gain 1 nat and the others .5: .75 on all tokens is more than 1 on half of
    them.
    """
    config = settings(
        data_config, tmp_path, tiny_checkpoint, "gate_shares=[1.0,0.5]", "measure.samples=100"
    )
    entropy = torch.linspace(0, 1, 8).expand(60, 8)
    gate, rows = measure.choose_gate(
        record(torch.where(entropy > 0.5, 1.0, 0.5), entropy), ["text"], config
    )
    assert [row["gain (nats)"] for row in rows] == pytest.approx([0.75, 1.0])
    assert gate == 0.0


def test_the_report_is_made_of_the_losses_and_of_where_the_gate_opens(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Four tokens of entropy 1 to 4 that gain as much; a gate of exactly 3 nats opens for the last
    two.
    """
    config = settings(data_config, tmp_path, tiny_checkpoint)
    entropy = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    losses = record(entropy, entropy) | {
        "text/helped": torch.ones(2, 2),
        "text/base": torch.full((2, 2), 5.0),
    }
    losses["text/mixed"] = losses["text/base"] - entropy
    metrics = run_module._report(
        config, losses, {"text": torch.full((2, 2), 7.0)}, ["text"], 3.0, []
    ).metrics
    assert metrics["thinking_gain_nats"]["value"] == pytest.approx(2.5)
    assert metrics["base_gain_over_parent_nats"]["value"] == pytest.approx(2.0)
    assert metrics["gain_where_gate_opens_nats"]["value"] == pytest.approx(3.5)
    assert metrics["gate_open_share"] == 0.5


def test_a_shown_thought_stands_between_the_tokens_around_its_position(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    class Spelled:
        def decode(self, tokens: list[int]) -> str:
            return " ".join(map(str, tokens))

    config = settings(data_config, tmp_path, tiny_checkpoint, "measure.shown=1")
    phase: Any = PhaseRun(config, [], None, None)  # type: ignore[arg-type]
    phase.tokenizer = Spelled()
    losses = {"text/base": torch.tensor([[1.0]]), "text/mixed": torch.tensor([[0.5]])}
    losses["text/tokens"] = torch.tensor([[[[7, 8], [0, 0]]]])
    for place, context in (
        (2, "10 11 12"),
        (70, " ".join(map(str, range(80 - run_module.SHOWN_CONTEXT_TOKENS, 81)))),
    ):
        windows = {
            "text": {"input_ids": torch.arange(10, 110)[None], "positions": torch.tensor([[place]])}
        }
        shown = run_module._samples(phase, losses, windows, ["text"])
        line = f"{context!r} thinks '7 8', then '{11 + place}': 1.000 nats without, 0.500 with"
        assert shown == [line]


def test_positions_are_spread_over_the_trained_tokens_and_filled_up() -> None:
    labels = torch.tensor([-100, -100, 5, 6, -100, 7, 8])  # the token before each trained one
    assert measure._spread(labels, 4).tolist() == [1, 2, 4, 5]
    assert measure._spread(labels, 2).tolist() == [1, 5]
    assert measure._spread(labels, 6).tolist() == [1, 2, 4, 5, -1, -1]


def test_tokens_of_equal_entropy_are_chosen_together(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The threshold of a share belongs to the share, as `generate` thinks from it on."""
    config = settings(
        data_config, tmp_path, tiny_checkpoint, "gate_shares=[0.5]", "measure.samples=100"
    )
    same = record(torch.full((60, 8), 0.25), torch.full((60, 8), 1.5))
    gate, rows = measure.choose_gate(same, ["text"], config)
    assert gate == 1.5
    assert rows[0]["gain (nats)"] == pytest.approx(0.25)


def test_losses_of_windows_are_those_of_their_next_tokens(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Alone and as the base of a model that thinks, whatever the rows of a batch."""
    config = settings(data_config, tmp_path, tiny_checkpoint, "batch_rows=2")
    model = models.load(tiny_checkpoint).eval()
    ids = torch.randint(64, (5, 9), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 3, 7]] * 4 + [[2, 5, -1]])
    windows = {"text": {"input_ids": ids, "labels": ids.clone(), "positions": positions}}
    with torch.no_grad():
        chances = model(input_ids=ids).logits.log_softmax(-1)
    expected = torch.full((5, 3), torch.nan)
    for row, column in (positions >= 0).nonzero().tolist():
        at = int(positions[row, column])
        expected[row, column] = -chances[row, at, ids[row, at + 1]]
    cpu = torch.device("cpu")
    alone = measure.base_losses(model, windows, config.batch_rows, cpu)["text"]
    torch.testing.assert_close(alone, expected, equal_nan=True)
    thinking = ThoughtForCausalLM.wrap(
        model, start_ids=[5], end_ids=[6], thought_length=config.thought_length, thoughts=1,
        temperature=1.0,
    ).eval()  # fmt: skip
    thought = measure.think_over(thinking, windows, config, "validation", cpu)
    torch.testing.assert_close(thought["text/base"], expected, equal_nan=True)
    assert thought["text/tokens"].shape == (5, 3, config.thoughts, config.thought_length)


def test_deciles_sort_tokens_by_the_loss_of_the_base(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = settings(data_config, tmp_path, tiny_checkpoint)
    base = torch.arange(200.0).reshape(20, 10)
    base[0, 0] = float("nan")
    result = {
        "text/base": base,
        "text/mixed": base - base / 10,
        "text/weight": torch.ones_like(base),
    }
    rows = measure.by_decile(result, ["text"], config)
    assert sum(row["tokens"] for row in rows) == 199
    assert all(row["gain (nats)"] == pytest.approx(row["base (nats)"] / 10) for row in rows)
    assert rows[0]["base (nats)"] == pytest.approx(10.5, abs=0.6)
    assert rows[9]["base (nats)"] == pytest.approx(189.5, abs=0.6)


def test_the_figures_of_the_specification_fit_the_settings() -> None:
    import yaml

    from agent_forge.config.compose import CONF, flatten

    changed = yaml.safe_load((CONF / "experiment" / "quietstar_full.yaml").read_text())["quietstar"]
    config = compose(
        "quietstar", Config, ["out=x", *(f"{name}={value}" for name, value in flatten(changed))]
    )
    assert (config.thought_length, config.thoughts, config.steps) == (32, 4, 1000)


@pytest.mark.parametrize(("steps", "expected"), [(0, 0.0), (5, 4.0), (19, 18.0), (30, 28.0)])
def test_a_figure_of_the_end_is_the_mean_of_the_last_tenth_and_at_least_of_one_step(
    steps: int, expected: float
) -> None:
    records = [
        StepRecord(step=step, loss=0.0, lr=0.0, grad_norm=0.0, tokens=1, metrics=metrics)
        for step in range(steps)
        for metrics in ({"reward": float(step)}, {})  # a step without the figure does not count
    ]
    assert run_module._last(records, "reward") == expected


def test_the_phase_is_the_third() -> None:
    assert (PHASE.name, PHASE.order) == ("quietstar", 3)
