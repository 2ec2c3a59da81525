"""Reinforcement of what a model itself answers rightly: exact gradients, and what a reply is worth."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge.agent import parse_calls
from agent_forge.core.seeds import seed_for
from agent_forge.data import encode_prompt, turn_end
from agent_forge.data.synthetic import rationales, tools
from agent_forge.evaluate.engine import asked
from agent_forge.learn import reward
from agent_forge.learn.reward import (
    Questions,
    Reinforcement,
    Row,
    group_advantages,
    policy_loss,
    token_log_probs,
)


@dataclass
class Settings:
    samples: int = 3
    max_new_tokens: int = 40
    temperature: float = 0.7
    low: float = 0.1
    high: float = 0.9
    kl_weight: float = 0.1


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
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    task = Settings(samples=32, max_new_tokens=1, kl_weight=0.0)
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


def test_a_reply_is_worth_one_where_it_ends_by_itself_with_the_answer(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One row asks for a number, the other for a call."""
    called = next(
        row
        for row in tools.rows(50, "train", 0)
        if parse_calls(row["messages"][len(asked(row["messages"]))]["content"])
    )
    counted = rationales.rows(1, "train", 0)[0]

    def encoded(text: str) -> list[int]:
        return [int(i) for i in tiny_tokenizer.encode(text, add_special_tokens=False)]

    call = called["messages"][len(asked(called["messages"]))]["content"]
    settings = Settings(samples=4, max_new_tokens=max(len(encoded(call)) + 1, 60))
    right = encoded(f"It is {counted['answer']}")
    cut = (right + [right[0]] * settings.max_new_tokens)[: settings.max_new_tokens]
    cut[-len(right) :] = right  # right, but as long as a reply may be
    drawn = [
        *(right, encoded("It is 99999"), cut, encoded(call)),
        *(encoded(call), encoded(called["answer"]), encoded("no"), encoded(call)),
    ]
    asks: list[Any] = []

    def generate(model: Any, prompts: Any, decoding: Any) -> list[list[int]]:
        asks.append((model, prompts, decoding))
        return drawn

    monkeypatch.setattr(reward.models, "generate", generate)
    teacher = Reinforcement(
        [counted, called], tiny_tokenizer, tiny_llama, settings, seed=5, phase="here"
    )
    prompts, replies, rewards = teacher.sampled(tiny_llama, [counted, called], 9)
    assert rewards.tolist() == [[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]]
    end = turn_end(tiny_tokenizer)[:1]
    assert len(end) == 1
    assert replies == [[*reply, *(end if reply is not cut else [])] for reply in drawn]
    asked_of = [encode_prompt(tiny_tokenizer, asked(row["messages"])) for row in (counted, called)]
    assert prompts == [asked_of[0]] * 4 + [asked_of[1]] * 4
    ((_, sent, decoding),) = asks
    assert sent == prompts
    assert (decoding.max_new_tokens, decoding.temperature) == (settings.max_new_tokens, 0.7)
    assert (decoding.batch_rows, decoding.seed) == (8, seed_for(5, "here", "replies", 9))

    loss, metrics = teacher(tiny_llama, {"input_ids": torch.tensor([0, 1])}, 9)
    assert float(metrics["reward"]) == pytest.approx(3 / 8)
    assert float(metrics["groups_that_teach"]) == 1.0
    assert float(metrics["kl_nats"]) == pytest.approx(0.0, abs=1e-9)  # the model is the reference
    assert loss.requires_grad
    settings.high = 0.4  # the second group, half right, is left out
    _, metrics = teacher(tiny_llama, {"input_ids": torch.tensor([0, 1])}, 9)
    assert float(metrics["groups_that_teach"]) == 0.5


def test_questions_are_drawn_without_repetition_by_seed_phase_and_step() -> None:
    drawn = Questions(50, 8, 0, "one")
    batches = [drawn.batch(step)["input_ids"].tolist() for step in range(20)]
    for batch in batches:
        assert len(batch) == len(set(batch)) == 8
        assert min(batch) >= 0
        assert max(batch) < 50
    assert len({tuple(batch) for batch in batches}) == 20
    for other in (Questions(50, 8, 1, "one"), Questions(50, 8, 0, "two")):
        assert other.batch(0)["input_ids"].tolist() != batches[0]
    few = Questions(3, 8, 0, "one")
    assert sorted(few.batch(0)["input_ids"].tolist()) == [0, 1, 2]
    prints = {
        q.fingerprint()
        for q in (drawn, few, Questions(50, 7, 0, "one"), Questions(50, 8, 1, "one"))
    }
    assert len(prints) == 4


def test_a_reply_ends_with_the_first_token_of_the_turns_end(
    monkeypatch: pytest.MonkeyPatch,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    monkeypatch.setattr(reward, "turn_end", lambda _: [7, 8])
    teacher = Reinforcement([], tiny_tokenizer, tiny_llama, Settings(), seed=5, phase="here")
    assert teacher.end == [7]
