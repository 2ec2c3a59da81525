"""Right calls: pairs one to one, values to the character or as the leaderboard compares them."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge import agent
from agent_forge.agent import Call
from agent_forge.config import DataConfig
from agent_forge.core.errors import DataError
from agent_forge.data import bfcl as sets
from agent_forge.evaluate import EvalContext, calling
from agent_forge.evaluate.tasks import (
    abstain,
    bfcl,
    bfcl_multi_turn,
    bfcl_strict,
    copying,
    schemas,
)

SCHEMA = {
    "properties": {
        "n": {"type": "integer"}, "x": {"type": "number"}, "s": {"type": "string"},
        "b": {"type": "boolean"}, "a": {"type": "array", "items": {"type": "string"}},
        "o": {"type": "object", "properties": {"k": {"type": "string"}}},
    },
    "required": ["n"],
}  # fmt: skip


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=4, max_size=4))
def test_the_matching_is_as_large_as_the_best_of_all_pairings(table: list[list[bool]]) -> None:
    best = max(
        sum(table[row][column] for row, column in enumerate(order))
        for order in itertools.permutations(range(4))
    )
    assert calling.matching_size(4, 4, lambda row, column: table[row][column]) == best


def test_calls_are_right_in_any_order_where_a_greedy_pairing_would_fail() -> None:
    expected = [
        {"name": "f", "arguments": {"n": [1, 2]}},
        {"name": "f", "arguments": {"n": [1]}},
    ]
    calls = [Call("f", {"n": 1}), Call("f", {"n": 2})]
    assert calling.calls_right(calls, expected, {"f": SCHEMA})
    assert not calling.calls_right(calls[:1], expected, {"f": SCHEMA})
    assert not calling.calls_right([calls[1], calls[1]], expected, {"f": SCHEMA})


@pytest.mark.parametrize(
    ("argument", "value", "acceptable", "strict", "compatible"),
    [
        ("s", "-5", ["5"], False, True),
        ("s", "New York", ["new york"], False, True),
        ("s", "May 3, 2025", ["May 3 2025"], False, True),
        ("s", "Paris", ["Lima", "Paris"], True, True),
        ("s", 5, ["5"], False, False),
        ("n", 5, [5], True, True),
        ("n", 5.0, [5], False, False),
        ("n", True, [1], False, False),
        ("n", "5", [5], False, False),
        ("x", 5, [5.0], True, True),
        ("x", 5.5, [5.0], False, False),
        ("b", True, [True], True, True),
        ("b", 1, [True], False, False),
        ("a", ["b", "a"], [["a", "b"]], False, False),
        ("a", ["A"], [["a"]], False, True),
        ("o", {"k": "v"}, [{"k": ["u", "v"]}], True, True),
        ("o", {"k": "v", "z": 1}, [{"k": ["v"]}], False, False),
        ("o", {}, [{"k": ["v", ""]}], True, True),
        ("a", "data['x']", ["data['x']"], False, True),
        ("o", {}, [{"k": ["v"]}], False, False),
    ],
)
def test_values_are_compared(
    argument: str, value: Any, acceptable: list[Any], strict: bool, compatible: bool
) -> None:
    part = SCHEMA["properties"][argument]  # type: ignore[index]
    assert calling.value_right(value, acceptable, part, strict=True) is strict
    assert calling.value_right(value, acceptable, part, strict=False) is compatible


@pytest.mark.parametrize(
    ("arguments", "right"),
    [({"n": 1, "s": "a"}, True), ({"n": 1}, True), ({"s": "a"}, False),
     ({"n": 1, "s": "a", "z": 0}, False)],
)  # fmt: skip
def test_only_arguments_that_may_be_left_out_are(arguments: dict[str, Any], right: bool) -> None:
    expected = {"name": "f", "arguments": {"n": [1, ""], "s": ["a", ""]}}
    assert calling.call_right(Call("f", arguments), expected, SCHEMA) is right


@pytest.mark.parametrize("options", [[2], [2, 3], 2])
def test_a_key_inside_an_object_holds_acceptable_values_or_one_value(options: Any) -> None:
    """Some of the leaderboard's objects have no schema of their own."""
    for strict in (True, False):
        assert calling.value_right({"k": 2}, [{"k": options}], {"type": "object"}, strict=strict)
        assert not calling.value_right(
            {"k": 4}, [{"k": options}], {"type": "object"}, strict=strict
        )


def test_a_dot_in_a_name_may_be_an_underscore_for_the_leaderboard_alone() -> None:
    expected = {"name": "math.sum", "arguments": {}}
    assert calling.call_right(Call("math_sum"), expected, {}, strict=False)
    assert not calling.call_right(Call("math_sum"), expected, {}, strict=True)


# tasks


@pytest.fixture
def context(data_config: DataConfig, tiny_tokenizer: PreTrainedTokenizerFast) -> EvalContext:
    return EvalContext(data=data_config, seed=0, tokenizer=tiny_tokenizer)


Reply = Callable[[dict[str, Any]], str]


@pytest.fixture
def scored(
    monkeypatch: pytest.MonkeyPatch, context: EvalContext
) -> Callable[[Any, list[dict[str, Any]], Reply], list[float]]:
    """Return a function that scores items with a stand-in for generation, which sees each item."""

    def score(task: Any, items: list[dict[str, Any]], reply: Reply) -> list[float]:
        from agent_forge import agent

        def replies(*_: object) -> list[tuple[str, Any]]:
            texts = [reply(item) for item in items]
            return [(text, agent.parse_calls(text)) for text in texts]

        monkeypatch.setattr(calling, "replies_as_calls", replies)
        pairs = task.score(None, None, items, context)
        assert pairs.shape == (len(items), 2)
        assert np.all(pairs[:, 1] == 1)
        return list(pairs[:, 0])

    return score


def own_answer(item: dict[str, Any]) -> str:
    return str(item["messages"][item["prompt_turns"]]["content"])


@pytest.mark.parametrize("task", [schemas, copying])
def test_the_rows_own_answers_are_right_and_no_answer_is_not(
    task: Any, scored: Any, context: EvalContext
) -> None:
    items = task.items("test", 60, context)
    assert len(items) == 60
    assert scored(task, items, own_answer) == [1.0] * 60
    silent = scored(task, items, lambda _: "")
    assert silent == [float(item["kind"] == "none") for item in items]


def test_to_abstain_counts_as_much_as_to_call(scored: Any, context: EvalContext) -> None:
    items = abstain.items("test", 40, context)
    assert scored(abstain, items, own_answer) == [1.0] * 40
    assert sum(scored(abstain, items, lambda _: "No.")) == 20
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert sum(scored(abstain, items, lambda _: call)) == 20


def test_replies_are_generated_and_parsed(
    context: EvalContext,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = '<tool_call>{"name": "f", "arguments": {"n": 12}}</tool_call>'
    ids = tiny_tokenizer.encode(text, add_special_tokens=False)
    monkeypatch.setattr(calling, "generate_replies", lambda *_: [ids, ids[:-1]])
    most = len(ids) - 1  # the second reply ends because its tokens ran out
    replies = calling.replies_as_calls(tiny_llama, tiny_tokenizer, [[], []], most, context)
    assert replies == [(text, [Call("f", {"n": 12})]), (text.removesuffix("</tool_call>"), None)]


# the leaderboard's sets


def test_under_a_grammar_no_reply_has_a_broken_call(
    context: EvalContext, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A prompt without tools stays free, and a schema that no grammar can follow is named."""
    rows = [row for row in schemas.items("validation", 4, context) if row["calls"]]
    prompts = [row["messages"][: row["prompt_turns"]] for row in rows[:2]]
    odd = {"function": {"name": "odd", "parameters": {"type": "string", "pattern": "(?<=a)b"}}}
    plain = [{"role": "user", "content": "Hello"}]
    prompts += [plain, [{"role": "system", "content": "", "tools": [odd]}, *plain]]
    strict = replace(context, grammar="required")
    masks = calling.call_masks(tiny_llama, tiny_tokenizer, prompts, 130, strict)
    assert [mask is None for mask in masks] == [False, False, True, True]
    replies = calling.replies_as_calls(tiny_llama, tiny_tokenizer, prompts[:2], 130, strict)
    assert all(calls for _, calls in replies)


@pytest.fixture
def leaderboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands for the installed package, with 30 entries of each set."""
    data = tmp_path / "bfcl_eval" / "data"
    (data / "possible_answer").mkdir(parents=True)
    for kind, name in sets.SETS.items():
        rows, answers = [], []
        for i in range(30):
            properties = {
                "n": {"type": "integer"},
                "u": {"type": "tuple", "items": {"type": "float"}},
            }
            function = {
                "name": "math.f", "description": "F.",
                "parameters": {"type": "dict", "properties": properties, "required": ["n"]},
            }  # fmt: skip
            rows.append(
                {"id": f"{kind}_{i}", "question": [[{"role": "user", "content": f"F {i}"}]],
                 "function": [function]}
            )  # fmt: skip
            answers.append(
                {"id": f"{kind}_{i}", "ground_truth": [{"math.f": {"n": [i], "u": ["", [1.0]]}}]}
            )
        for file, lines in ((f"{name}.json", rows), (f"possible_answer/{name}.json", answers)):
            (data / file).write_text("\n".join(map(json.dumps, lines)))
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "bfcl_eval")])
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: spec)
    return data


@pytest.mark.usefixtures("leaderboard")
def test_the_leaderboards_schemas_become_json_schemas() -> None:
    entry = sets.entries()[0]
    (tool,) = entry["messages"][0]["tools"]
    assert tool["function"]["parameters"] == {
        "type": "object", "required": ["n"],
        "properties": {"n": {"type": "integer"},
                       "u": {"type": "array", "items": {"type": "number"}}},
    }  # fmt: skip


@pytest.mark.usefixtures("leaderboard")
def test_the_splits_of_the_leaderboard_are_disjoint_and_together_whole() -> None:
    parts = [{row["id"] for row in sets.entries(split)} for split, _ in sets.SHARES]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(sets.entries()) == 150
    assert 0.1 < len(parts[0]) / 150 < 0.3


@pytest.mark.usefixtures("leaderboard")
def test_right_calls_of_the_leaderboard_score_and_abstention_on_irrelevant_ones(
    scored: Any, context: EvalContext
) -> None:
    items = bfcl.items("whole", 150, context)

    def reply(item: dict[str, Any]) -> str:
        if item["kind"] == "irrelevance":
            return "No tool fits."
        n = item["expected"][0]["arguments"]["n"][0]
        name = "math_f" if item["kind"] == "simple" else "math.f"
        return f'<tool_call>{{"name": "{name}", "arguments": {{"n": {n}}}}}</tool_call>'

    assert sum(scored(bfcl, items, reply)) == 150
    assert sum(scored(bfcl_strict, items, reply)) == 120


@pytest.mark.usefixtures("leaderboard")
def test_the_training_fifth_becomes_rows_whose_calls_are_acceptable() -> None:
    from agent_forge.data.synthetic import bfcl as trained

    rows = trained.rows(100, "train", 0)
    assert {row["canonical"].removeprefix("bfcl/") for row in rows} == {
        row["id"] for row in sets.entries("train")
    }
    by_id = {row["id"]: row for row in sets.entries()}
    for row in rows:
        entry = by_id[row["canonical"].removeprefix("bfcl/")]
        calls = [Call(call["name"], call["arguments"]) for call in row["calls"]]
        assert bfcl.is_right(entry, "", calls, strict=True)


def test_without_the_package_one_line_says_what_to_install(
    context: EvalContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(DataError, match="pip install --no-deps bfcl-eval"):
        bfcl.items("test", 3, context)


def test_a_conversation_of_turns_counts_once_and_its_turns_have_their_limits(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    data_config: DataConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The services need bfcl-eval; what stands around them does not."""
    items, calls = [{"id": "a"}, {"id": "b"}, {"id": "c"}], []

    def answer(*given: Any) -> list[str]:
        calls.append(given)
        return ["turn"]

    def played(of: Any, reply: Any) -> list[bool]:
        assert of is items
        assert reply("talks", "boxes") == ["turn"]
        return [True, False, True]

    monkeypatch.setattr(agent, "answer_turns", answer)
    monkeypatch.setattr(bfcl_multi_turn, "played", played)
    context = EvalContext(data=data_config, seed=0, grammar="calls", batch_rows=5)
    scored = bfcl_multi_turn.score(tiny_llama, tiny_tokenizer, items, context)
    assert scored.tolist() == [[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]]
    ((model, tokenizer, talks, boxes, limits),) = calls
    assert (model, tokenizer, talks, boxes) == (tiny_llama, tiny_tokenizer, "talks", "boxes")
    assert limits == context.turn_limits(20, 256)  # 20 as on the leaderboard
