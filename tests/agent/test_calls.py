"""Tool calls as text: what is written is read back, and what models really write is read too."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_forge.agent import BrokenCall, Call, format_call, format_response, parse_calls, parse_response, scan_calls
from agent_forge.agent.calls import text_without_calls

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
WANTED = Call("calculator", {"expression": "37+58"})


@given(st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=4))
@settings(max_examples=150, deadline=None)
def test_a_formatted_call_is_read_back_exactly(arguments: dict) -> None:
    call = Call("tool", arguments)
    assert parse_calls(f"before {format_call(call)} after") == [call]


@given(
    st.text()
    | st.sampled_from(["</tool_response>", "<\\/tool_response>", "<tool_call>{}</tool_call>", "<\\\\tool_call>"])
)
@settings(max_examples=200, deadline=None)
def test_a_formatted_response_is_read_back_exactly(text: str) -> None:
    written = format_response(text)
    assert parse_response(written) == text
    assert written.count("</tool_response>") == 1
    assert "<tool_call>" not in written


def test_the_format_is_that_of_hermes() -> None:
    assert format_call(WANTED) == '<tool_call>{"name": "calculator", "arguments": {"expression": "37+58"}}</tool_call>'


def test_a_closing_tag_inside_a_string_does_not_end_the_call() -> None:
    call = Call("code", {"code": "print('</tool_call>') # <tool_call>"})
    written = format_call(call)
    assert written.count("</tool_call>") == 1
    assert json.loads(written.removeprefix("<tool_call>").removesuffix("</tool_call>"))["arguments"] == call.arguments
    raw = '<tool_call>{"name": "code", "arguments": {"code": "print(\'</tool_call>\')"}}</tool_call>'
    assert parse_calls(raw) == [Call("code", {"code": "print('</tool_call>')"})]


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "calculator", "arguments": {"expression": "37+58"}}',
        '\n{"name": "calculator", "arguments": {"expression": "37+58"}}\n',
        '{"name": "calculator", "arguments": "{\\"expression\\": \\"37+58\\"}"}',
        '{"name": "calculator", "arguments": "\\"{\\\\\\"expression\\\\\\": \\\\\\"37+58\\\\\\"}\\""}',
        '{"name": "calculator", "parameters": {"expression": "37+58"}}',
        '{"function": {"name": "calculator", "arguments": "{\\"expression\\": \\"37+58\\"}"}}',
        "{'name': 'calculator', 'arguments': {'expression': '37+58'}}",
        '{"name": "calculator", "arguments": {"expression": "37+58",},}',
        '{"name": "calculator", "arguments": {"expression": "37+58"}',
        '{"name": "calculator", "arguments": {"expression": "37+58',
        '```json\n{"name": "calculator", "arguments": {"expression": "37+58"}}\n```',
        '[{"name": "calculator", "arguments": {"expression": "37+58"}}]',
    ],
)
def test_what_models_write_is_read(body: str) -> None:
    assert parse_calls(f"<tool_call>{body}</tool_call>") == [WANTED]


def test_a_missing_closing_tag_is_tolerated() -> None:
    assert parse_calls('<tool_call>{"name": "calculator", "arguments": {"expression": "37+58"}}') == [WANTED]


@pytest.mark.parametrize(
    "body", ["", "calculate 3+4", '{"arguments": {}}', '{"name": 3}', '{"name": "a", "arguments": [1]}', "[]", "5"]
)
def test_a_broken_call_is_reported_and_never_run(body: str) -> None:
    found = scan_calls(f"<tool_call>{body}</tool_call>{format_call(WANTED)}")
    assert isinstance(found[0], BrokenCall)
    assert found[1:] == [WANTED]


def test_several_calls_keep_their_order_and_words_around_them_stay() -> None:
    other = Call("recall", {"query": "ключ 🔑"})
    text = f"Let me see. {format_call(WANTED)}\n{format_call(other)} Done."
    assert parse_calls(text) == [WANTED, other]
    assert text_without_calls(text) == "Let me see. \n Done."


def test_deeply_nested_json_does_not_crash_the_parser() -> None:
    assert parse_calls("<tool_call>" + "[" * 100_000 + "</tool_call>") == []
