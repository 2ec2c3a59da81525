"""The Fisher diagonal is the mean over sequences of squared gradients of whole log-likelihoods."""

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

from agent_forge.learn.fisher import fisher_diagonal


def test_it_is_the_mean_of_the_squared_gradient_of_each_sequences_log_likelihood(
    tiny_llama: LlamaForCausalLM,
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(100, (length,), generator=generator) for length in (5, 9, 3)]
    tiny_llama.train()
    measured = fisher_diagonal(tiny_llama, rows)
    assert not tiny_llama.training
    assert all(parameter.grad is None for parameter in tiny_llama.parameters())
    expected = {name: torch.zeros_like(p) for name, p in tiny_llama.named_parameters()}
    for ids in rows:
        tiny_llama.zero_grad()
        logits = tiny_llama(ids[None]).logits[0, :-1]
        functional.cross_entropy(logits, ids[1:], reduction="sum").backward()
        for name, parameter in tiny_llama.named_parameters():
            assert parameter.grad is not None
            expected[name] += parameter.grad.square() / len(rows)
    assert set(measured) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(measured[name], value, rtol=1e-3, atol=1e-9)
