"""`forge tools`: list, check and call tools, built in or from a user's files and servers."""

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.phase_commands import Json, Verbose, examples
from agent_forge.cli.render import console, print_json, say

if TYPE_CHECKING:
    from agent_forge.agent.tool import Result, Tool
    from agent_forge.agent.toolbox import Toolbox

SOURCE_HELP = (
    "my_tools.py, tools.json, an OpenAPI file, a file with mcpServers, mcp:COMMAND, mcp:URL, or the "
    "name of a built-in tool."
)
Sources = Annotated[list[str] | None, typer.Argument(metavar="[SOURCE]...", help=SOURCE_HELP)]


def add_to(app: typer.Typer) -> None:
    """Add the group of this file."""
    group = typer.Typer(
        help="List, check and call tools: built-in ones, and your own.", no_args_is_help=True
    )
    group.command(
        "list",
        help="List the tools of files and servers; the built-in ones where none is named.",
        epilog=examples("forge tools list", "forge tools list my_tools.py --json"),
    )(list_command)
    group.command(
        "check",
        help="Load tools and say what a model would miss in them.",
        epilog=examples(
            "forge tools check my_tools.py",
            "forge tools check 'mcp:npx -y @modelcontextprotocol/server-memory'",
        ),
    )(check_command)
    group.command(
        "call",
        help="Call one tool as a model would, arguments checked.",
        epilog=examples(
            "forge tools call calculator calculator expression=6*7",
            """forge tools call my_tools.py convert '{"value": 3, "unit": "km"}'""",
        ),
    )(call_command)
    app.add_typer(group, name="tools")


def list_command(sources: Sources = None, as_json: Json = False, verbose: Verbose = False) -> None:
    """List tools."""
    with one_line_errors(verbose):
        from contextlib import ExitStack

        from agent_forge.agent.tool_sources import load_tools
        from agent_forge.agent.tool_sources.builtin import builtin_names
        from agent_forge.cli.tables import plain_table

        with ExitStack() as stack:
            tools = load_tools(sources or builtin_names(), stack)
        if as_json:
            print_json([_as_json(tool) for tool in tools])
            return
        rows = [
            {
                "tool": tool.name, "arguments": _arguments(tool),
                "runs": "not here" if tool.run is None
                else "when allowed" if tool.destructive else "yes",
                "source": str(tool.source), "description": tool.description,
            }
            for tool in tools
        ]  # fmt: skip
        console(stderr=False).print(plain_table(rows))


def check_command(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help=SOURCE_HELP)],
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Check tools. Exits 2 where they cannot be loaded; what a model would miss is only said."""
    with one_line_errors(verbose):
        from contextlib import ExitStack

        from agent_forge.agent.tool_sources import load_tools
        from agent_forge.agent.tool_sources.advice import advice

        with ExitStack() as stack:
            tools = load_tools(sources, stack)
        notes = [(tool, advice(tool)) for tool in tools]
        if as_json:
            print_json([{**_as_json(tool), "advice": lines} for tool, lines in notes])
            return
        out = console(stderr=False)
        for tool, lines in notes:
            state = "" if tool.run else " (schema only)"
            state += " (destructive: denied unless allowed by name)" if tool.destructive else ""
            say(out, f"{tool.name}: {'good' if not lines else 'works'}{state}")
            for line in lines:
                say(out, f"  {line}")
        say(out, f"{len(tools)} tools of {', '.join(dict.fromkeys(sources))}")


def call_command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP)],
    name: Annotated[str, typer.Argument(metavar="TOOL", help="The name of the tool.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Its arguments, or one JSON object."),
    ] = None,
    allow: Annotated[
        bool, typer.Option("--allow", help="Allow the tool although it is destructive.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Confirm without asking.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds that the tool may take.")
    ] = 30.0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Call a tool and print its result. Exits 1 where the tool refuses or fails."""
    with one_line_errors(verbose):
        from contextlib import ExitStack

        from agent_forge.agent.memory import Memory
        from agent_forge.agent.tool import ToolContext
        from agent_forge.agent.tool_sources import load_tools
        from agent_forge.agent.toolbox import Toolbox
        from agent_forge.core.errors import ConfigError, did_you_mean
        from agent_forge.data.calls import Call

        with ExitStack() as stack:
            tools = load_tools([source], stack)
            tool = next((tool for tool in tools if tool.name == name), None)
            if tool is None:
                names = [tool.name for tool in tools]
                raise ConfigError(
                    f"{source} has no tool '{name}'{did_you_mean(name, names)}; "
                    f"it has: {', '.join(names)}"
                )
            call = Call(name, read_arguments(arguments or [], tool.parameters))
            context = ToolContext(
                memory=Memory(), timeout_seconds=timeout, result_characters=1_000_000
            )
            box = Toolbox([tool], context, allow=[name] if allow and tool.destructive else [])
            result = _confirmed(box, box.run(call), yes)
        if as_json:
            print_json({"tool": name, "arguments": call.arguments, "error": result.error,
                        "text": result.text})  # fmt: skip
        else:
            hint = "; --allow lets it run" if tool.destructive and not allow else ""
            print(f"{result.text}{hint}", file=sys.stderr if result.error else sys.stdout)
        if result.error:
            raise typer.Exit(1)


def _confirmed(box: "Toolbox", result: "Result", yes: bool) -> "Result":
    """Return the result after a person's answer, where the call waits for one."""
    from agent_forge.core.errors import ConfigError
    from agent_forge.data.calls import Call

    if result.confirmation is None or not isinstance(result.call, Call):
        return result
    if not yes and not sys.stdin.isatty():
        raise ConfigError(f"{result.confirmation} needs a confirmation; add --yes")
    if yes or typer.confirm(f"run {result.confirmation}?"):
        return box.run(result.call, result.confirmation.digest)
    return result


def read_arguments(words: list[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a command line: one JSON object, or KEY=VALUE.

    A value is JSON where it can be read so, except where the schema takes it as text alone. Raises
    ConfigError.
    """
    from agent_forge.core.errors import ConfigError

    if len(words) == 1 and words[0].lstrip().startswith("{"):
        try:
            value = json.loads(words[0])
        except ValueError as error:
            raise ConfigError(f"the arguments are not JSON: {error}") from None
        assert isinstance(value, dict)
        return value
    arguments: dict[str, Any] = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign:
            raise ConfigError(f"'{word}' is not KEY=VALUE, nor are the arguments one JSON object")
        arguments[key] = _read_value(key, text, schema)
    return arguments


def _read_value(key: str, text: str, schema: Mapping[str, Any]) -> Any:
    """Return an argument's value: of JSON and plain text, the one that fits its schema."""
    from agent_forge.agent.arguments import fits

    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if fits(key, text, schema) and not fits(key, value, schema) else value


def _as_json(tool: "Tool") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **tool.schema()["function"],
        "destructive": tool.destructive,
        "runs": tool.run is not None,
        "source": asdict(tool.source),
    }


def _arguments(tool: "Tool") -> str:
    """Return the names of a tool's arguments; those that may be left out stand in brackets."""
    required = tool.parameters.get("required", ())
    names = tool.parameters.get("properties", {})
    return " ".join(name if name in required else f"[{name}]" for name in names) or "-"
