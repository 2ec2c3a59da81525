"""Objective rlp against closed forms, enumeration and a computation of one thought at a time."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agent_forge import checkpoint, data, learn, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import DataConfig
from agent_forge.config.compose import compose
from agent_forge.core.errors import Interrupted
from agent_forge.core.events import EventLog
from agent_forge.models.thought import ThoughtForCausalLM, mix
from agent_forge.phases import PhaseRun
from agent_forge.phases.quietstar import Config, measure, rlp
from agent_forge.phases.quietstar.objective import leave_one_out
from agent_forge.phases.quietstar.run import TRAIN_ROWS, run
from tests.models.thought.test_thought import alone, exact_gradient, thinker, tiny_base
from tests.phases.test_quietstar import StopAt, forge, settings

IDS = torch.tensor([[3, 7, 1, 9, 4, 4, 8, 2], [5, 5, 6, 0, 1, 2, 3, 9]])


def configured(*overrides: str) -> Config:
    return compose(
        "quietstar", Config,
        ["out=o", "sources=[s]", "objective=rlp", "positions=3", "thoughts=2", *overrides],
    )  # fmt: skip


def prepared(config: Config, **kwargs: Any) -> tuple[ThoughtForCausalLM, rlp.RlpLoss]:
    """Return a thinker with its copies, and the loss over all of its trained weights."""
    model = thinker(tiny_base(**kwargs), thought_length=2)
    rlp.predicts_from_thoughts_alone(model)
    rlp.remember(model, config.rlp.updates)
    return model, rlp.RlpLoss(config, [list(model.base.parameters()), [model.start, model.end]])


def batch_of(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "labels": ids}


def gradients(model: ThoughtForCausalLM, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_the_surrogate_is_clipped_on_the_side_that_would_go_too_far() -> None:
    """Six tokens by hand: ratio and advantage, and what minimum and gradient must be."""
    cases = [  # ratio, advantage, minimum, slope of the minimum by log p
        (1.0, 2.0, 2.0, 2.0), (1.1, 2.0, 2.2, 2.2), (1.5, 2.0, 2.4, 0.0),
        (0.5, 2.0, 1.0, 1.0), (0.5, -1.0, -0.8, 0.0), (1.5, -1.0, -1.5, -1.5),
    ]  # fmt: skip
    for ratio, advantage, least, slope in cases:
        now = torch.tensor([[math.log(ratio)]], requires_grad=True)
        loss, held = rlp.surrogate(now, torch.zeros(1, 1), torch.tensor([advantage]), 0.2)
        (gradient,) = torch.autograd.grad(loss, now)
        assert float(loss.detach()) == pytest.approx(-least, rel=1e-5)
        assert float(gradient) == pytest.approx(-slope, rel=1e-5)
        assert float(held) == (slope == 0.0)


def test_policy_gradient_is_exact_in_expectation() -> None:
    """Vocabulary 3, two tokens a thought, two thoughts: all 81 pairs, weighed by their chance."""
    length = 2
    model = thinker(tiny_base(vocab=3, key_heads=4), thought_length=length).double()
    ids, place = torch.tensor([[1, 2, 0]]), torch.tensor([[2]])
    every = torch.tensor(list(itertools.product(range(3), repeat=length)))
    reward = torch.linspace(-1.0, 2.0, len(every), dtype=torch.float64).sin()
    exact = exact_gradient(model, ids, reward, length)
    with torch.no_grad():
        whole = model.think(ids, positions=place, tokens=every[None, None], temperature=1.0)
    chance = whole.log_probs[0, 0].sum(-1).exp()
    estimate = torch.zeros_like(exact)
    for a, b in itertools.product(range(len(every)), repeat=2):
        pair = model.think(ids, positions=place, tokens=every[[a, b]][None, None], temperature=1.0)
        advantage = leave_one_out(torch.stack([reward[a], reward[b]])[None, None])
        loss, _ = rlp.surrogate(pair.log_probs, pair.log_probs, advantage, 0.2)
        estimate -= chance[a] * chance[b] * torch.autograd.grad(loss, model.start)[0]
    # The surrogate is a mean over the thought's tokens, REINFORCE is a sum.
    assert float((estimate * length - exact).norm() / exact.norm()) < 1e-5


def test_the_information_gain_is_that_of_each_thought_alone() -> None:
    """Parallel = sequential: each thought is written again by itself, without cache or mask."""
    config = configured("rlp.updates=1", "temperature=1.0")
    model, loss = prepared(config)
    with torch.no_grad():  # The slow weights are others than the model's.
        for name, value in model.slow.weights().items():
            value.add_(0.05 * torch.ones_like(value) * (len(name) % 3))
    slow = tiny_base()
    slow.load_state_dict(model.slow.weights(), strict=False)
    batch = batch_of(IDS)
    sampled, now = loss.thoughts(model, batch, 0)
    assert sampled is now
    rewards = rlp.information_gain(model, batch, sampled).rewards()
    seed = rlp.seed_for(config.seed, "quietstar", "thoughts", 0)
    for row, at, which in itertools.product(range(2), range(3), range(2)):
        column = int(sampled.positions[row, at])
        prefix = IDS[row, : column + 1].tolist()
        tokens, _, logits, _ = alone(model, prefix, row, which, seed, 1.0, [])
        assert tokens == sampled.tokens[row, at, which].tolist()
        target = int(IDS[row, column + 1])
        with torch.no_grad():
            before = slow(input_ids=torch.tensor([prefix])).logits[0, -1].log_softmax(-1)
        expected = logits[-1].log_softmax(-1)[target] - before[target]
        assert float(rewards[row, at, which]) == pytest.approx(float(expected), abs=1e-5)


def test_the_loss_of_thinking_is_that_of_the_next_token_after_each_thought() -> None:
    """Only trained tokens count; with a weight of 0 it is left out."""
    batch = batch_of(IDS)
    batch["labels"] = IDS.clone()
    batch["labels"][0, 5:] = -100
    losses = {}
    for weight in (0.0, 0.7):
        model, loss = prepared(
            configured("positions=7", f"rlp.thinking_weight={weight}", "rlp.base_weight=0")
        )
        losses[weight] = float(loss(model, batch, 0)[0].detach())
    _, thoughts = loss.thoughts(model, batch, 0)
    each = []
    for row, at, which in itertools.product(range(2), range(7), range(2)):
        column = int(thoughts.positions[row, at])
        target = int(batch["labels"][row, column + 1])
        if target != -100:
            logits = thoughts.thought_logits[row, at, which].reshape(-1, 50)[0]
            each.append(-float(logits.log_softmax(-1)[target].detach()))
    assert len(each) == 2 * (4 + 7)
    expected = 0.7 * sum(each) / len(each)
    assert losses[0.7] - losses[0.0] == pytest.approx(expected, rel=1e-4)


def test_a_token_that_is_not_trained_rewards_no_thought() -> None:
    model, loss = prepared(configured("positions=7"))
    batch = batch_of(IDS)
    batch["labels"] = IDS.clone()
    batch["labels"][0, 3:] = -100
    sampled, _ = loss.thoughts(model, batch, 0)
    gain = rlp.information_gain(model, batch, sampled)
    assert gain.counted[0, :, 0].tolist() == [True, True] + [False] * 5
    assert not gain.rewards()[0, 2:].any()
    assert gain.rewards()[0, :2].all()


def test_the_slow_weights_change_the_reward_and_no_gradient() -> None:
    """Within a group they are a constant, which the group's mean takes away."""
    config = configured("rlp.updates=1", "group_clip_norm=0")
    outcomes = []
    for shift in (0.0, 0.3):
        model, loss = prepared(config)
        with torch.no_grad():
            model.slow.weights()["lm_head.weight"][4].add_(shift)
        value, metrics = loss(model, batch_of(IDS), 0)
        outcomes.append((gradients(model, value), float(metrics["reward_nats"])))
    (first, before), (second, after) = outcomes
    assert abs(before - after) > 1e-3
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6)


def test_only_the_words_of_thoughts_learn_as_published() -> None:
    """The end vector only serves the prediction, so it moves with a weight of that alone."""
    for weight, moves in ((0.0, False), (1.0, True)):
        config = configured(f"rlp.thinking_weight={weight}", "group_clip_norm=0")
        model, loss = prepared(config)
        moved = gradients(model, loss(model, batch_of(IDS), 0)[0])
        assert ("end" in moved and bool(moved["end"].any())) is moves
        assert bool(moved["start"].any())
        assert not any(name.startswith("mixing") for name in moved)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))


def test_the_slow_weights_are_the_exponential_average() -> None:
    model = Scaled()
    copies = rlp.Remembered(model)
    expected = 2.0
    for value in (4.0, -1.0, 3.0):
        with torch.no_grad():
            model.weight.fill_(value)
        copies.follow(model, 0.9)
        expected = 0.9 * expected + 0.1 * value
    assert float(copies.weights()["weight"]) == pytest.approx(expected)
    assert list(copies.parameters()) == []
    assert set(copies.state_dict()) == {"copy_0"}


def test_a_group_is_learned_from_twice_and_then_drawn_anew() -> None:
    config = configured("rlp.updates=2", "rlp.ema_decay=0.5")
    model, loss = prepared(config)
    follow = rlp.Follow(config)
    batch = batch_of(IDS)
    groups, ratios = [], []
    for step in range(4):
        sampled, now = loss.thoughts(model, batch, step // 2)
        groups.append(sampled.tokens)
        ratios.append((now.log_probs - sampled.log_probs).detach().abs().max())
        with torch.no_grad():
            model.base.lm_head.weight.add_(0.1 * torch.sin(torch.arange(50.0))[:, None])
        follow(SimpleNamespace(step=step), model)
    assert torch.equal(groups[0], groups[1])
    assert torch.equal(groups[2], groups[3])
    assert not torch.equal(groups[0], groups[2])
    assert max(ratios[0], ratios[2]) < 1e-5
    assert min(ratios[1], ratios[3]) > 1e-3


def test_repeated_batches_come_in_a_row() -> None:
    class Numbered:
        pure = True

        def batch(self, step: int) -> dict[str, Tensor]:
            return {"input_ids": torch.tensor([step])}

    repeated = rlp.Repeated(Numbered(), 3)
    assert [int(repeated.batch(s)["input_ids"]) for s in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert repeated.pure
    assert repeated.fingerprint() != rlp.Repeated(Numbered(), 2).fingerprint()


def test_steps_raise_the_expected_gain_of_the_thoughts() -> None:
    """Thoughts of one token: the expectation over all of them is exact, by rewards as they were."""
    config = configured("positions=2", "thoughts=8", "rlp.updates=2", "base_lr=0")
    model = thinker(tiny_base(vocab=6), thought_length=1)
    rlp.predicts_from_thoughts_alone(model)
    model.base.requires_grad_(False)
    rlp.remember(model, 2)
    loss, follow = rlp.RlpLoss(config, [[model.start, model.end]]), rlp.Follow(config)
    batch = batch_of(torch.tensor([[1, 4, 2]]))
    every = torch.arange(6)[None, None, :, None].expand(1, 2, -1, -1)
    place = torch.tensor([[0, 1]])

    def thought() -> Any:
        return model.think(batch["input_ids"], positions=place, tokens=every, temperature=1.0)

    with torch.no_grad():
        first = thought()
        reward = rlp.information_gain(model, batch, first).rewards()
        before = (first.log_probs[..., 0].exp() * reward).sum(-1).mean()
    optimiser = torch.optim.SGD([model.start], lr=0.3)
    for step in range(40):
        optimiser.zero_grad()
        loss(model, batch, step)[0].backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        follow(SimpleNamespace(step=step), model)
    with torch.no_grad():
        after = (thought().log_probs[..., 0].exp() * reward).sum(-1).mean()
    assert float(after - before) > 0.1


@pytest.fixture(scope="module")
def forged(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    out = tmp_path_factory.mktemp("rlp") / "out"
    config = settings(data_config, out, tiny_checkpoint, "objective=rlp")
    return config, forge(config, tiny_checkpoint)


def test_the_phase_writes_a_model_that_predicts_from_its_thoughts_alone(forged: Any) -> None:
    config, report = forged
    model = models.load(config.out)
    assert isinstance(model, ThoughtForCausalLM)
    assert not any("copy_" in name for name in model.state_dict())
    thoughts = model.think(IDS, thoughts=2, seed=3)
    assert torch.equal(thoughts.weights, torch.ones_like(thoughts.weights))
    assert torch.equal(thoughts.mixed_logits(), thoughts.thought_logits)
    assert torch.equal(
        mix(thoughts.base_logits[:, :, None], thoughts.thought_logits, thoughts.weights),
        thoughts.thought_logits,
    )
    assert report.metrics["mixing_weight"] == 1.0


def plain_losses(config: Config, parent: Checkpoint, steps: int, again: int, out: Path) -> Any:
    """Return held-out windows, and their losses after `steps` of plain training of the parent.

    again: how many steps in a row see one batch.
    """
    tokenizer, model = models.load_tokenizer(parent), models.load(parent)

    def sources(split: str, rows: int) -> dict[str, Any]:
        return {
            kind: data.source(kind, config.data, tokenizer, split, config.seed, rows=rows)
            for kind in config.mix
        }

    mixture = data.Mixture(
        sources("train", TRAIN_ROWS), config.mix, rows=config.batch_rows,
        length_tokens=config.length_tokens, seed=config.seed, name="quietstar",
    )  # fmt: skip
    learn.train(
        model,
        learn.TrainRequest(
            batches=rlp.Repeated(mixture, again), loss_fn=learn.lm_loss, stage="alone", steps=steps,
            optim=replace(config.optim, lr=config.base_lr, clip_norm=config.group_clip_norm),
            seed=config.seed, events=EventLog(None, "quietstar"),
            out=Workspace(out, phase="quietstar", seed=config.seed, config={}),
        ),
    )  # fmt: skip
    windows = measure.held_out(config, sources("validation", 40), "validation")
    cpu = torch.device("cpu")
    return windows, measure.base_losses(model.eval(), windows, config.batch_rows, cpu)


def test_gains_by_difficulty_are_those_over_plain_training_of_equal_tokens_and_of_equal_flops(
    forged: Any, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Tenths of real text by the loss of the base; more plain training leaves less of a gain."""
    config, report = forged
    kinds, updates = list(config.mix), config.rlp.updates
    windows, plain = plain_losses(config, tiny_checkpoint, config.steps, updates, tmp_path / "a")
    model = models.load(config.out)
    record = measure.think_over(model, windows, config, "validation", torch.device("cpu"))
    rows = measure.by_decile(record, kinds, config, plain)
    assert len(rows) == len(report.tables["by difficulty"]) == 10
    for row, reported in zip(rows, report.tables["by difficulty"], strict=True):
        assert row == pytest.approx(reported, abs=1e-5)
    window_tokens = config.batch_rows * config.length_tokens
    own = replace(config, baseline=False)
    flops = own.work_tokens() - replace(own, steps=0).work_tokens()
    steps = round(flops / window_tokens)
    assert steps > 2 * config.steps
    _, longer = plain_losses(config, tiny_checkpoint, steps, 1, tmp_path / "b")
    harder = measure.by_decile(record, kinds, config, longer)
    tokens = sum(row["tokens"] for row in rows)
    over = [sum(r["gain over plain"] * r["tokens"] for r in one) / tokens for one in (rows, harder)]
    thinking = measure.stacked(record, kinds, "mixed")
    theirs = torch.cat([longer[kind].flatten() for kind in kinds]).nanmean()
    assert over[1] == pytest.approx(float(theirs) - float(np.nanmean(thinking)), abs=1e-5)
    assert over[1] < over[0]


@pytest.mark.parametrize("looks", [1, 3, 7])
def test_a_stopped_phase_run_again_ends_in_the_same_bytes(
    looks: int, forged: Any, data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config, _ = forged
    again = settings(data_config, tmp_path / "out", tiny_checkpoint, "objective=rlp")
    stopping = type("Stopping", (Workspace,), {"stop_signal": StopAt(looks)})
    out = stopping(
        again.out, phase="quietstar", seed=again.seed, config=again, parents=[tiny_checkpoint]
    )
    with pytest.raises(Interrupted):
        run(PhaseRun(again, [tiny_checkpoint], out, EventLog(None, "quietstar")))
    forge(again, tiny_checkpoint)
    assert checkpoint.open(again.out).id == checkpoint.open(config.out).id


def test_the_work_counts_the_passes_of_the_slow_weights_and_of_the_behaviour() -> None:
    shape = [
        "thought_length=4", "lookahead=2", "thoughts=3", "positions=5", "batch_rows=2",
        "length_tokens=40", "baseline=false", "steps=10",
    ]  # fmt: skip
    columns = 5 * 3 * 7
    measured = configured(*shape[:-1], "steps=0").work_tokens()
    once = 10 * 2 * (40 + columns * 4 / 3 + 40 / 3)
    twice = once + 10 * 2 * (40 + columns) / 3
    for updates, work in ((1, once), (2, twice)):
        config = configured(*shape, f"rlp.updates={updates}")
        assert config.work_tokens() - measured == pytest.approx(work)
    assert config.step_tokens() == 2 * (40 + columns)
