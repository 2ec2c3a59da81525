"""Tool calls as text: what is written is read back, and what models really write is read too."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_forge.agent import (
    BrokenCall,
    Call,
    format_call,
    format_response,
    parse_calls,
    parse_response,
    scan_calls,
)
from agent_forge.agent.calls import text_without_calls

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
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
    | st.sampled_from(
        ["</tool_response>", "<\\/tool_response>", "<tool_call>{}</tool_call>", "<\\\\tool_call>"]
    )
)
@settings(max_examples=200, deadline=None)
def test_a_formatted_response_is_read_back_exactly(text: str) -> None:
    written = format_response(text)
    assert parse_response(written) == text
    assert written.count("</tool_response>") == 1
    assert "<tool_call>" not in written


def test_the_format_is_that_of_hermes() -> None:
    assert format_call(WANTED) == (
        '<tool_call>{"name": "calculator", "arguments": {"expression": "37+58"}}</tool_call>'
    )


def test_a_closing_tag_inside_a_string_does_not_end_the_call() -> None:
    call = Call("code", {"code": "print('</tool_call>') # <tool_call>"})
    written = format_call(call)
    assert written.count("</tool_call>") == 1
    assert (
        json.loads(written.removeprefix("<tool_call>").removesuffix("</tool_call>"))["arguments"]
        == call.arguments
    )
    raw = (
        '<tool_call>{"name": "code", "arguments": {"code": "print(\'</tool_call>\')"}}</tool_call>'
    )
    assert parse_calls(raw) == [Call("code", {"code": "print('</tool_call>')"})]


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "calculator", "arguments": {"expression": "37+58"}}',
        '\n{"name": "calculator", "arguments": {"expression": "37+58"}}\n',
        '{"name": "calculator", "arguments": "{\\"expression\\": \\"37+58\\"}"}',
        '{"name": "calculator", "arguments": "\\"{\\\\\\"expression\\\\\\": '
        '\\\\\\"37+58\\\\\\"}\\""}',
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
    assert parse_calls(
        '<tool_call>{"name": "calculator", "arguments": {"expression": "37+58"}}'
    ) == [WANTED]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "calculate 3+4",
        '{"arguments": {}}',
        '{"name": 3}',
        '{"name": "a", "arguments": [1]}',
        "[]",
        "5",
    ],
)
def test_a_broken_call_is_reported_and_never_run(body: str) -> None:
    calls = scan_calls(f"<tool_call>{body}</tool_call>{format_call(WANTED)}")
    assert isinstance(calls[0], BrokenCall)
    assert calls[1:] == [WANTED]


def test_several_calls_keep_their_order_and_words_around_them_stay() -> None:
    other = Call("recall", {"query": "ключ 🔑"})
    text = f"Let me see. {format_call(WANTED)}\n{format_call(other)} Done."
    assert parse_calls(text) == [WANTED, other]
    assert text_without_calls(text) == "Let me see. \n Done."


def test_deeply_nested_json_does_not_crash_the_parser() -> None:
    assert parse_calls("<tool_call>" + "[" * 100_000 + "</tool_call>") == []


ONE, TWO = Call("a", {"x": 1}), Call("b", {})
A, B = (
    format_call(call).removeprefix("<tool_call>").removesuffix("</tool_call>")
    for call in (ONE, TWO)
)


@pytest.mark.parametrize("between", ["\n", "", ", ", ",\n", "\n\n", " "])
def test_several_calls_in_one_pair_of_tags_are_all_read(between: str) -> None:
    assert scan_calls(f"<tool_call>{A}{between}{B}</tool_call>") == [ONE, TWO]
    assert scan_calls(f"<tool_call>\n{A}{between}{B}{between}{A}\n</tool_call> so") == [
        ONE,
        TWO,
        ONE,
    ]
    assert text_without_calls(f"Well <tool_call>{A}{between}{B}</tool_call> so") == "Well  so"


def test_what_follows_a_call_and_is_none_is_an_error_beside_it() -> None:
    calls = scan_calls(f"<tool_call>{A}\nand more</tool_call>")
    assert calls[0] == ONE
    assert isinstance(calls[1], BrokenCall)
    # A surplus brace and the end of a fence are tolerated.
    assert scan_calls(f"<tool_call>{A}}}\n```</tool_call>") == [ONE]


@given(
    st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=3), st.floats(0, 1, exclude_max=True)
)
@settings(max_examples=150, deadline=None)
def test_nothing_runs_of_a_call_that_the_token_limit_cut_off(arguments: dict, share: float) -> None:
    written = format_call(Call("tool", arguments))
    part = written[: int(share * len(written))]
    for whole, calls in (("", []), (format_call(ONE), [ONE])):
        assert parse_calls(f"{whole} {part}", cut=True) == calls
    value = written.removesuffix("</tool_call>")
    # The JSON itself is incomplete: it is never completed by guessing, with or without the limit.
    if len(part) < len(value):
        assert parse_calls(part) == []


def test_a_cut_off_call_is_an_error_for_the_model() -> None:
    for cut in (False, True):
        (broken,) = scan_calls(
            '<tool_call>{"name": "calculator", "arguments": {"expression": "12+3', cut=cut
        )
        assert isinstance(broken, BrokenCall)
        assert "cut off" in broken.message


@pytest.mark.parametrize(
    "text",
    [
        "I could say `{call}`.", "``{call}``", "```json\n{call}\n```", "```\n{call}",
        "<think>{call}</think>",
        "<think>Perhaps {call}", "First {call} perhaps.</think>", "<think>`</think> `{call}`",
    ],
)  # fmt: skip
def test_a_quoted_call_is_text(text: str) -> None:
    assert scan_calls(text.replace("{call}", format_call(ONE))) == []
    both = f"{text.replace('{call}', format_call(ONE))}\n</think>```\n" + format_call(TWO)
    assert ONE not in scan_calls(both)


@pytest.mark.parametrize(
    ("before", "call"),
    [
        ("Press ` first. ", ONE), ("Press ` first. ", Call("code", {"code": "`ls` `"})),
        ("`x` and `` ` `` ", ONE),
        ("<think>`hm</think>", ONE), ("", Call("code", {"code": "</think> ``` <think>"})),
        ("```\nx\n```\n", ONE),
        ("a </think> ", Call("code", {"code": "</think>"})),
    ],
)  # fmt: skip
def test_a_call_beside_quotes_is_run(before: str, call: Call) -> None:
    assert scan_calls(f"{before}{format_call(call)} then") == [call]


@pytest.mark.parametrize(
    "body",
    [
        r'{"name": "a\ud83d", "arguments": {}}', r'{"name": "a", "arguments": {"x": ["\ude00"]}}',
        r'{"name": "a", "arguments": {"\ud800": 1}}',
        r'{"name": "a", "arguments": "{\"x\": \"\\ud800\"}"}',
        '{"name": "a", "arguments": {"x": NaN}}', '{"name": "a", "arguments": {"x": 1e999}}',
        "{'name': 'a', 'arguments': {'x': {1, 2}}}", "{'name': 'a', 'arguments': {1: 2}}",
    ],
)  # fmt: skip
def test_what_no_tool_could_take_is_an_error_for_the_model(body: str) -> None:
    (broken,) = scan_calls(f"<tool_call>{body}</tool_call>")
    assert isinstance(broken, BrokenCall)
    broken.message.encode()  # does not raise: the model can be shown the message
    assert parse_calls(
        r'<tool_call>{"name": "a", "arguments": {"x": "\ud83d\ude00"}}</tool_call>'
    ) == [Call("a", {"x": "😀"})]


PIECES = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", "`", "```", "json\n", A, B, "{", "}", "[",
    "]", '"', "'", ",",
    ":", "\\", "\\ud800", "\n", " ", "\ud800", '"name"', '"arguments"', "null", "1e999", "0" * 5000,
    "(1, {2})", "\0", "é",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=14), st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_text_is_read_without_a_crash_and_gives_calls_that_can_be_written(
    parts: list[str], cut: bool
) -> None:
    text = "".join(parts)
    for call in scan_calls(text, cut=cut):
        if isinstance(call, BrokenCall):
            call.message.encode()
        else:
            assert parse_calls(format_call(call)) == [call]
            format_call(call).encode()
    assert len(text_without_calls(text)) <= len(text)
