"""Tools from a user's Python file: its public functions, or those that it lists in `tools = […]`.

A function's name and docstring are the tool's name and description; its annotations become the JSON
schema by pydantic, and the docstring's argument descriptions (Google, NumPy, reST and Epydoc style)
go into it. `destructive = […]` in the file names the functions that change something outside.
"""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from agent_forge.agent.tool import Tool, ToolContext, ToolError, ToolSource
from agent_forge.agent.tool_sources.schemas import plain_schema
from agent_forge.core.errors import ConfigError, ForgeError

if TYPE_CHECKING:
    from collections.abc import Iterator

LISTED, DESTRUCTIVE = "tools", "destructive"
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def file_tools(path: Path, digest: str) -> list[Tool]:
    """Run a Python file and return its tools. Raises ConfigError that names file and line."""
    module = _run_file(path, digest)
    source = ToolSource("python", str(path), digest)
    functions = _functions(module, path)
    dangerous = {_name(item) for item in getattr(module, DESTRUCTIVE, ())}
    unknown = dangerous - {_name(function) for function in functions}
    if unknown:
        raise ConfigError(f"{path}: destructive lists '{min(unknown)}', which is not a tool here")
    return [
        function_tool(function, source, destructive=_name(function) in dangerous)
        for function in functions
    ]


def function_tool(
    function: Callable[..., Any], source: ToolSource, *, destructive: bool = False
) -> Tool:
    """Return one function as a tool.

    Raises ConfigError where an argument has no name or no annotation.
    """
    try:
        from docstring_parser import parse
        from pydantic import TypeAdapter, validate_call
        from pydantic.errors import PydanticUserError
    except ImportError:
        raise ConfigError(
            f"{source}: tools of Python files need pydantic; pip install 'agent-forge[agent]'"
        ) from None

    name = _name(function)
    _check_arguments(name, function, source)
    documentation = parse(inspect.getdoc(function) or "")
    try:
        signature: Any = function
        full = TypeAdapter(signature).json_schema()
        schema = plain_schema(full, full, f"{source}: {name}")
        validated = validate_call(function)
    except (PydanticUserError, NameError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{source}: the annotations of {name} give no schema: {reason}") from None
    for part in documentation.params:
        entry = schema.get("properties", {}).get(part.arg_name)
        if entry is not None and part.description and "description" not in entry:
            entry["description"] = " ".join(part.description.split())
    texts = (documentation.short_description, documentation.long_description)
    description = " ".join(" ".join(text.split()) for text in texts if text)

    def run(arguments: dict[str, Any], context: ToolContext) -> str:
        del context
        return _call(name, validated, arguments)

    return Tool(name, description, schema, run, destructive=destructive, source=source)


def _check_arguments(name: str, function: Callable[..., Any], source: ToolSource) -> None:
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in _NAMED:
            raise ConfigError(
                f"{source}: {name} takes '{parameter}', but the arguments of a tool have names"
            )
        if parameter.annotation is inspect.Parameter.empty:
            raise ConfigError(
                f"{source}: argument '{parameter.name}' of {name} has no annotation; "
                f"write for instance {parameter.name}: str"
            )


def _call(name: str, function: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """Return what a user's function returns, as text. Raises ToolError for whatever it raises."""
    from pydantic import ValidationError
    from pydantic_core import to_json

    try:
        value = function(**arguments)
        if inspect.iscoroutine(value):
            value = _awaited(value)
    except ForgeError:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ToolError(f"{name}: '{where}': {first['msg']}") from error
    except (Exception, SystemExit) as error:  # anybody's code: what it raises is shown to the model
        raise ToolError(f"{name} failed: {type(error).__name__}: {error}") from error
    return value if isinstance(value, str) else to_json(value, fallback=str).decode()


def _awaited(coroutine: Any) -> Any:
    """Return a coroutine's value; the thread of its own allows a running loop in this one."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, coroutine).result()


def _functions(module: ModuleType, path: Path) -> list[Callable[..., Any]]:
    """Return the functions that a file offers, in the order of the file."""
    listed = getattr(module, LISTED, None)
    if listed is None:
        functions: list[Callable[..., Any]] = [
            value
            for name, value in vars(module).items()
            if inspect.isfunction(inspect.unwrap(value))  # also what a decorator wraps, as a cache
            and value.__module__ == module.__name__
            and not name.startswith("_")
        ]
    elif isinstance(listed, list | tuple):
        functions = list(listed)
    else:
        raise ConfigError(f"{path}: tools must be a list of functions, got {listed!r:.60}")
    for function in functions:
        # A partial function, a lambda and an object that can be called have no name of their own.
        named = str(getattr(function, "__name__", "")).isidentifier()
        if not callable(function) or inspect.isclass(function) or not named:
            raise ConfigError(
                f"{path}: tools holds {_kind(function)}, which is not a function with a name; "
                "write a def that calls it"
            )
    if not functions:
        raise ConfigError(f"{path} holds no public function, and no tools = […]")
    return functions


def _kind(value: Any) -> str:
    name = getattr(value, "__name__", "")
    return f"'{name}'" if name else f"an object of type {type(value).__name__}"


def _name(function: Any) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", str(function))


def _run_file(path: Path, digest: str) -> ModuleType:
    """Execute a file as a module of its own; what it imports beside it is seen, as in Python."""
    name = f"forge_tools_{digest[:16]}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks annotations up by the module's name
    try:
        with _searched(path.resolve().parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # anybody's code: one line, with its file and line
        del sys.modules[name]
        raise ConfigError(f"{_where(error, path)}: {type(error).__name__}: {error}") from error
    return module


@contextmanager
def _searched(folder: Path) -> "Iterator[None]":
    """Let imports look into `folder` as well."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _where(error: BaseException, path: Path) -> str:
    """Return the place in the user's own file where an error came up."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    own = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    frames = own or [
        f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path.resolve())
    ]
    return f"{path}:{frames[-1].lineno}" if frames else str(path)
