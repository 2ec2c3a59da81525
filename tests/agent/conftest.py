"""A model whose replies are dictated; the loop, the tools and the text of its tokens are real."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from agent_forge.agent import Call, format_call
from agent_forge.agent import loop as agent_loop
from agent_forge.models.sampling import Decoding
from agent_forge.runtime import talker

Prompts = list[list[int]]


@pytest.fixture
def speaks(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[str], str]], list[str]]:
    """Let `reply(prompt text)` decide what the model says, in batches and token by token.

    Return the list of prompts it was shown.
    """
    seen: list[str] = []

    def install(reply: Callable[[str], str]) -> list[str]:
        def answer(prompt: list[int]) -> list[int]:
            text = str(tiny_tokenizer.decode(prompt))
            seen.append(text)
            return tiny_tokenizer.encode(reply(text), add_special_tokens=False)

        def generate(_: object, prompts: Prompts, *__: Any) -> Prompts:
            return [answer(prompt) for prompt in prompts]

        def stream(_: object, prompt: list[int], decoding: Decoding, *__: Any) -> Iterator[int]:
            yield from answer(prompt)[: decoding.max_new_tokens]

        monkeypatch.setattr(agent_loop.models, "generate", generate)
        monkeypatch.setattr(talker, "stream", stream)
        return seen

    return install


@pytest.fixture
def calculates() -> Callable[[str], str]:
    """Return a reply that calls the calculator once with the question, then says its result."""

    def reply(text: str) -> str:
        if "<tool_response>" in text:
            return text.rpartition("<tool_response>")[2].partition("</tool_response>")[0]
        question = text.rpartition("user\n")[2].partition("<|im_end|>")[0]
        return format_call(Call("calculator", {"expression": question}))

    return reply
