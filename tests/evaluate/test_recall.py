"""Recall over sessions: right only where the newest value was stored and then called up."""

import re
from collections.abc import Callable

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge.agent import Call, format_call
from agent_forge.agent import loop as agent_loop
from agent_forge.config import DataConfig
from agent_forge.evaluate import EvalContext
from agent_forge.evaluate.tasks import recall

Prompts = list[list[int]]
FACT = re.compile(r"the code of the (.+?) is(?: now)? (\d+)\.")
QUESTION = re.compile(r"What is the code of the (.+?)\?")


def said(prompt: str) -> str:
    return prompt.rpartition("user\n")[2].partition("<|im_end|>")[0]


def uses_memory(prompt: str) -> str:
    """Answer as a model that has learned both tools."""
    if "<tool_response>" in prompt:
        result = prompt.rpartition("<tool_response>")[2].partition("</tool_response>")[0]
        return "Stored." if result == "stored" else f"It is {result.rpartition(' ')[2]}."
    if fact := FACT.search(said(prompt)):
        return format_call(Call("remember", {"about": fact[1], "fact": fact[2]}))
    question = QUESTION.search(said(prompt))
    assert question is not None
    return format_call(Call("recall", {"query": question[1]}))


def never_replaces(prompt: str) -> str:
    """Keep the first value of a fact only."""
    is_newer = " is now " in said(prompt) and "<tool_response>" not in prompt
    return "Noted." if is_newer else uses_memory(prompt)


def never_stores(prompt: str) -> str:
    return "Noted." if FACT.search(said(prompt)) else uses_memory(prompt)


@pytest.mark.parametrize(
    ("reply", "share"),
    [(uses_memory, 1.0), (never_replaces, 0.5), (never_stores, 0.0), (lambda _: "52", 0.0)],
)
def test_an_answer_counts_only_from_the_newest_stored_fact(
    reply: Callable[[str], str], share: float, tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast, data_config: DataConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def generate(_: object, prompts: Prompts, *__: object) -> Prompts:
        texts = [reply(str(tiny_tokenizer.decode(prompt))) for prompt in prompts]
        return [tiny_tokenizer.encode(text, add_special_tokens=False) for text in texts]

    monkeypatch.setattr(agent_loop.models, "generate", generate)
    monkeypatch.setattr(recall, "MAX_NEW_TOKENS", 1000)  # the tiny tokenizer spells words out
    context = EvalContext(data=data_config, seed=0)
    rows = recall.items("test", 12, context)
    scores = recall.score(tiny_llama, tiny_tokenizer, rows, context)
    assert scores[:, 0].mean() == share
    assert (scores[:, 1] == 1).all()


def test_half_of_the_items_state_an_older_value_first(data_config: DataConfig) -> None:
    rows = recall.items("test", 20, EvalContext(data=data_config, seed=0))
    assert [len(row["sessions"]) for row in rows] == [3, 4] * 10
    for row in rows[1::2]:
        stated = [FACT.search(text) for text in row["sessions"][:-1]]
        values = [fact[2] for fact in stated if fact and f" {fact[1]}?" in row["question"]]
        assert len(set(values)) == 2
        assert values[-1] == row["answer"]
