"""`forge tools`: what it prints, what it refuses, and its exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent_forge.cli.app import app
from agent_forge.cli.tool_commands import read_arguments
from agent_forge.core.errors import ConfigError
from tests.agent.test_tool_sources import MY_TOOLS


@pytest.fixture
def my_tools(tmp_path: Path) -> str:
    path = tmp_path / "my_tools.py"
    path.write_text(MY_TOOLS)
    return str(path)


def forge(*words: str, text: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["tools", *words], input=text)
    return result.exit_code, result.stdout, result.stderr


def test_the_built_in_tools_are_listed_and_those_of_a_file(my_tools: str) -> None:
    code, out, _ = forge("list", "--json")
    names = [json.loads(line)["name"] for line in out.splitlines()]
    assert code == 0
    assert {"calculator", "code", "search", "remember"} <= set(names)
    code, out, _ = forge("list", my_tools, "calculator", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["name"] for row in rows] == ["convert", "total", "sell", "calculator"]
    assert rows[2]["destructive"]
    assert rows[0]["source"]["kind"] == "python"
    _, out, _ = forge("list", my_tools)
    assert "value unit [to]" in out
    assert "when allowed" in out


def test_a_check_says_what_a_model_would_miss(my_tools: str, tmp_path: Path) -> None:
    code, out, _ = forge("check", my_tools)
    assert code == 0
    assert "convert: works" in out
    assert "describe the argument 'to'" in out
    assert "describe the argument 'value'" not in out
    assert "denied unless allowed by name" in out
    weak = tmp_path / "weak.json"
    weak.write_text(json.dumps([{"name": "a b", "parameters": {
        "properties": {"x": {}}, "required": ["y"]}}]))  # fmt: skip
    _, out, _ = forge("check", str(weak), "--json")
    advice = " ".join(json.loads(out)["advice"])
    for part in ("OpenAI's API", "add a description", "type of 'x'", "'y' is required"):
        assert part in advice
    code, _, error = forge("check", "calculater")
    assert code == 2
    assert "did you mean 'calculator'" in error


def test_a_call_runs_a_tool_with_checked_arguments(my_tools: str) -> None:
    assert forge("call", "calculator", "calculator", "expression=6*7")[:2] == (0, "42\n")
    assert forge("call", my_tools, "convert", "value=3", "unit=km")[1] == "3000.0\n"
    code, out, _ = forge("call", my_tools, "convert", '{"value": 3, "unit": "km"}', "--json")
    assert (code, json.loads(out)["text"]) == (0, "3000.0")
    code, out, error = forge("call", my_tools, "convert", "value=3", "unit=mil")
    assert (code, out) == (1, "")
    assert "did you mean 'mile'" in error
    code, _, error = forge("call", my_tools, "convrt")
    assert code == 2
    assert "did you mean 'convert'" in error


def test_a_destructive_tool_needs_allowing_and_a_confirmation(my_tools: str) -> None:
    code, _, error = forge("call", my_tools, "sell", "name=pen")
    assert code == 1
    assert "denied" in error
    assert "--allow" in error
    code, _, error = forge("call", my_tools, "sell", "name=pen", "--allow")
    assert code == 2  # nobody is there to confirm
    assert 'sell({"name": "pen"}) needs a confirmation' in error
    assert forge("call", my_tools, "sell", "name=pen", "--allow", "--yes")[:2] == (0, "sold pen\n")


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["a=1", "b=x", "c=[1, 2]", "d="], {"a": 1, "b": "x", "c": [1, 2], "d": ""}),
        (["t=12"], {"t": "12"}),
        (['{"a": {"b": null}}'], {"a": {"b": None}}),
        ([], {}),
        (["e=a=b"], {"e": "a=b"}),
        (["o=12"], {"o": "12"}),
        (["o=null"], {"o": None}),
        (["m=12"], {"m": 12}),
        (["n=12", "r=12", "w=12"], {"n": "12", "r": "12", "w": 12}),
        (["l=[1]", "l2=1"], {"l": [1], "l2": 1}),
    ],
)
def test_arguments_are_read_as_the_schema_means_them(words: list[str], arguments: dict) -> None:
    schema = {
        "properties": {
            "t": {"type": "string"}, "o": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "m": {"type": ["string", "integer"]}, "n": {"enum": ["12", "x"]},
            "r": {"$ref": "#/$defs/Text"}, "w": True, "l": {"type": "array"},
        },
        "required": ["t"], "$defs": {"Text": {"type": "string"}},
    }  # fmt: skip
    assert read_arguments(words, schema) == arguments


@pytest.mark.parametrize("word", ["a", "{", '{"a": 1'])
def test_words_that_are_no_arguments_are_refused(word: str) -> None:
    with pytest.raises(ConfigError):
        read_arguments([word], {})


def test_numbers_that_json_does_not_have_are_text_in_json(tmp_path: Path) -> None:
    file = tmp_path / "back.py"
    file.write_text(
        'def back(x: float) -> float:\n    """Return x."""\n    return x\n', encoding="utf-8"
    )
    for word in ("NaN", "Infinity", "-Infinity", "1e999"):
        result = CliRunner().invoke(
            app, ["tools", "call", str(file), "back", f"x={word}", "--json"]
        )
        assert result.exit_code == 0, result.output
        line = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(name))
        assert line["arguments"]["x"] == str(float(word.lower().replace("infinity", "inf")))
