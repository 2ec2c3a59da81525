"""The training fifth of the Berkeley Function Calling Leaderboard's sets, as rows to learn.

Read from the wheel of bfcl-eval where it is installed (`data.bfcl`); the other entries are never
trained on. Each argument takes its first acceptable value. Irrelevant questions get a plain answer.
"""

from collections.abc import Mapping
from typing import Any

from agent_forge.core.seeds import numpy_generator
from agent_forge.data import bfcl
from agent_forge.data.synthetic.schemas import said_calls

ANSWER = "I have no tool for that."


def rows(count: int, split: str, seed: int) -> list[dict[str, Any]]:
    """Return up to `count` rows of the split, in a random order.

    Raises DataError without the package.
    """
    entries = bfcl.entries(split)
    order = numpy_generator(seed, "synthetic", "bfcl", split).permutation(len(entries))
    return [_row(entries[i]) for i in order[:count]]


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    tools = {tool["function"]["name"]: tool["function"] for tool in entry["messages"][0]["tools"]}
    calls = [
        {"name": one["name"], "arguments": _arguments(one, tools.get(one["name"], {}))}
        for one in entry["expected"]
    ]
    turn = said_calls(calls) if calls else {"role": "assistant", "content": ANSWER}
    return {
        "messages": [*entry["messages"], turn], "answer": turn["content"], "calls": calls,
        "prompt_turns": len(entry["messages"]), "difficulty": min(len(calls) + 1, 5),
        "canonical": f"bfcl/{entry['id']}", "cluster": f"bfcl/{entry['id']}", "kind": entry["kind"],
    }  # fmt: skip


def _arguments(call: Mapping[str, Any], tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first acceptable values; what may be left out and is not required is left out."""
    parameters = tool.get("parameters", {})
    properties, required = parameters.get("properties", {}), parameters.get("required", ())
    return {
        name: _settled(next(one for one in options if one != ""), properties.get(name, {}))
        for name, options in call["arguments"].items()
        if "" not in options or (name in required and any(one != "" for one in options))
    }


def _settled(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return a value whose objects hold one value per key in place of acceptable ones."""
    if isinstance(value, Mapping):
        inner = schema.get("properties", {})
        return {
            key: _settled(options[0] if isinstance(options, list) and options else options,
                          inner.get(key, {}))
            for key, options in value.items()
            if not (isinstance(options, list) and "" in options)
        }  # fmt: skip
    if isinstance(value, list):
        return [_settled(one, schema.get("items", {})) for one in value]
    return value
