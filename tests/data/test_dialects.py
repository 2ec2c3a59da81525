"""Every field of a row is learned, or refused by name, at every level of every dialect; marks are
honoured.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from agent_forge import agent, data
from agent_forge.core.errors import DataError
from agent_forge.data import rows
from agent_forge.data.dialects import NO_EFFECT, messages
from agent_forge.data.files import read_rows, without_nulls
from agent_forge.data.marks import MARKS

CALL = {"name": "add", "arguments": {"a": 1, "b": [2, "</tool_call>"]}}
WRITTEN = agent.format_call(agent.Call(**CALL))
TOOL = {
    "name": "add",
    "description": "Add.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
ASKED, SAID = {"role": "user", "content": "1+2?"}, {"role": "assistant", "content": "3"}
CHAT = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "1+2?"}]},
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": CALL}]},
        {"role": "tool", "tool_call_id": "c", "content": "3"},
        {"role": "assistant", "content": "3"},
    ],
    "tools": [{"type": "function", "function": TOOL}],
}
OLD_CHAT = {
    "messages": [
        ASKED,
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "add", "arguments": json.dumps(CALL["arguments"])},
        },
        {"role": "function", "name": "add", "content": "3"},
        SAID,
    ],
    "functions": [TOOL],
}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "1+2?"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "3"},
    ],
    "tools": json.dumps([TOOL]),
}
ALPACA = {
    "instruction": "1+2?",
    "input": "",
    "output": "3",
    "history": [["0+1?", "1"]],
    "tools": json.dumps([TOOL]),
}
PAIR = {"question": "1+2?", "answer": "3"}
DIALECTS = {
    "chat": CHAT,
    "old chat": OLD_CHAT,
    "sharegpt": SHAREGPT,
    "alpaca": ALPACA,
    "pair": PAIR,
}


@pytest.mark.parametrize("row", [CHAT, OLD_CHAT, SHAREGPT], ids=["chat", "old chat", "sharegpt"])
def test_calls_and_results_are_written_as_the_agent_writes_them(row: dict) -> None:
    listed = {"role": "system", "content": "", "tools": [{"type": "function", "function": TOOL}]}
    assert messages(without_nulls(row)) == [
        listed, ASKED, {"role": "assistant", "content": WRITTEN},
        {"role": "tool", "content": agent.format_response("3")}, SAID,
    ]  # fmt: skip
    assert agent.parse_calls(WRITTEN) == [agent.Call(**CALL)]


def dictionaries(value: Any, path: str = "row") -> list[tuple[str, dict]]:
    """Return every object of a row that has fields of the dialect's own: not arguments, not the
    schema of a tool.
    """
    if isinstance(value, list):
        return [pair for i, item in enumerate(value) for pair in dictionaries(item, f"{path}[{i}]")]
    if not isinstance(value, dict):
        return []
    inner = [
        dictionaries(v, f"{path}.{k}")
        for k, v in value.items()
        if k not in ("arguments", "tools", "functions")
    ]
    return [(path, value), *(pair for part in inner for pair in part)]


@pytest.mark.parametrize("name", DIALECTS)
def test_an_unknown_key_at_any_level_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    levels = [path for path, _ in dictionaries(DIALECTS[name])]
    assert len(levels) >= {"chat": 8, "old chat": 6, "sharegpt": 5}.get(name, 1)
    for path in levels:
        row = json.loads(json.dumps(DIALECTS[name]))
        target = dict(dictionaries(row))[path]
        target["toolz"] = "x"
        (tmp_path / "a.jsonl").write_text(
            json.dumps({**PAIR, "question": "?"}) + "\n" + json.dumps(row) + "\n"
        )
        with pytest.raises(
            DataError, match=r"a\.jsonl, row 2: .*unknown key 'toolz'.*data\.ignore_keys"
        ):
            rows.check_source(str(tmp_path / "a.jsonl"))
        rows.check_source(str(tmp_path / "a.jsonl"), ignored=["toolz"])
    target = {**json.loads(json.dumps(DIALECTS[name])), "histroy": [["a", "b"]]}
    if name in ("alpaca", "pair"):
        with pytest.raises(DataError, match="did you mean 'history'"):
            messages(target)


def test_a_call_of_sharegpt_is_checked_as_one_of_openai() -> None:
    row = {"conversations": [{"from": "function_call", "value": json.dumps({**CALL, "toolz": 1})}]}
    with pytest.raises(DataError, match="unknown key 'toolz'"):
        messages(row)


def test_keys_without_effect_change_nothing() -> None:
    for name, row in DIALECTS.items():
        assert messages({**row, **dict.fromkeys(NO_EFFECT, "x")}) == messages(row), name


def test_history_context_and_system_prompts_are_learned() -> None:
    history = messages(
        {**ALPACA, "system": "Be brief.", "input": "in digits", "tools": None} | {"tools": []}
    )
    assert history == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "0+1?"},
        {"role": "assistant", "content": "1"}, {"role": "user", "content": "1+2?\n\nin digits"},
        SAID,
    ]  # fmt: skip
    dolly = messages(
        {"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada", "category": "qa"}
    )
    assert dolly[0]["content"] == "Who?\n\nAda wrote it."
    assert messages({**PAIR, "context": "Sums."})[0]["content"] == "Sums.\n\n1+2?"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_learned_as_thoughts(key: str) -> None:
    expected = "<think>\nOne and two.\n</think>\n\n3"
    for row in (
        {"messages": [ASKED, {**SAID, key: "One and two."}]},
        {**PAIR, key: "One and two."},
    ):
        assert messages(row)[-1]["content"] == expected
    with pytest.raises(DataError, match="only an assistant"):
        messages({"messages": [{**ASKED, key: "x"}, SAID]})


@pytest.mark.parametrize(
    "mark",
    [{"train": False}, {"training": 0}, {"weight": 0}, {"loss_weight": 0.0}, {"loss": False},
     {"loss_mask": 0}, {"label": False}, {"mask": True}, {"masked": 1}, {"ignore": True},
     {"train": "false"}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("speaks", ["role", "from"])
def test_a_turn_marked_as_not_to_be_learned_is_not(
    mark: dict, speaks: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    names = (
        ("messages", "role", "content") if speaks == "role" else ("conversations", "from", "value")
    )
    turns = [{names[1]: "user", names[2]: "q"}, {names[1]: "assistant", names[2]: "wrong", **mark},
             {names[1]: "user", names[2]: "q"},
             {names[1]: "assistant", names[2]: "right"}]  # fmt: skip
    turns_read = messages({names[0]: turns})
    ids, learned = data.encode_chat(tiny_tokenizer, turns_read)
    assert (
        tiny_tokenizer.decode([i for i, m in zip(ids, learned, strict=True) if m])
        == "right<|im_end|>"
    )
    whole = messages({names[0]: [dict(turn) for turn in turns[2:]], **mark})
    assert not any(data.encode_chat(tiny_tokenizer, whole)[1])
    for row in ({**ALPACA, **mark}, {**PAIR, **mark}):
        assert not rows.is_learned(messages(row), ("assistant",))


def test_marks_can_name_a_role_or_have_the_input_learned() -> None:
    row = {"messages": [dict(ASKED), dict(SAID)]}
    assert not rows.is_learned(messages({**row, "mask": "assistant"}), ("assistant",))
    assert rows.is_learned(messages({**row, "mask": "User"}), ("assistant",))
    assert [turn.get("learn") for turn in messages({**row, "train_on_input": True})] == [True, None]
    assert [turn.get("learn") for turn in messages({**row, "train_on_inputs": False})] == [
        None,
        None,
    ]
    assert [
        turn.get("learn") for turn in messages({"messages": [{**ASKED, "train": True}, SAID]})
    ] == [True, None]
    assert [
        turn.get("learn") for turn in messages({"messages": [{**ASKED, "weight": 1}, SAID]})
    ] == [None, None]


@pytest.mark.parametrize("key", [key for key in MARKS if key != "mask"])
def test_a_mark_that_is_no_yes_or_no_is_refused(key: str) -> None:
    with pytest.raises(DataError, match=f"'{key}' is 0.5"):
        messages({"messages": [{**ASKED, key: 0.5}, SAID]})
    with pytest.raises(DataError, match=f"'{key}' is 0.5"):
        messages({"messages": [ASKED, SAID], key: 0.5})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [ASKED, {"role": "assistant"}]},
         "turn 2 has the role 'assistant' and content of type NoneType"),
        ({"messages": [ASKED, {"role": "assistant", "content": ""}]},
         r"turn 2 \(assistant\) is empty"),
        ({**ALPACA, "output": " "}, "is empty"),
        ({**ALPACA, "history": [["a"]]}, "exchange 1 of 'history'"),
        ({**ALPACA, "images": ["a.png"]}, "has 'images': only text is learned"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "text": "x"}]}, SAID]},
         "content in parts of type image"),
        ({"messages": [ASKED, {**SAID, "content": ["3"], "tool_calls": [CALL]}]},
         "content of type list"),
        ({**CHAT, "tools": "[{"}, "'tools' is no JSON"),
        ({**CHAT, "tools": ["add"]}, "'tools' is a list of tools"),
        ({**CHAT, "functions": [TOOL]}, "both tools and functions"),
        ({"messages": [{"role": "system", "content": "A"}, ASKED, SAID], "system": "B"},
         "two system prompts"),
        ({"conversations": [{"from": "function_call", "value": "add(1)"}]},
         r"turn 1 \(function_call\) is no JSON"),
        ({"messages": [{**ASKED, "tool_calls": [CALL]}, SAID]}, "only an assistant calls tools"),
        ({"messages": [ASKED, {**SAID, "function_call": {"name": "f", "arguments": "[1]"}}]},
         "are a JSON object"),
        ({"messages": [ASKED, {"role": "assistant", "content": "a\ud800"}]},
         "half of a surrogate pair"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_as_it_stands_is_refused(row: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        messages(row)


@pytest.mark.parametrize("times", [0, 1, 2])
def test_arguments_may_be_encoded_again(times: int) -> None:
    arguments: Any = CALL["arguments"]
    for _ in range(times):
        arguments = json.dumps(arguments)
    turns_read = messages(
        {
            "messages": [
                ASKED,
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {**CALL, "arguments": arguments}}],
                },
            ]
        }
    )
    assert turns_read[1]["content"] == WRITTEN


def test_rows_without_a_turn_to_learn_are_refused_and_marked_ones_passed_over(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": [ASKED]}))
    with pytest.raises(
        DataError, match=r"row 1: no token is trained: there is no turn of assistant"
    ):
        rows.check_source(str(file))
    lines = [{**PAIR, "question": f"{i}?", "train": i % 2 == 0} for i in range(60)]
    file.write_text("\n".join(map(json.dumps, lines)))
    questions = {row["messages"][0]["content"] for row in rows.read([str(file)], "train")}
    assert questions
    assert all(int(question[:-1]) % 2 == 0 for question in questions)


def test_absent_and_null_are_the_same_in_every_file_format(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    from pyarrow import parquet

    second = {
        "messages": [{**ASKED, "weight": 1}, {**SAID, "weight": 0, "train": True}, SAID],
        "system": "Brief.",
    }
    lines = [CHAT, second, {"messages": [ASKED, {**SAID, "reasoning_content": "x"}]}]
    # a column of parquet has one type
    lines[0] = {**CHAT, "system": None, "messages": [ASKED, *CHAT["messages"][1:]]}
    lines[0]["messages"][1] = {
        "role": "assistant",
        "function_call": {"name": "f", "arguments": {"a": 1}},
    }
    lines[2]["messages"][1] = {
        **lines[2]["messages"][1],
        "function_call": {"name": "f", "arguments": {"b": 1}},
    }
    parquet.write_table(pyarrow.Table.from_pylist(lines), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "a.json").write_text(json.dumps(lines))
    stored = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert stored[1]["tools"] is None  # the nulls are really there
    assert stored[0]["messages"][1]["function_call"]["arguments"] == {"a": 1, "b": None}
    rows_read = [
        [messages(row) for _, row in read_rows(str(tmp_path / f"a.{kind}"))]
        for kind in ("jsonl", "json", "parquet")
    ]
    assert rows_read[0] == rows_read[1] == rows_read[2]
    assert [turn.get("learn") for turn in rows_read[2][1]] == [None, None, False, None]


def test_a_prompt_and_a_completion_of_messages_are_one_conversation_whose_end_is_learned() -> None:
    """TRL's conversational prompt and completion: turns of the prompt are not learned."""
    row = {"prompt": [ASKED, SAID, ASKED], "completion": [SAID]}
    turns = messages(row)
    assert [turn["content"] for turn in turns] == ["1+2?", "3", "1+2?", "3"]
    assert [turn.get("learn") for turn in turns] == [False, False, False, None]
    marked = messages({**row, "prompt": [ASKED, {**SAID, "train": True}, ASKED]})
    assert marked[1]["learn"] is True
    assert messages({**row, "train_on_input": True})[0]["learn"] is True
    with pytest.raises(DataError, match="unknown key 'score'"):
        messages({**row, "score": 1})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": json.dumps(CHAT["messages"])}, "'messages' is a list of turns, got a str"),
        ({"conversations": {"from": "gpt"}}, "'conversations' is a list of turns, got a dict"),
        ({"question": "q", "answer": ["a", "b"]}, "'answer' is text, got a list"),
        ({"instruction": 5, "output": "a"}, "'instruction' is text, got a int"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, SAID]},
            "turn 1 has content in parts of type image_url; text alone is learned",
        ),
        (
            {"messages": [ASKED, {"role": "assistant", "content": [{"type": "thinking"}]}]},
            "turn 2 has content in parts of type thinking",
        ),
    ],
)
def test_a_field_of_another_type_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        messages(row)
