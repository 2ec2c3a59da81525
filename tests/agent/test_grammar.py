"""Under a grammar every call of a random model fits its schema, on both engines' streams."""

from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge import models
from agent_forge.agent import AgentSettings, Call, Tool, scan_calls
from agent_forge.agent.grammar import token_mask
from agent_forge.core.errors import ConfigError
from agent_forge.data.chat import encode_prompt, stop_ids
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
WEATHER = Tool("weather", "Tell the weather.", SCHEMA)
NOW = Tool("now", "Tell the time.", {"type": "object", "properties": {},
                                     "additionalProperties": False})  # fmt: skip
TOKENS = 900


def check_calls(text: str) -> None:
    calls = scan_calls(text)
    assert calls
    for call in calls:
        assert isinstance(call, Call), text
        schema = SCHEMA if call.name == "weather" else NOW.parameters
        assert call.name in ("weather", "now")
        assert Draft202012Validator(schema).is_valid(call.arguments)


@pytest.mark.parametrize("seed", range(6))
def test_every_call_of_a_random_model_is_valid(
    seed: int, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    ends = stop_ids(tiny_tokenizer)
    mask = token_mask(tiny_tokenizer, [WEATHER, NOW], "required", ends, 400)
    prompt = encode_prompt(tiny_tokenizer, [{"role": "user", "content": "weather?"}])[-60:]
    tokens = list(models.stream(
        tiny_llama, prompt, max_new_tokens=400, stop_ids=ends, temperature=1.0, seed=seed,
        mask=mask,
    ))  # fmt: skip
    check_calls(str(tiny_tokenizer.decode(tokens)))


@pytest.mark.parametrize("seed", range(12))
def test_a_random_chooser_without_a_model_is_valid_too(
    seed: int, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """This is what the packed engine does with its logits."""
    ends, draws = stop_ids(tiny_tokenizer), np.random.default_rng(seed)
    mask = token_mask(tiny_tokenizer, [WEATHER], "required", ends, TOKENS)
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
    check_calls(str(tiny_tokenizer.decode(tokens)))


def test_words_stay_free_where_calls_are_not_required(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    ends = stop_ids(tiny_tokenizer)
    mask = token_mask(tiny_tokenizer, [NOW], "calls", ends, TOKENS)
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
    assert token_mask(tiny_tokenizer, [NOW], "none", [2], 9) is None
    assert token_mask(tiny_tokenizer, [], "required", [2], 9) is None
    with pytest.raises(ConfigError, match="did you mean 'required'"):
        AgentSettings.from_manifest({"grammar": "requird"})
    assert AgentSettings.from_manifest({"grammar": "calls"}).grammar == "calls"
