"""The loss of preferences: closed forms of its value and slope, and sums over an answer's tokens."""

import math

import pytest
import torch
from transformers import LlamaForCausalLM

from agent_forge.learn.preference import answer_log_probs, dpo_loss, reference_log_probs


def test_the_reference_itself_loses_log_two_and_is_pulled_by_half_of_beta() -> None:
    reference = torch.tensor([-3.0, -7.5])
    chosen, rejected = (reference.clone().requires_grad_() for _ in range(2))
    loss, margins = dpo_loss(chosen, rejected, reference, reference, beta=0.3)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2))
    assert margins.tolist() == [0.0, 0.0]
    assert chosen.grad is not None
    assert rejected.grad is not None
    # The mean over two pairs halves the slope of each.
    assert chosen.grad.tolist() == pytest.approx([-0.3 * 0.5 / 2] * 2)
    assert rejected.grad.tolist() == pytest.approx([0.3 * 0.5 / 2] * 2)


def test_loss_and_slope_follow_the_formula() -> None:
    chosen = torch.tensor([-2.0], requires_grad=True)
    rejected = torch.tensor([-5.0], requires_grad=True)
    loss, margins = dpo_loss(chosen, rejected, torch.tensor([-4.0]), torch.tensor([-3.0]), 0.5)
    margin = 0.5 * ((-2 + 4) - (-5 + 3))
    loss.backward()
    assert float(margins.detach()) == pytest.approx(margin)
    assert float(loss.detach()) == pytest.approx(math.log1p(math.exp(-margin)))
    assert chosen.grad is not None
    assert float(chosen.grad) == pytest.approx(-0.5 / (1 + math.exp(margin)))


def test_a_log_probability_is_the_sum_over_the_answer_whatever_stands_around(
    tiny_llama: LlamaForCausalLM,
) -> None:
    ids = torch.tensor([[5, 9, 40, 41, 42, 0, 0], [5, 9, 11, 60, 61, 62, 63]])
    labels = torch.full_like(ids, -100)
    labels[0, 2:5] = ids[0, 2:5]
    labels[1, 3:] = ids[1, 3:]
    with torch.no_grad():
        result = answer_log_probs(tiny_llama, ids, labels)
        for row, (first, last) in enumerate([(2, 5), (3, 7)]):
            alone = tiny_llama(ids[row : row + 1, :last]).logits.log_softmax(-1)[0]
            expected = sum(float(alone[i - 1, ids[row, i]]) for i in range(first, last))
            assert float(result[row]) == pytest.approx(expected, rel=1e-5)
    parts = reference_log_probs(tiny_llama, ids, labels, batch_rows=1)
    assert parts.tolist() == pytest.approx(result.tolist(), rel=1e-5)
