"""Each dialect of tool calls reads back what it writes, and what models really write."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_forge.core.errors import ConfigError, DataError
from agent_forge.data import call_dialects
from agent_forge.data.call_dialects import canonical, detect, dialect, names, spoken
from agent_forge.data.calls import BrokenCall, Call

ALL = ["functiongemma", "hermes", "llama", "mistral", "qwen_coder"]
TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from([
    "a\nb\n", '"quoted"', "it's", "back\\slash \\n", "`code`", "{nested}", "[1]", "True", "12", "",
    "</tool_call>", "<tool_call>", "[TOOL_CALLS]", "ключ 🔑", "\\u0041", "a=1, b=2", "<|python_tag|>",
])  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
CALLS = st.lists(st.builds(Call, NAMES, st.dictionaries(NAMES, VALUES, max_size=3)),
                 min_size=1, max_size=3)  # fmt: skip
KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array",
         dict: "object", type(None): "null"}  # fmt: skip


def schemas_of(calls: list[Call]) -> dict[str, Any]:
    """Return what the tools of these calls would declare."""
    return {
        call.name: {"properties": {k: {"type": KINDS[type(v)]} for k, v in call.arguments.items()}}
        for call in calls
    }


def can_be_written(name: str, calls: list[Call]) -> bool:
    """Return whether a dialect has a way to write the values: two cannot escape their own ends."""
    if name == "functiongemma":
        return "<escape>" not in str(calls)
    # Of two calls of one name with values of different types, one would be read wrongly.
    names_once = len({call.name for call in calls}) == len(calls)
    tags = r"</?(parameter|function|tool_call)"
    return name != "qwen_coder" or (names_once and re.search(tags, str(calls)) is None)


@pytest.mark.parametrize("name", ALL)
@given(calls=CALLS)
@settings(max_examples=150, deadline=None)
def test_what_a_dialect_writes_it_reads_back_exactly(name: str, calls: list[Call]) -> None:
    if not can_be_written(name, calls):
        return
    speaker = dialect(name)
    written = speaker.write(calls)
    scan = speaker.scan(written, schemas=schemas_of(calls))
    assert scan.calls == calls
    assert scan.words == ""
    around = speaker.scan(f"Let me see.\n{written}", schemas=schemas_of(calls))
    assert (around.words, around.calls) == ("Let me see.", calls)


@pytest.mark.parametrize("name", ALL)
@given(calls=CALLS, share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=150, deadline=None)
def test_no_part_of_a_call_is_completed_by_guessing(
    name: str, calls: list[Call], share: float
) -> None:
    if not can_be_written(name, calls):
        return
    speaker = dialect(name)
    written = speaker.write(calls)
    part = written[: int(share * len(written))]
    read = [c for c in speaker.scan(part, cut=True, schemas=schemas_of(calls)).calls
            if isinstance(c, Call)]  # fmt: skip
    assert read == calls[: len(read)]


PIECES = [
    "<tool_call>", "</tool_call>", "<function=f>", "</function>", "<parameter=a>", "</parameter>",
    "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<start_function_call>", "<end_function_call>",
    "<escape>", "call:f", "{", "}", "[", "]", "(", ")", "a=", "f(", '"', "'", ",", ":", "\\",
    '{"name": "f", "parameters": {}}', '{"name": "f", "arguments": {"a": 1}}', "`", "```", "<think>",
    "</think>", "\n", " ", "\ud800", "1e999", "null", "[f(a=1)]", "\0", "é",
]  # fmt: skip


@pytest.mark.parametrize("name", ALL)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=14), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_without_a_crash(name: str, parts: list[str], cut: bool) -> None:
    text = "".join(parts)
    scan = dialect(name).scan(text, cut=cut)
    assert len(scan.words) <= len(text)
    for call in scan.calls:
        if isinstance(call, BrokenCall):
            call.message.encode()
        else:
            assert dialect("hermes").scan(dialect("hermes").write([call])).calls == [call]


ROME = Call("weather", {"city": "Rome", "days": 3})
NOW = Call("now", {})
WILD = {
    "llama": [
        ("[weather(city='Rome', days=3)]", [ROME]),
        ('<|python_tag|>[weather(city="Rome", days=3), now()]<|eom_id|>', [ROME, NOW]),
        ("Sure! [weather(\n  city = 'Rome',\n  days = 3\n)]", [ROME]),
        ('{"name": "weather", "parameters": {"city": "Rome", "days": 3}}', [ROME]),
        ('{"type": "function", "name": "weather", "parameters": {"city": "Rome", "days": 3}}',
         [ROME]),
        ('{"type": "function", "function": {"name": "now", "parameters": {}}}', [NOW]),
        ('<|python_tag|>{"name": "now", "parameters": {}}; {"name": "now", "parameters": {}}',
         [NOW, NOW]),
        ('{"name": "weather", "parameters": "{\\"city\\": \\"Rome\\", \\"days\\": 3}"}', [ROME]),
        ('<function=weather>{"city": "Rome", "days": 3}</function>', [ROME]),
        ("[f(a={'b': [1, {'c': None}]}, t=true, n=null, m=-2.5)]",
         [Call("f", {"a": {"b": [1, {"c": None}]}, "t": True, "n": None, "m": -2.5})]),
        ("[say(text='it\\'s ] a \\\"trap\\\" )')]", [Call("say", {"text": "it's ] a \"trap\" )"})]),
        ("[files.read(path=\"a\")]", [Call("files.read", {"path": "a"})]),
        ("See [note(1)] and [2] for more.", []),
        ('{"name": "Bob", "age": 3}', []),
        ("Use `[weather(city='x')]` to ask.", []),
    ],
    "mistral": [
        ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome", "days": 3}}]</s>', [ROME]),
        ('[TOOL_CALLS][{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\", \\"days\\": 3}", '
         '"id": "abc123def"}, {"name": "now", "arguments": {}}]', [ROME, NOW]),
        ('[TOOL_CALLS]weather[ARGS]{"city": "Rome", "days": 3}[TOOL_CALLS]now[ARGS]{}', [ROME, NOW]),
        ('[TOOL_CALLS]now[CALL_ID]abc123def[ARGS]{}', [NOW]),
        ('I look.[TOOL_CALLS]weather{"city": "Rome", "days": 3}', [ROME]),
        ('[TOOL_CALLS][{"function": {"name": "now", "arguments": null}}]', [NOW]),
        ("The tag `[TOOL_CALLS]` begins calls.", []),
    ],
    "qwen_coder": [
        ("<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n"
         "3\n</parameter>\n</function>\n</tool_call>", [ROME]),
        ("<function=weather><parameter=city>Rome</parameter><parameter=days>3</parameter></function>",
         [ROME]),
        ("I look.\n<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\n"
         "<function=now>\n</function>\n</tool_call>", [NOW, NOW]),
        ("<tool_call><function=say>\n<parameter=text>\nprint('</parameter>')\n\n</parameter>\n"
         "</function></tool_call>", [Call("say", {"text": "print('</parameter>')\n"})]),
        ("<tool_call>\n<function=f>\n<parameter=flag>\nTrue\n</parameter>\n<parameter=list>\n"
         "['a', None]\n</parameter>\n<parameter=n>\nNone\n</parameter>\n</function>\n</tool_call>",
         [Call("f", {"flag": True, "list": ["a", None], "n": None})]),
    ],
    "functiongemma": [
        ("<start_function_call>call:weather{city:<escape>Rome<escape>,days:3}<end_function_call>",
         [ROME]),
        ("<start_function_call>call:now{}<end_function_call><start_function_call>call:now{}"
         "<end_function_call><start_function_response>", [NOW, NOW]),
        ("<start_function_call>call:f{a:{b:[1,<escape>}]\"<escape>],c:true},d:-1.5e3}"
         "<end_function_call>", [Call("f", {"a": {"b": [1, '}]"'], "c": True}, "d": -1500.0})]),
        ("<start_function_call>call:weather{ city: <escape>Rome<escape> , days: 3 }", [ROME]),
        ("<start_function_call>call:weather{city:Rome,days:3}<end_function_call>", [ROME]),
        ("<start_function_call>call:f{a:nullable, b:none ,c:Trueblue,d:true}<end_function_call>",
         [Call("f", {"a": "nullable", "b": None, "c": "Trueblue", "d": True})]),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "calls"),
    [(name, text, calls) for name, cases in WILD.items() for text, calls in cases],
)
def test_what_models_really_write_is_read(name: str, text: str, calls: list[Call]) -> None:
    assert dialect(name).scan(text).calls == calls


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llama", "[weather(city='Rome', days="), ("llama", '{"name": "f", "parameters": {"a": '),
        ("llama", "<|python_tag|>let me think"), ("llama", "[f(a=open('x'))]"),
        ("llama", "[f(a=1, b=)]"), ("llama", "[f(a='unclosed)]"),
        ("llama", '{"name": "f", "parameters": {"a": "12'),
        ("llama", "[f(a={[1]: 2})]"), ("llama", "[f(a=1, **b)]"),
        pytest.param("llama", '[f(a="' + 60 * "\\", id="backslashes without an end"),
        ("llama", "[f(a='" + 30 * "\\'"),
        pytest.param("functiongemma", f"<start_function_call>call:f{{a:{5000 * '1'}}}", id="digits"),
        ("mistral", '[TOOL_CALLS][{"name": "f", "argum'), ("mistral", "[TOOL_CALLS]f[ARGS]{\"a\": "),
        ("mistral", "[TOOL_CALLS] nothing"), ("mistral", '[TOOL_CALLS][{"arguments": {}}]'),
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": [1]}]'),
        ("qwen_coder", "<function=f>\n<parameter=a>\n12"), ("qwen_coder", "<function=f>\n"),
        ("functiongemma", "<start_function_call>call:f{a:<escape>x"),
        ("functiongemma", "<start_function_call>call:f{a 1}<end_function_call>"),
        ("functiongemma", "<start_function_call>f<end_function_call>"),
    ],
)  # fmt: skip
def test_half_a_call_is_an_error_for_the_model_and_never_run(name: str, text: str) -> None:
    scan = dialect(name).scan(text)
    assert len(scan.calls) == 1
    assert isinstance(scan.calls[0], BrokenCall)
    stored = dialect("hermes").scan(canonical(text, scan)).calls
    assert [type(call) for call in stored] == [BrokenCall]


def test_schemas_give_values_their_types_where_text_alone_does_not() -> None:
    text = (
        "<function=f><parameter=zip>00120</parameter><parameter=n>12</parameter>"
        "<parameter=maybe>null</parameter><parameter=either>7</parameter></function>"
    )
    schema = {"f": {"properties": {
        "zip": {"type": "string"}, "n": {"type": "integer"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "either": {"enum": ["7", "8"]},
    }}}  # fmt: skip
    (call,) = dialect("qwen_coder").scan(text, schemas=schema).calls
    assert isinstance(call, Call)
    assert call.arguments == {"zip": "00120", "n": 12, "maybe": None, "either": "7"}


def test_functiongemma_refuses_what_it_cannot_escape() -> None:
    with pytest.raises(DataError, match="escape"):
        dialect("functiongemma").write([Call("f", {"a": "x<escape>y"})])


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ '<start_function_call>call:' }}", "functiongemma"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("{{ '<tool_call>\n<function=' + name }}", "qwen_coder"),
        ("<tools></tools> within <tool_call></tool_call> XML tags", "hermes"),
        ("{{ '<|python_tag|>' }}", "llama"),
        ("<|im_start|>{{ message.content }}", "hermes"),
        (None, "hermes"),
    ],
)
def test_the_dialect_is_seen_in_the_chat_template(template: str | None, name: str) -> None:
    assert detect(template) == name


@pytest.mark.parametrize("name", ALL)
def test_kept_messages_are_hermes_and_each_dialect_says_them_its_own_way(name: str) -> None:
    stored = f"I look.\n{dialect('hermes').write([ROME, NOW])}"
    said = spoken(stored, dialect(name))
    assert canonical(said, dialect(name).scan(said)) == stored
    assert spoken("no call", dialect(name)) == "no call"
    assert canonical("no call", dialect(name).scan("no call")) == "no call"


def test_dialects_are_files_and_an_unknown_name_suggests() -> None:
    assert names() == ALL
    with pytest.raises(ConfigError, match="did you mean 'mistral'"):
        call_dialects.check_name("mistrall")
    assert call_dialects.check_name("auto") == "auto"
