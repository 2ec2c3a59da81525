"""Are these the right calls? Matching what a model called with what it should have called.

An expected call is {"name", "arguments": {argument: acceptable values}}; "" among the values means
that the argument may be left out. Calls stand in any order, so a reply is right when calls and
expected calls can be paired one to one (a maximum bipartite matching, by augmenting paths; greedy
pairing can fail where a pairing exists). Two ways of comparing values:

    strict      JSON equality: text to the character, true is not 1, an integer is not 5.0
    compatible  as the Berkeley Function Calling Leaderboard: text without case, spaces and most
                punctuation, so that "-5" equals "5"; an integer may stand for a float

Source: Patil et al. 2025, "The Berkeley Function Calling Leaderboard"; Kuhn 1955 for the matching.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agent_forge.evaluate.engine import generate_replies
from agent_forge.evaluate.scores import Array, of_weight_one
from agent_forge.evaluate.task import EvalContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from agent_forge.agent import Call
    from agent_forge.models.sampling import TokenMask

Expected = Mapping[str, Any]
Schema = Mapping[str, Any]
OMITTED = ""
_log = logging.getLogger("agent_forge")
_LOOSE = re.compile(r"[ ,./\-_*^]")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,),
    "array": (list,), "object": (dict,),
}  # fmt: skip


def expected_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call as what is expected, each argument with one acceptable value."""
    return {
        "name": call["name"],
        "arguments": {name: [value] for name, value in call["arguments"].items()},
    }


def calls_right(
    calls: "Sequence[Call]",
    expected: Sequence[Expected],
    schemas: Mapping[str, Schema],
    *,
    strict: bool = True,
) -> bool:
    """Return whether `calls` and `expected` can be paired one to one.

    schemas: name of a tool -> the JSON schema of its arguments.
    """
    if len(calls) != len(expected):
        return False

    def agree(row: int, column: int) -> bool:
        one, other = calls[row], expected[column]
        return call_right(one, other, schemas.get(other["name"], {}), strict=strict)

    return matching_size(len(calls), len(expected), agree) == len(expected)


def matching_size(rows: int, columns: int, agree: Callable[[int, int], bool]) -> int:
    """Return how many rows can be paired with a column of their own that they agree with."""
    partner: dict[int, int] = {}

    def place(row: int, visited: set[int]) -> bool:
        for column in range(columns):
            if column not in visited and agree(row, column):
                visited.add(column)
                if column not in partner or place(partner[column], visited):
                    partner[column] = row
                    return True
        return False

    return sum(place(row, set()) for row in range(rows))


def call_right(call: "Call", expected: Expected, schema: Schema, *, strict: bool = True) -> bool:
    """Return whether a call is the expected one."""
    name = (lambda text: text) if strict else (lambda text: text.replace(".", "_"))
    if name(call.name) != name(expected["name"]):
        return False
    properties = schema.get("properties", {})
    options = expected["arguments"]
    if any(argument not in options for argument in call.arguments):
        return False
    for argument, acceptable in options.items():
        if argument not in call.arguments:
            if OMITTED not in acceptable or argument in schema.get("required", ()):
                return False
        elif not value_right(
            call.arguments[argument], acceptable, properties.get(argument, {}), strict=strict
        ):
            return False
    return True


def value_right(
    value: Any, acceptable: Sequence[Any], schema: Schema, *, strict: bool = True
) -> bool:
    """Return whether a value is one of the acceptable ones, and of the type that its schema says.

    Inside objects, the acceptable ones hold a list of acceptable values per key.
    """
    # The leaderboard takes the name of a variable where a schema wants another type, as long as an
    # acceptable value is such a name.
    variable = not strict and isinstance(value, str) and any(type(one) is str for one in acceptable)
    if not variable and not _typed(value, schema, strict=strict):
        return False
    return any(_same(value, one, schema, strict=strict) for one in acceptable)


def _typed(value: Any, schema: Schema, *, strict: bool) -> bool:
    declared = schema.get("type")
    types = _TYPES.get(str(declared), ())
    if isinstance(value, bool):
        return not types or bool in types
    if strict and declared == "integer":
        return isinstance(value, int)
    return not types or isinstance(value, types)


def _same(value: Any, other: Any, schema: Schema, *, strict: bool) -> bool:
    if isinstance(value, dict) and isinstance(other, Mapping):
        return _same_object(value, other, schema, strict=strict)
    if isinstance(value, list) and isinstance(other, list | tuple):
        inner = schema.get("items") or {}
        return len(value) == len(other) and all(
            _same(*pair, inner, strict=strict) for pair in zip(value, other, strict=True)
        )
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, str) and isinstance(other, str):
        return value == other if strict else loose(value) == loose(other)
    if isinstance(value, int | float) and isinstance(other, int | float):
        return value == other
    return value is None and other is None


def _same_object(
    value: Mapping[str, Any], other: Mapping[str, Any], schema: Schema, *, strict: bool
) -> bool:
    """Return whether two objects agree; an expected key holds acceptable values, or one value."""
    if any(key not in other for key in value):
        return False
    properties = schema.get("properties", {})
    for key, options in other.items():
        # A list is acceptable values or one value: either may agree.
        acceptable = [*options, options] if isinstance(options, list) else [options]
        if key not in value:
            if OMITTED not in acceptable:
                return False
        elif not any(
            _same(value[key], one, properties.get(key, {}), strict=strict) for one in acceptable
        ):
            return False
    return True


def loose(text: str) -> str:
    """Return a text as the leaderboard compares it."""
    return _LOOSE.sub("", text).lower().replace("'", '"')


def parameters_of(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return name -> JSON schema of the arguments, of the tools on the system turn."""
    tools = [tool["function"] for tool in messages[0].get("tools", ())]
    return {tool["name"]: tool.get("parameters", {}) for tool in tools}


def score_replies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[Mapping[str, Any]],
    context: EvalContext,
    *,
    max_new_tokens: int,
    is_right: "Callable[[Any, str, list[Call] | None], bool]",
) -> Array:
    """Return (n, 2): whether the reply to each item is right, and weight 1.

    items: the model sees the first "prompt_turns" of an item's "messages", or all of them.
    is_right: is told the item, the reply, and its calls (None where one is broken or cut off).
    """
    prompts = [item["messages"][: item.get("prompt_turns")] for item in items]
    replies = replies_as_calls(model, tokenizer, prompts, max_new_tokens, context)
    return of_weight_one(
        [is_right(item, *reply) for item, reply in zip(items, replies, strict=True)]
    )


def replies_as_calls(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Sequence[Sequence[Mapping[str, Any]]],
    max_new_tokens: int,
    context: EvalContext,
) -> "list[tuple[str, list[Call] | None]]":
    """Return each greedy reply and its calls; None where a call is broken or cut off.

    Nothing is run. Under context.grammar, calls are of the tools that the prompt lists.
    """
    from agent_forge import agent
    from agent_forge.agent.turn import decode_reply

    masks = call_masks(model, tokenizer, prompts, max_new_tokens, context)
    parsed: list[tuple[str, list[Call] | None]] = []
    decoding = context.decoding(max_new_tokens)
    for tokens in generate_replies(model, tokenizer, prompts, decoding, masks):
        text = decode_reply(tokenizer, tokens)
        calls = agent.scan_calls(text, cut=len(tokens) >= max_new_tokens)
        whole = [call for call in calls if isinstance(call, agent.Call)]
        parsed.append((text, whole if len(whole) == len(calls) else None))
    return parsed


def call_masks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Sequence[Sequence[Mapping[str, Any]]],
    max_new_tokens: int,
    context: EvalContext,
) -> "list[TokenMask | None]":
    """Return the grammar of each reply; None where the prompt lists no tool, or none is set.

    A warning says how many prompts list a schema that no grammar can follow; they stay free.
    """
    from agent_forge.agent.grammar import SchemaGrammarError, token_mask
    from agent_forge.data import stop_ids

    if context.grammar == "none":
        return [None] * len(prompts)
    stops, refused = stop_ids(tokenizer, model), 0
    masks: list[TokenMask | None] = []
    for prompt in prompts:
        try:
            mask = token_mask(
                tokenizer, parameters_of(prompt), context.grammar, stops, max_new_tokens
            )
        except SchemaGrammarError as error:
            mask, refused, reason = None, refused + 1, str(error)
        masks.append(mask)
    if refused:
        _log.warning("%d of %d replies are without a grammar: %s", refused, len(prompts), reason)
    return masks
