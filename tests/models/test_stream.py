"""A stream of tokens is the generation of one prompt, and costs nothing after it is closed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agent_forge import models
from agent_forge.core.errors import ConfigError
from tests.models.thought.test_thought import random_head, thinker

PROMPTS = [[1], [4, 8, 15, 16, 23, 42], list(range(30))]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@contextmanager
def counted(model: torch.nn.Module) -> Iterator[list[int]]:
    """Count the forward passes of a model."""
    passes: list[int] = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    yield passes
    hook.remove()


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_p": 0.9, "seed": 3}])
def test_streamed_tokens_are_those_of_generate(
    model: LlamaForCausalLM, prompt: list[int], static: bool, sampling: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 20, "stop_ids": [3, 17], **sampling}
    (expected,) = models.generate(model, [prompt], models.Decoding(static=False, **settings))
    assert (
        list(models.stream(model, prompt, models.Decoding(static=static, **settings))) == expected
    )


@pytest.mark.parametrize("static", [False, True])
def test_a_stream_runs_no_step_that_nobody_asked_for(model: LlamaForCausalLM, static: bool) -> None:
    with counted(model) as passes:
        tokens = models.stream(model, [1, 2], models.Decoding(max_new_tokens=50, static=static))
        assert not passes
        for number in range(1, 4):
            next(tokens)
            assert len(passes) == number
        tokens.close()  # type: ignore[attr-defined]
        assert len(passes) == 3


def test_a_thinking_model_streams_what_it_generates() -> None:
    model = random_head(thinker())
    prompt = [7, 8, 9]
    (expected,) = models.generate(model, [prompt], models.Decoding(max_new_tokens=6))
    assert list(models.stream(model, prompt, models.Decoding(max_new_tokens=6))) == expected
    assert model._thought_seed is None
    plain = models.generate(model.base, [prompt], models.Decoding(max_new_tokens=6))
    shut = thinker(model.base, gate_entropy_nats=None)
    assert [list(models.stream(shut, prompt, models.Decoding(max_new_tokens=6)))] == plain


def test_a_closed_stream_leaves_the_model_as_it_was(model: LlamaForCausalLM) -> None:
    model.train()
    tokens = models.stream(model, [1, 2], models.Decoding(max_new_tokens=5))
    next(tokens)
    assert torch.is_grad_enabled()
    tokens.close()  # type: ignore[attr-defined]
    assert model.training
    model.eval()


def test_what_generate_refuses_a_stream_refuses(model: LlamaForCausalLM) -> None:
    for prompt, wrong in (([], {}), ([1], {"temperature": -1.0}), ([1], {"top_p": 0.0})):
        with pytest.raises(ConfigError):
            next(models.stream(model, prompt, models.Decoding(max_new_tokens=3, **wrong)))  # type: ignore[arg-type]
    assert list(models.stream(model, [1], models.Decoding(max_new_tokens=0))) == []
