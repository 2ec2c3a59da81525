"""Objective task_thoughts: verified rationales, exact policy gradients, and the phase end to end."""

import copy
import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge import checkpoint, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import DataConfig
from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError
from agent_forge.core.events import EventLog
from agent_forge.data.synthetic import rationales
from agent_forge.evaluate.engine import last_word
from agent_forge.learn.reward import (
    Questions,
    Reinforcement,
    Row,
    group_advantages,
    policy_loss,
    token_log_probs,
)
from agent_forge.phases import PhaseRun
from agent_forge.phases.quietstar import Config, task_thoughts
from agent_forge.phases.quietstar.run import run

TINY = [
    "objective=task_thoughts", "batch_rows=2", "length_tokens=96", "task.rows=40", "task.steps=2",
    "task.reinforce_steps=2", "task.items=2", "task.samples=3", "task.max_new_tokens=6",
    "task.measure_items=4", "measure.shown=1", "measure.samples=50", "runtime.device=cpu",
    "optim.warmup_steps=0",
]  # fmt: skip


def config_for(data_config: DataConfig, out: Path, parent: Checkpoint, *more: str) -> Config:
    config = compose("quietstar", Config, [*TINY, f"out={out}", f"sources=[{parent.path}]", *more])
    return dataclasses.replace(config, data=data_config)


def forge(config: Config, parent: Checkpoint) -> Any:
    out = Workspace(
        config.out, phase="quietstar", seed=config.seed, config=config, parents=[parent]
    )
    return run(PhaseRun(config, [parent], out, EventLog(None, "quietstar")))


def test_every_thought_is_right_step_by_step_and_ends_in_the_answer() -> None:
    rows = rationales.rows(300, "train", 3)
    assert {row["kind"] for row in rows} == {"sums", "products", "cups", "stories"}
    for row in rows:
        question, steps = row["messages"][0]["content"], row["thought"].split("; ")
        reply = row["messages"][1]["content"]
        assert reply == f"<think>{row['thought']}</think> {row['answer']}"
        assert last_word(reply) == row["answer"]
        if row["kind"] == "cups":
            state = dict(re.findall(r"([A-E]) (\w+)(?:,|\. Swap)", question))
            swaps = re.findall(r"Swap ([A-E]) and ([A-E])\.", question)
            for (one, other), step in zip(swaps, steps, strict=True):
                state[one], state[other] = state[other], state[one]
                assert step == " ".join(f"{cup} {ball}" for cup, ball in state.items())
            assert state[question.split("under ")[1].strip("?")] == row["answer"]
            continue
        for step in steps:
            one, sign, other, result = re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+)", step).groups()  # type: ignore[union-attr]
            value = {"+": int(one) + int(other), "-": int(one) - int(other),
                     "*": int(one) * int(other)}[sign]  # fmt: skip
            assert value == int(result)
        assert steps[-1].endswith(f"={row['answer']}")
    alone = rationales.plain(rows[0])
    assert alone["messages"][1]["content"] == rows[0]["answer"]
    assert alone["messages"][0] == rows[0]["messages"][0]


def test_splits_share_no_question() -> None:
    questions = [
        {row["messages"][0]["content"] for row in rationales.rows(150, split, 0)}
        for split in ("train", "validation", "test")
    ]
    assert len(set.union(*questions)) == sum(map(len, questions))


def test_a_group_teaches_between_the_shares_and_its_advantages_have_no_mean() -> None:
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    advantages = group_advantages(rewards, 0.1, 0.9)
    assert advantages[2:].abs().sum() == 0
    # One right of four: mean 1/4, deviation sqrt(3)/4, so sqrt(3) and -1/sqrt(3).
    assert advantages[0].tolist() == pytest.approx([math.sqrt(3)] + [-1 / math.sqrt(3)] * 3)
    assert advantages[1].tolist() == pytest.approx([1, 1, -1, -1])
    assert group_advantages(rewards, 0.3, 0.9)[0].abs().sum() == 0


def test_the_gradient_is_the_exact_policy_gradient() -> None:
    """A policy of probabilities 1/2, 1/4, 1/4, sampled in just these shares: 4, 2 and 2 of 8."""
    logits = torch.tensor([math.log(2), 0.0, 0.0], requires_grad=True)
    tokens = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    rewards = torch.tensor([[1.0, 0.0, 0.0]])[:, tokens]
    advantages = group_advantages(rewards, 0.0, 1.0).flatten()
    log_probs = logits.log_softmax(0)[tokens][:, None]
    loss, kl = policy_loss(log_probs, log_probs.detach(), torch.ones(8, 1), advantages, 0.5)
    loss.backward()  # type: ignore[no-untyped-call]
    # d E[r] / d logit_i = p_i (r_i - E r), E r = 1/2, and the group's deviation is 1/2.
    exact = torch.tensor([0.5 * 0.5, -0.25 * 0.5, -0.25 * 0.5]) / 0.5
    assert logits.grad is not None
    assert (-logits.grad).tolist() == pytest.approx(exact.tolist(), abs=1e-6)
    assert kl == 0


def test_the_kl_is_exact_in_the_mean_and_its_gradient_pulls_back() -> None:
    """Over all tokens, weighted by the policy, the estimate is KL(policy || reference)."""
    policy, reference = (torch.tensor(p) for p in ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5]))
    tokens = torch.tensor([0, 0, 1, 2])  # the policy's shares
    log_probs, before = policy.log()[tokens][:, None], reference.log()[tokens][:, None]
    _, kl = policy_loss(log_probs, before, torch.ones(4, 1), torch.zeros(4), 1.0)
    assert float(kl) == pytest.approx(float((policy * (policy / reference).log()).sum()))
    hidden = torch.tensor([[1.0], [0.0], [1.0], [1.0]])  # a token that was not sampled counts not
    masked, _ = policy_loss(log_probs, before, hidden, torch.zeros(4), 1.0)
    changed = log_probs.clone()
    changed[1] = -40.0
    assert policy_loss(changed, before, hidden, torch.zeros(4), 1.0)[0] == masked


def test_the_loss_of_a_single_sampled_token_is_its_own() -> None:
    log_probs, before = torch.tensor([[-1.0, -3.0]]), torch.tensor([[-1.5, -9.0]])
    loss, kl = policy_loss(log_probs, before, torch.tensor([[1.0, 0.0]]), torch.tensor([2.0]), 0.5)
    exact = math.exp(-0.5) + 0.5 - 1
    assert float(kl) == pytest.approx(exact)
    assert float(loss) == pytest.approx(0.5 * exact + 2.0)


def test_log_probabilities_are_those_of_each_reply_alone(tiny_llama: LlamaForCausalLM) -> None:
    prompts, replies = [[5, 6, 7], [8], [9, 10]], [[11, 12], [13, 14, 15, 16], [17]]
    with torch.no_grad():
        chosen, mask = token_log_probs(tiny_llama, prompts, replies)
        for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
            logits = tiny_llama(torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(reply) - 1)
            alone = [
                float(logits[place, token]) for place, token in zip(places, reply, strict=True)
            ]
            assert chosen[row][mask[row] > 0].tolist() == pytest.approx(alone, abs=1e-5)


class EvenFirst(Reinforcement):
    """Replies of one token, right where it is even: half of them before anything is learned."""

    def sampled(
        self, model: Any, rows: Sequence[Row], step: int
    ) -> tuple[list[list[int]], list[list[int]], torch.Tensor]:
        prompts, replies, _ = super().sampled(model, rows, step)
        right = [float(reply[0] % 2 == 0) for reply in replies]
        return prompts, replies, torch.tensor(right).view(len(rows), -1)


def test_reinforcement_raises_the_share_of_right_replies(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast,
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path,
) -> None:  # fmt: skip
    task = config_for(data_config, tmp_path, tiny_checkpoint).task
    task = dataclasses.replace(task, samples=32, items=2, max_new_tokens=1, kl_weight=0.0)
    reference = copy.deepcopy(tiny_llama).eval()
    loss_fn = EvenFirst(
        rationales.rows(4, "train", 0), tiny_tokenizer, reference, task, seed=0, phase="quietstar"
    )
    loss_fn.stops = []  # so that every reply has its token
    questions = Questions(4, 2, 0, "quietstar")
    assert torch.equal(questions.batch(3)["input_ids"], questions.batch(3)["input_ids"])
    optimiser = torch.optim.Adam(tiny_llama.parameters(), lr=1e-2)
    rewards = []
    for step in range(30):
        loss, metrics = loss_fn(tiny_llama, questions.batch(step), step)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        rewards.append(float(metrics["reward"]))
    assert sum(rewards[:5]) / 5 < 0.7
    assert sum(rewards[-5:]) / 5 > 0.9


def test_the_phase_compares_with_answers_alone_and_writes_a_plain_model(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Four steps teach nothing, so the parent's weights go on and the summary says so."""
    config = config_for(data_config, tmp_path / "out", tiny_checkpoint)
    report = forge(config, tiny_checkpoint)
    assert {"right_parent", "right_answers_alone", "right_rationales", "right_reinforced"} <= set(
        report.metrics
    )
    assert "the parent's weights go on" in report.summary
    assert "at equal training tokens" in report.baseline
    assert len(report.samples) == 1
    written = checkpoint.open(config.out)
    one, two = (models.load(path).state_dict() for path in (written.path, tiny_checkpoint.path))
    assert all(torch.equal(one[name], two[name]) for name in two)
    again = config_for(data_config, tmp_path / "again", tiny_checkpoint)
    assert forge(again, tiny_checkpoint).metrics == report.metrics


@pytest.mark.parametrize(("over_control", "goes_on"), [(0.1, True), (0.0, False)])
def test_the_result_goes_on_where_it_beats_the_parent_and_answers_alone(
    over_control: float,
    goes_on: bool,
    data_config: DataConfig,
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gains = iter([(0.2, 0.1), (0.2, over_control)])  # over the parent, then over the control
    monkeypatch.setattr(task_thoughts.evaluate, "paired_gain", lambda *_, **__: next(gains))
    config = config_for(data_config, tmp_path / "out", tiny_checkpoint)
    report = forge(config, tiny_checkpoint)
    parent, child = (models.load(path).state_dict() for path in (tiny_checkpoint.path, config.out))
    assert any(not torch.equal(parent[name], child[name]) for name in parent) is goes_on
    verdict = "The result goes on" if goes_on else "No gain over answers alone at equal training"
    assert verdict in report.summary


def test_shares_that_exclude_every_group_are_refused(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"task\.low=0\.9 is above task\.high=0\.1"):
        config_for(data_config, tmp_path, tiny_checkpoint, "task.low=0.9", "task.high=0.1")
