"""The user's own rows and tools as evaluation tasks: right means the same calls, really run."""

import json
from pathlib import Path
from typing import Any

import pytest

from agent_forge import agent
from agent_forge.agent import Call, Turn
from agent_forge.agent.tool import Result
from agent_forge.cli.scoring import _names, _settings
from agent_forge.config import DataConfig
from agent_forge.core.errors import ConfigError, DataError
from agent_forge.evaluate import EvalContext
from agent_forge.evaluate.tasks import own_rows, own_tools

TOOLS = '''
def double(number: int) -> int:
    """Double a number."""
    if number > 1000:
        raise ValueError("too large")
    return 2 * number
'''


def call(number: int) -> str:
    return f'<tool_call>{{"name": "double", "arguments": {{"number": {number}}}}}</tool_call>'


def row(question: str, *answers: str) -> dict[str, Any]:
    turns = [("user", question), *(("assistant", text) for text in answers)]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


@pytest.fixture
def context(tmp_path: Path, data_config: DataConfig) -> EvalContext:
    tools = tmp_path / "mine.py"
    tools.write_text(TOOLS)
    rows = tmp_path / "rows.jsonl"
    lines = [row("Double 4.", call(4)), row("Double 21, please.", call(21)), row("Hi!", "Hello.")]
    rows.write_text("\n".join(map(json.dumps, [*lines, lines[0]])))
    return EvalContext(data=data_config, seed=0, tools=[str(tools)], rows=[str(rows)])


def test_items_are_the_distinct_rows_of_the_files(context: EvalContext) -> None:
    items = own_rows.items("test", 10, context)
    texts = {item["messages"][0]["content"] for item in items}
    assert texts == {"Double 4.", "Double 21, please.", "Hi!"}
    assert own_tools.items("test", 10, context) == items


@pytest.mark.parametrize(
    ("reply", "right"),
    [(call(4), [1, 0, 0]), (f"{call(4)} {call(4)}", [0, 0, 0]), ("hello", [0, 0, 1]), ("", [0, 0, 0])],
)  # fmt: skip
def test_a_reply_is_right_by_its_calls_or_else_by_its_words(
    reply: str, right: list[int], context: EvalContext
) -> None:
    items = sorted(own_rows.items("test", 9, context), key=lambda one: len(str(one["messages"])))
    items = [items[i] for i in (1, 2, 0)]
    scores = [own_rows.is_right(item, reply, agent.parse_calls(reply)) for item in items]
    assert scores == list(map(bool, right))


def test_own_tools_are_right_when_they_ran_with_the_right_result(context: EvalContext) -> None:
    box = agent.Toolbox(agent.load_tools(list(context.tools)))
    item = next(
        one for one in own_tools.items("test", 9, context) if "21" in one["messages"][0]["content"]
    )
    good = Call("double", {"number": 21})
    ran = [box.run(good)]
    assert own_tools.is_right(item, Turn("It is 42.", ran, [], True), box)
    assert not own_tools.is_right(item, Turn("It is 24.", ran, [], True), box)
    assert not own_tools.is_right(item, Turn("It is 42.", [], [], True), box)
    wrong = [box.run(Call("double", {"number": 12}))]
    assert not own_tools.is_right(item, Turn("It is 42.", wrong, [], True), box)
    assert own_tools.is_right(item, Turn("42", [Result(good, "error", True), *ran], [], True), box)
    hello = {"messages": row("Hi!", "Hello.")["messages"]}
    assert own_tools.is_right(hello, Turn("Hey", [], [], True), box)
    assert not own_tools.is_right(hello, Turn("Hey", ran, [], True), box)


def test_a_row_whose_call_cannot_run_is_named(context: EvalContext) -> None:
    box = agent.Toolbox(agent.load_tools(list(context.tools)))
    item = {"messages": row("Double 2000.", call(2000))["messages"]}
    with pytest.raises(DataError, match=r"an expected call cannot run: .*too large"):
        own_tools.is_right(item, Turn("4000", [], [], True), box)


@pytest.mark.parametrize(
    ("result", "text", "right"),
    [('{"a": 1, "b": ["x", 2.5]}', "a is 1, b are X and 2.5.", True), ('{"a": 1}', "a is 2", False),
     ("12.5", "It is 12.5.", True), ("word " * 100, "word " * 40, True)],
)  # fmt: skip
def test_a_reply_has_to_say_the_result(result: str, text: str, right: bool) -> None:
    assert own_tools.says(text, [result]) is right


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("two\n  words ", "two words"),
        ("a" * 160, "a" * 160),
        ("a" * 79 + " " + "b" * 80, "a" * 79 + " " + "b" * 80),  # 160 characters
        ("a" * 79 + " " + "b" * 81, "a" * 79),  # the word that does not fit whole is left out
        ("a" * 161, "a" * 160),  # one long word is cut, since nothing would be in any reply
    ],
)
def test_of_a_long_result_a_beginning_of_whole_words_is_enough(text: str, beginning: str) -> None:
    assert own_tools.cut(text) == beginning
    assert own_tools.says(f"It is {beginning}!", [text])
    assert not own_tools.says("It is done.", [text])


def test_without_rows_or_tools_one_line_says_what_to_name(data_config: DataConfig) -> None:
    context = EvalContext(data=data_config, seed=0)
    with pytest.raises(ConfigError, match=r"eval.rows=\[mine.jsonl\]"):
        own_rows.items("test", 1, context)
    with pytest.raises(ConfigError, match=r"tools=\[my_tools.py\]"):
        own_tools.items("test", 1, context)


def test_evaluation_without_names_leaves_out_what_needs_settings_or_packages() -> None:
    names = _names("")
    assert {"text", "tools", "memory", "reasoning", "persona"} <= set(names)
    assert not {"bfcl", "bfcl_strict", "own_rows", "own_tools", "schemas"} & set(names)
    assert _names("schemas, own_rows") == ["schemas", "own_rows"]


def test_the_command_takes_tools_and_rows() -> None:
    settings = _settings(["tools=[a.py]", "eval.rows=[b.jsonl,c.jsonl]"], None)
    assert settings.tools == ["a.py"]
    assert settings.eval.rows == ["b.jsonl", "c.jsonl"]
