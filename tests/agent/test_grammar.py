"""Under a grammar every call of a random model fits its schema, in batches and on streams."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge import models
from agent_forge.agent import AgentSettings, Call, scan_calls
from agent_forge.agent.closing import least_bytes
from agent_forge.agent.grammar import token_mask
from agent_forge.core.errors import ConfigError
from agent_forge.data.chat import encode_prompt, stop_ids
from agent_forge.data.synthetic import schemas
from agent_forge.evaluate.calling import parameters_of
from agent_forge.models.sampling import choose

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "place": {"type": "object", "properties": {"lat": {"type": "number"}},
                  "required": ["lat"], "additionalProperties": False},
    },
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
}  # fmt: skip
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
WEATHER, NOW = {"weather": SCHEMA}, {"now": NOTHING}
TOKENS = 900


def valid_calls(text: str, tools: Mapping[str, Any]) -> int:
    """Return how many calls there are; each must be whole and fit its tool's schema."""
    calls = scan_calls(text)
    for call in calls:
        assert isinstance(call, Call), text
        assert Draft202012Validator(tools[call.name]).is_valid(call.arguments), text
    return len(calls)


@pytest.mark.parametrize("seed", range(6))
def test_every_call_of_a_random_model_is_valid(
    seed: int, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    ends = stop_ids(tiny_tokenizer)
    mask = token_mask(tiny_tokenizer, {**WEATHER, **NOW}, "required", ends, 400)
    prompt = encode_prompt(tiny_tokenizer, [{"role": "user", "content": "weather?"}])[-60:]
    decoding = models.Decoding(max_new_tokens=400, stop_ids=ends, temperature=1.0, seed=seed)
    tokens = list(models.stream(tiny_llama, prompt, decoding, mask))
    assert valid_calls(str(tiny_tokenizer.decode(tokens)), {**WEATHER, **NOW})


@pytest.mark.parametrize("seed", range(6))
def test_a_random_chooser_without_a_model_is_valid_too(
    seed: int, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """This is what the packed engine does with its logits."""
    ends, draws = stop_ids(tiny_tokenizer), np.random.default_rng(seed)
    mask = token_mask(tiny_tokenizer, WEATHER, "required", ends, TOKENS)
    assert mask is not None
    tokens: list[int] = []
    for _ in range(TOKENS):
        logits = draws.normal(size=len(tiny_tokenizer) + 8).astype(np.float32)
        logits = np.where(mask.allowed(len(logits)), logits, -np.inf)
        token = choose(logits, 1.0, 1.0, float(draws.random()))
        if token in ends:
            break
        tokens.append(token)
        mask.take(token)
    assert valid_calls(str(tiny_tokenizer.decode(tokens)), WEATHER)


@pytest.mark.parametrize(("kind", "budget"), [("required", 260), ("calls", 90)])
def test_a_batch_calls_random_schemas_validly_and_is_never_cut_off(
    kind: str,
    budget: int,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """However few tokens there are, a call that begins is ended: 14 drawn sets of tools."""
    ends = stop_ids(tiny_tokenizer)
    tools = [parameters_of(row["messages"]) for row in schemas.rows(14, "validation", 3)]
    question = encode_prompt(tiny_tokenizer, [{"role": "user", "content": "Which?"}])
    prompts = [question[i % 5 :] for i in range(len(tools))]
    masks = [token_mask(tiny_tokenizer, one, kind, ends, budget) for one in tools]
    decoding = models.Decoding(
        max_new_tokens=budget, stop_ids=ends, temperature=1.0, seed=1, batch_rows=7
    )
    replies = models.generate(tiny_llama, prompts, decoding, masks)
    counts = [
        valid_calls(str(tiny_tokenizer.decode(reply)), one)
        for reply, one in zip(replies, tools, strict=True)
    ]
    assert sum(counts) >= (len(tools) if kind == "required" else 1)
    assert kind == "calls" or min(counts) > 0


def test_a_batch_under_a_grammar_is_what_the_stream_is(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A row without a mask stays free beside the others."""
    ends = stop_ids(tiny_tokenizer)
    settings: dict[str, Any] = {"max_new_tokens": 120, "stop_ids": ends}
    question = encode_prompt(tiny_tokenizer, [{"role": "user", "content": "Which?"}])
    prompts, sets = [question, question[2:], question[1:]], [WEATHER, {}, NOW]

    def masks() -> list[Any]:
        return [token_mask(tiny_tokenizer, one, "required", ends, 120) for one in sets]

    expected = [
        list(models.stream(tiny_llama, prompt, models.Decoding(**settings), mask=mask))
        for prompt, mask in zip(prompts, masks(), strict=True)
    ]
    assert (
        models.generate(tiny_llama, prompts, models.Decoding(**settings), masks=masks()) == expected
    )
    assert expected[1] == models.generate(tiny_llama, prompts[1:2], models.Decoding(**settings))[0]


def test_the_shortest_call_is_bounded_by_its_schema() -> None:
    assert least_bytes(SCHEMA) >= len('{"city": "", "days": 0, "unit": "C"}')
    assert least_bytes(NOTHING) == 2
    assert least_bytes({"enum": ["a", "long one"]}) == len('"long one"')


def test_words_stay_free_where_calls_are_not_required(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    ends = stop_ids(tiny_tokenizer)
    mask = token_mask(tiny_tokenizer, NOW, "calls", ends, TOKENS)
    assert mask is not None
    for token in tiny_tokenizer.encode("The state of the union", add_special_tokens=False):
        assert mask.allowed(len(tiny_tokenizer))[token]
        mask.take(token)
    allowed = mask.allowed(len(tiny_tokenizer))
    assert allowed[tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert allowed[tiny_tokenizer.convert_tokens_to_ids("<tool_call>")]


def test_nothing_is_masked_without_a_grammar_or_tools(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert token_mask(tiny_tokenizer, NOW, "none", [2], 9) is None
    assert token_mask(tiny_tokenizer, {}, "required", [2], 9) is None
    with pytest.raises(ConfigError, match="did you mean 'required'"):
        AgentSettings.from_manifest({"grammar": "requird"})
    assert AgentSettings.from_manifest({"grammar": "calls"}).grammar == "calls"
