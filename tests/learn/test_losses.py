# ruff: noqa: ARG002 - a double has the signature of the contract
"""Losses against their definitions."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from agent_forge.anatomy import cross_entropy
from agent_forge.anatomy.cross_entropy import weighted_cross_entropy
from agent_forge.core.errors import DataError
from agent_forge.learn import chunked_cross_entropy, distill_loss, lm_loss, losses
from tests.pretend import counted_waits, pretend_accelerator


def test_lm_loss_equals_the_models_own_shifted_loss(tiny_llama: LlamaForCausalLM) -> None:
    ids = torch.randint(100, (3, 9), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :4] = -100
    ours, metrics = lm_loss(tiny_llama, {"input_ids": ids, "labels": labels}, 0)
    torch.testing.assert_close(ours, tiny_llama(input_ids=ids, labels=labels).loss)
    assert metrics == {}


def test_lm_loss_uses_the_models_training_loss_when_it_has_one() -> None:
    class Own(nn.Module):
        def training_loss(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Any]]:
            return torch.tensor(3.0), {"depth": 2}

    ids = torch.ones(1, 4, dtype=torch.long)
    loss, metrics = lm_loss(Own(), {"input_ids": ids, "labels": ids}, 0)
    assert (float(loss), metrics) == (3.0, {"depth": 2})


def test_a_batch_without_a_trained_token_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(DataError, match="step 5: no token"):
        lm_loss(tiny_llama, {"input_ids": ids, "labels": torch.full_like(ids, -100)}, 5)


def test_distillation_equals_the_kl_summed_by_hand() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    temperature = 2.0
    total = 0.0
    for b, t in mask.nonzero().tolist():
        p = [math.exp(x / temperature) for x in teacher[b, t].tolist()]
        q = [math.exp(x / temperature) for x in student[b, t].tolist()]
        total += sum(
            a / sum(p) * math.log((a / sum(p)) / (c / sum(q))) for a, c in zip(p, q, strict=True)
        )
    assert float(distill_loss(teacher, student, mask, temperature)) == pytest.approx(
        4 * total / 3, rel=1e-5
    )
    assert float(distill_loss(teacher, teacher, mask, temperature)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(DataError, match="mask is empty"):
        distill_loss(teacher, student, torch.zeros_like(mask), 1.0)


def test_losses_on_an_accelerator_are_those_of_the_cpu_and_wait_for_nothing() -> None:
    """There, every position is computed and the masked ones count 0."""
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 3, 4, 5, generator=generator)
    labels = torch.randint(5, (3, 4), generator=generator)
    labels[0, 2:], labels[2] = -100, -100
    mask = labels != -100
    plain = [losses.next_token_loss(one, labels), distill_loss(one, two, mask, 1.7)]
    with pretend_accelerator() as device:
        there = [part.to(device) for part in (one, two, labels, mask)]
        with counted_waits() as waits:
            loss = losses.next_token_loss(there[0], there[2])
            distilled = distill_loss(there[0], there[1], there[3], 1.7)
        assert waits == []
        other = [loss.cpu(), distilled.cpu()]
        nothing = distill_loss(there[0], there[1], torch.zeros_like(there[3]), 1.0).cpu()
    torch.testing.assert_close(other, plain)
    assert bool(nothing.isnan())


@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_chunked_cross_entropy_has_the_value_and_gradients_of_the_whole(chunk_tokens: int) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 7, 6, requires_grad=True), torch.randn(11, 6, requires_grad=True)
    labels = torch.randint(11, (2, 7))
    labels[0, :3] = -100
    whole = nn.functional.cross_entropy((hidden @ head.T).flatten(0, 1), labels.flatten())
    expected = torch.autograd.grad(whole, (hidden, head))
    ours = chunked_cross_entropy(hidden, head, labels, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(ours, whole)
    for result, target in zip(torch.autograd.grad(ours, (hidden, head)), expected, strict=True):
        torch.testing.assert_close(result, target)
    torch.testing.assert_close(chunked_cross_entropy(hidden, lambda x: x @ head.T, labels), whole)


@pytest.mark.parametrize(
    "trained",
    [27, 20, 4],  # labels of the 27; each way of leaving out the others comes up
)
def test_the_loss_of_a_plain_model_is_the_same_without_its_logits(
    tiny_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, trained: int
) -> None:
    ids = torch.randint(100, (3, 9), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels.view(-1)[torch.randperm(27, generator=torch.Generator().manual_seed(1))[trained:]] = -100
    whole = tiny_llama(input_ids=ids, labels=labels).loss
    expected = torch.autograd.grad(whole, list(tiny_llama.parameters()))
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 5)
    monkeypatch.setattr(tiny_llama.lm_head, "forward", None)  # whoever computes logits fails
    chunk_rows: list[int] = []
    monkeypatch.setattr(
        losses, "weighted_cross_entropy",
        lambda *a, **keys: chunk_rows.append(keys["chunk_rows"]) or weighted_cross_entropy(*a, **keys),
    )  # fmt: skip
    chunked, _ = lm_loss(tiny_llama, {"input_ids": ids, "labels": labels}, 0)
    assert chunk_rows == [0]  # cross_entropy then chooses how many
    torch.testing.assert_close(chunked, whole)
    for result, target in zip(
        torch.autograd.grad(chunked, list(tiny_llama.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(result, target, rtol=1e-4, atol=1e-6)
