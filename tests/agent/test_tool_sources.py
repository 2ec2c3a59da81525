"""Tools that a user brings: Python files, schema files, their checks, and what a manifest keeps."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from agent_forge.agent import (
    Agent,
    AgentSettings,
    Call,
    Tool,
    Toolbox,
    ToolContext,
    kept_tools,
    load_tools,
)
from agent_forge.agent.arguments import check_arguments
from agent_forge.agent.tool import ToolError, ToolSource, call_digest
from agent_forge.agent.tool_sources.manifest import differences
from agent_forge.core.errors import ConfigError, DataError

MY_TOOLS = '''
"""Tools of a small shop."""
from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal

from pydantic import Field

SOLD: list[str] = []


class Unit(Enum):
    KILOMETRE = "km"
    MILE = "mile"


@dataclass
class Item:
    """Something in a basket."""

    name: str
    count: int = 1


def convert(value: float, unit: Unit, to: Literal["m", "ft"] = "m") -> float:
    """Convert a length.

    Exact for kilometres.

    Args:
        value: the length
            to convert
        unit: its unit
    """
    assert to == "m"
    return value * (1000 if unit is Unit.KILOMETRE else 1609.344)


async def total(basket: list[Item], day: dt.date, schema: Annotated[int, Field(ge=1)] = 1) -> dict:
    """Count a basket.

    :param basket: what is in it
    """
    return {"items": sum(item.count for item in basket), "month": day.month, "schema": schema}


def sell(name: str) -> str:
    """Sell an item."""
    if name == "air":
        raise LookupError("there is nothing to sell")
    SOLD.append(name)
    return f"sold {name}"


def _secret() -> str:
    return "no tool"


destructive = [sell]
'''


@pytest.fixture
def my_tools(tmp_path: Path) -> Path:
    path = tmp_path / "my_tools.py"
    path.write_text(MY_TOOLS)
    return path


def by_name(tools: list[Tool]) -> dict[str, Tool]:
    return {tool.name: tool for tool in tools}


def run(box: Toolbox, name: str, /, **arguments: Any) -> str:
    return box.run(Call(name, arguments)).text


def test_the_public_functions_of_a_file_become_tools_in_its_order(my_tools: Path) -> None:
    tools = load_tools([str(my_tools)])
    assert [tool.name for tool in tools] == ["convert", "total", "sell"]
    assert [tool.destructive for tool in tools] == [False, False, True]
    assert tools[0].description == "Convert a length. Exact for kilometres."
    assert tools[0].parameters == {
        "type": "object",
        "properties": {
            "value": {"type": "number", "description": "the length to convert"},
            "unit": {"enum": ["km", "mile"], "type": "string", "description": "its unit"},
            "to": {"default": "m", "enum": ["m", "ft"], "type": "string"},
        },
        "required": ["value", "unit"],
        "additionalProperties": False,
    }
    item = tools[1].parameters["properties"]["basket"]
    assert item["description"] == "what is in it"
    assert item["items"]["properties"]["count"] == {"default": 1, "type": "integer"}


def test_a_users_functions_get_the_types_that_they_name(my_tools: Path) -> None:
    box = Toolbox(load_tools([str(my_tools)]))
    assert run(box, "convert", value=3, unit="km") == "3000.0"
    answer = run(
        box, "total", basket=[{"name": "pen", "count": 3}, {"name": "cup"}], day="2026-05-01"
    )
    assert json.loads(answer) == {"items": 4, "month": 5, "schema": 1}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("convert", {"value": "x", "unit": "km"}, "convert: 'value' must be a JSON number, got \"x\""),
        ("convert", {"value": 1, "unit": "mil"}, "did you mean 'mile'"),
        ("convert", {"value": 1}, "convert needs 'unit'; its arguments: value, unit, to"),
        ("convert", {"value": 1, "unti": "km", "unit": "km"}, "no argument 'unti'; did you mean 'unit'"),
        ("total", {"basket": [{"nam": "a"}], "day": "2026-05-01"}, "needs 'name' in 'basket[0]'"),
        ("total", {"basket": [{"name": "a", "count": "b"}], "day": "2026-05-01"},
         "'basket[0].count' must be a JSON integer, got \"b\""),
        ("total", {"basket": [], "day": "2026-13-01"}, "'day' must be written as date"),
        ("total", {"basket": [], "day": "2026-01-01", "schema": 0}, "less than the minimum of 1"),
        ("total", {"basket": "a", "day": "2026-01-01"}, "'basket' must be a JSON array"),
    ],
)  # fmt: skip
def test_arguments_are_checked_deeply_with_messages_that_a_model_can_act_on(
    my_tools: Path, name: str, arguments: dict[str, Any], message: str
) -> None:
    result = Toolbox(load_tools([str(my_tools)])).run(Call(name, arguments))
    assert result.error
    assert message in result.text


def test_what_a_users_function_raises_is_shown_to_the_model(my_tools: Path) -> None:
    box = Toolbox(load_tools([str(my_tools)]), allow=["sell"], confirm=False)
    assert run(box, "sell", name="air") == (
        "error: sell failed: LookupError: there is nothing to sell"
    )


def test_a_destructive_tool_is_denied_then_waits_for_a_confirmation_of_these_arguments(
    my_tools: Path,
) -> None:
    tools = load_tools([str(my_tools)])
    pen, cup = Call("sell", {"name": "pen"}), Call("sell", {"name": "cup"})
    denied = Toolbox(tools).run(pen)
    assert "denied" in denied.text
    assert denied.confirmation is None
    box = Toolbox(tools, allow=["sell"])
    waiting = box.run(pen)
    assert waiting.error
    assert waiting.confirmation is not None
    assert waiting.confirmation.digest == call_digest(pen)
    # The confirmation of one call moves no other, and nothing ran until now.
    assert box.run(cup, waiting.confirmation.digest).confirmation is not None
    assert "denied" in Toolbox(tools).run(pen, waiting.confirmation.digest).text
    assert box.run(pen, waiting.confirmation.digest).text == "sold pen"


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_a_digest_is_that_of_the_arguments_whatever_their_order(one: dict, two: dict) -> None:
    turned = dict(reversed(one.items()))
    assert call_digest(Call("a", one)) == call_digest(Call("a", turned))
    assert (call_digest(Call("a", one)) == call_digest(Call("a", two))) == (one == two)
    assert call_digest(Call("a", one)) != call_digest(Call("b", one))


def test_allowing_an_unknown_tool_suggests(my_tools: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'sell'"):
        Toolbox(load_tools([str(my_tools)]), allow=["sel"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(x): pass", "argument 'x' of f has no annotation"),
        ("def f(*names: str): pass", "arguments of a tool have names"),
        ("def f(x: Missing): pass", r"my_tools.py:1: NameError|annotations of f"),
        ("x = 1", "no public function"),
        ("tools = 3", "tools must be a list of functions"),
        ("import functools\ndef f(a: int, b: int): pass\ntools = [functools.partial(f, b=1)]",
         "an object of type partial, which is not a function with a name; write a def"),
        ("tools = [lambda x: x]", "tools holds '<lambda>'"),
        ("class Shop:\n    def __call__(self, x: int): pass\ntools = [Shop()]",
         "an object of type Shop"),
        ("class Shop: pass\ntools = [Shop]", "tools holds 'Shop'"),
        ("def f(x: int): pass\ndestructive = ['g']", "destructive lists 'g'"),
        ("\n\nraise RuntimeError('late')", r"my_tools.py:3: RuntimeError: late"),
        ("def f(:", r"my_tools.py:1: SyntaxError"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
    ],
)  # fmt: skip
def test_a_file_that_gives_no_tools_is_refused_in_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "my_tools.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        load_tools([str(path)])
    assert "\n" not in str(raised.value)


def test_a_tool_that_leaves_the_process_only_fails(tmp_path: Path) -> None:
    path = tmp_path / "my_tools.py"
    path.write_text("import sys\ndef leave(code: int) -> int:\n    sys.exit(code)\n")
    box = Toolbox(load_tools([str(path)]))
    result = box.run(Call("leave", {"code": 3}))
    assert result.error
    assert "leave failed: SystemExit: 3" in result.text


def test_a_function_behind_a_decorator_is_a_tool_and_is_called_through_it(tmp_path: Path) -> None:
    path = tmp_path / "my_tools.py"
    path.write_text(
        "import functools\n"
        "def _loud(inner):\n"
        "    @functools.wraps(inner)\n"
        "    def outer(*args, **names):\n"
        "        return str(inner(*args, **names)) + '!'\n"
        "    return outer\n"
        "@_loud\ndef twice(x: int) -> int:\n    'Double it.'\n    return 2 * x\n"
    )
    (tool,) = load_tools([str(path)])
    assert (tool.name, tool.description) == ("twice", "Double it.")
    assert run(Toolbox([tool]), "twice", x=21) == "42!"


def test_listed_functions_are_the_tools_and_files_beside_are_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_of_shop.py").write_text("def twice(x: int) -> int:\n    return 2 * x\n")
    path = tmp_path / "shop.py"
    path.write_text(
        "from beside_of_shop import twice\ndef other(x: int) -> int:\n    return x\ntools = [twice]\n"
    )
    (tool,) = load_tools([str(path)])
    assert tool.name == "twice"
    assert run(Toolbox([tool]), "twice", x=21) == "42"


def test_an_unknown_source_suggests_and_two_tools_of_one_name_are_refused(my_tools: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'calculator'"):
        load_tools(["calculater"])
    with pytest.raises(DataError, match="No such file"):
        load_tools(["none/of/it.py"])
    other = my_tools.with_name("others.py")
    other.write_text("def sell(x: int) -> int:\n    return x\n")
    with pytest.raises(ConfigError, match="two tools are named 'sell'"):
        load_tools([str(my_tools), str(other)])
    assert len(load_tools([str(my_tools), str(my_tools), "calculator", "calculator"])) == 4


SCHEMAS: list[Any] = [
    {"type": "function", "function": {"name": "a", "description": "d", "parameters": {
        "type": "dict", "properties": {"x": {"type": "float"}, "title": {"type": "any"}}}}},
    {"name": "b", "inputSchema": {"type": "object", "properties": {}, "title": "gone"},
     "annotations": {"destructiveHint": True}},
    {"name": "c", "input_schema": {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}},
     "$defs": {"N": {"type": "object", "properties": {"next": {"$ref": "#/$defs/N"}}}}}},
]  # fmt: skip


@pytest.mark.parametrize("form", ["list", "tools", "yaml"])
def test_schemas_of_every_dialect_are_read_and_never_run(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"tools.{'yaml' if form == 'yaml' else 'json'}"
    path.write_text(json.dumps(SCHEMAS if form == "list" else {"tools": SCHEMAS}))
    tools = load_tools([str(path)])
    assert [tool.name for tool in tools] == ["a", "b", "c"]
    assert tools[0].parameters == {
        "type": "object", "properties": {"x": {"type": "number"}, "title": {}},
    }  # fmt: skip
    assert tools[1].destructive
    assert tools[1].parameters == {"type": "object", "properties": {}}
    # A schema inside itself stays a reference, and still checks.
    with pytest.raises(ToolError, match=r"'n\.next\.next' must be a JSON object"):
        check_arguments(Call("c", {"n": {"next": {"next": 3}}}), tools[2].parameters)
    result = Toolbox(tools).run(Call("a", {"x": 1.5}))
    assert result.error
    assert "nothing was run" in result.text


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"tools": [{"name": "a", "paramters": {}}]}, "did you mean 'parameters'"),
        ([{"description": "x"}], "tool 1: a tool needs a name"),
        ([{"name": "a", "parameters": {"type": "objekt"}}], "not JSON Schema"),
        ([{"name": "a", "parameters": {"type": "string"}}], "must have type object"),
        ([{"name": "a", "endpoint": "file:///etc/passwd"}], "http"),
        ([{"name": "a", "endpoint": "http://x", "method": "FETCH"}], "method must be one of"),
        ([{"name": "a", "parameters": {"properties": {"x": {"$ref": "http://e/x"}}}}], "leaves"),
        ([{"name": "a", "parameters": {"properties": {"x": {"$ref": "#/no"}}}}], "leads nowhere"),
        (3, "must hold tools"),
    ],
)
def test_a_schema_file_that_is_wrong_says_where(
    tmp_path: Path, document: Any, message: str
) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=message):
        load_tools([str(path)])


class _Echo(BaseHTTPRequestHandler):
    """Answers with what it was sent; /slow never answers, /missing is not there."""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length).decode()
        said = {
            "method": self.command, "path": self.path, "body": body and json.loads(body),
            "key": self.headers.get("X-Key"),
        }  # fmt: skip
        self.send_response(404 if self.path.startswith("/missing") else 200)
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _answer

    def log_message(self, *_: Any) -> None:
        """Keep the test's output quiet."""


@contextmanager
def echo_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_schema_with_an_endpoint_is_run_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_KEY", "k1")
    with echo_server() as url:
        path = tmp_path / "tools.json"
        parameters = {"type": "object", "properties": {"q": {"type": "array"}}}
        path.write_text(json.dumps({
            "endpoint": f"{url}/run", "headers": {"X-Key": "${SHOP_KEY}"},
            "tools": [
                {"name": "post", "parameters": parameters},
                {"name": "get", "parameters": parameters, "method": "get"},
                {"name": "lost", "parameters": parameters, "endpoint": f"{url}/missing"},
                {"name": "off", "parameters": parameters, "endpoint": "http://127.0.0.1:9/x"},
                {"name": "keyless", "parameters": parameters, "headers": {"X-Key": "${NO_KEY}"}},
            ],
        }))  # fmt: skip
        box = Toolbox(load_tools([str(path)]))
        posted = json.loads(run(box, "post", q=["é", 1]))
        assert posted == {"method": "POST", "path": "/run", "body": {"q": ["é", 1]}, "key": "k1"}
        assert json.loads(run(box, "get", q=["a b", 1]))["path"] == "/run?q=a+b&q=1"
        assert "answered 404" in run(box, "lost")
        assert "cannot be reached" in run(box, "off")
        assert "NO_KEY is not set" in run(box, "keyless")


TREES = st.recursive(
    st.integers() | st.text(max_size=3) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["a", "b", "z"]), TREES, max_size=3))
@settings(max_examples=200, deadline=None)
def test_what_passes_the_check_fits_the_schema_and_what_fits_it_passes(arguments: dict) -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "string"}}]},
            "b": {"type": ["object", "null"], "additionalProperties": {"type": "integer"}},
        },
        "required": ["a"],
        "additionalProperties": False,
    }
    if Draft202012Validator(schema).is_valid(arguments):
        assert check_arguments(Call("t", arguments), schema) == arguments
    else:
        with pytest.raises(ToolError, match=r"\At[^\n]+\Z"):
            check_arguments(Call("t", arguments), schema)


def test_a_manifest_keeps_schema_source_and_hash_and_nothing_of_it_runs_unasked(
    my_tools: Path,
) -> None:
    entries = [tool.entry() for tool in load_tools(["calculator", str(my_tools)])]
    entries = json.loads(json.dumps(entries))  # a manifest keeps them as JSON
    assert entries[0] == "calculator"
    assert entries[1]["source"]["kind"] == "python"
    my_tools.write_text(MY_TOOLS + "\nraise RuntimeError('this file must not run')\n")
    tools, notes = kept_tools(entries)
    assert [tool.name for tool in tools] == ["calculator", "convert", "total", "sell"]
    assert tools[1].run is None
    assert tools[3].destructive
    assert notes == [
        f"convert, total, sell: the code of {my_tools} is not loaded, so calls are not run; name "
        "it with --tools to load it"
    ]
    # Trust holds for the file that the checkpoint knows, not for another under its name.
    tools, notes = kept_tools(entries, trusted=True)
    assert tools[1].run is None
    assert "has changed since the checkpoint was made" in notes[0]
    my_tools.write_text(MY_TOOLS)
    tools, notes = kept_tools(entries, trusted=True)
    assert notes == []
    assert run(Toolbox(tools), "convert", value=1, unit="km") == "1000.0"


def test_a_named_file_that_differs_from_the_checkpoints_is_loaded_and_said(my_tools: Path) -> None:
    entries = [tool.entry() for tool in load_tools([str(my_tools)])]
    my_tools.write_text(MY_TOOLS.replace("Exact for kilometres.", "Exact."))
    tools, notes = kept_tools(entries, [str(my_tools), "calculator"])
    assert [tool.name for tool in tools] == ["convert", "total", "sell", "calculator"]
    assert tools[0].run is not None
    assert notes[0] == "convert: its schema differs from the one that the model has learned"
    assert "differs from the one of the checkpoint" in notes[1]
    assert len(notes) == 2


def test_a_user_is_told_what_differs_from_the_checkpoint(my_tools: Path) -> None:
    entries = [tool.entry() for tool in load_tools(["calculator", str(my_tools)])]
    assert differences(entries, load_tools([str(my_tools)])) == []
    assert "is not loaded" in differences(entries, None)[0]
    my_tools.write_text(MY_TOOLS + "\n# changed\n")
    (note,) = differences(entries, load_tools([str(my_tools)]))
    assert "differs from the one of the checkpoint" in note


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "a", "sorce": {}}, "did you mean 'source'"),
        ({"name": "a", "source": {"kind": "shell"}}, "source.kind must be one of"),
        ({"source": {"kind": "python"}}, "needs a name"),
    ],
)
def test_an_entry_that_no_manifest_has_is_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kept_tools([entry])


def test_an_agent_offers_the_tools_of_its_settings(
    my_tools: Path, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    entries = [tool.entry() for tool in load_tools(["calculator", str(my_tools)])]
    settings = AgentSettings.from_manifest({"tools": entries, "allow": ["sell"]})
    agent = Agent(tiny_llama, tiny_tokenizer, settings=settings)
    assert agent.toolbox.names == ["calculator", "convert", "total", "sell"]
    assert "schema only" in agent.toolbox.run(Call("convert", {"value": 1, "unit": "km"})).text


def test_a_tool_of_code_can_be_made_by_hand() -> None:
    tool = Tool(
        "greet", "Greet.", {"type": "object", "properties": {"name": {"type": "string"}}},
        lambda arguments, context: f"hi {arguments['name']} {context.timeout_seconds:g}",
        source=ToolSource("schema", "here"),
    )  # fmt: skip
    assert run(Toolbox([tool], ToolContext(timeout_seconds=2)), "greet", name=3) == "hi 3 2"
