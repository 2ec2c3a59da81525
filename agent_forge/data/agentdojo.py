"""AgentDojo's user tasks and tools, read from the source of its wheel: schemas that nobody trained
on.

Four suites: workspace, slack, travel and banking. An entry is {"id", "kind": its suite, "messages":
the suite's tools on the system turn and the user's request, "expected": the first call of the
package's own solution}. Later calls depend on what the tools answer, so they are left out, as are
attacks, tasks that join two others, and the package's system prompt. Of a task that a later version
of the benchmark changed, the newest is read. The package is optional, and is parsed, not imported:
importing it needs the libraries of five providers. Source: MIT; Debenedetti et al. 2024,
arXiv:2406.13352.
"""

import ast
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent_forge.core.errors import DataError
from agent_forge.data.schemas import listed

SUITES = ("workspace", "slack", "travel", "banking")
WHOLE = "whole"  # every entry; none is ever trained on
SHARES = (("validation", 300), ("search", 500), ("test", 1000))
PIN = "agentdojo==0.1.35"
MISSING = f"agentdojo is not installed; pip install --no-deps {PIN} (only its source is read)"
NO_PARSER = (
    "the tools of agentdojo need docstring-parser; pip install 'agent-forge[agent]' to read them"
)
OMITTED = ""  # among acceptable values: the argument may be left out
FIRST_VERSION = (1, 0, 0)
_TYPES = {
    "str": "string", "int": "integer", "float": "number", "bool": "boolean", "dict": "object",
}  # fmt: skip
Names = Mapping[str, Any]


def installed() -> bool:
    """Return whether the package is there."""
    return _folder() is not None


def entries(split: str = WHOLE) -> list[dict[str, Any]]:
    """Return the entries of a split, or all with "whole".

    Raises DataError without the package, and for a version of it that is written otherwise.
    """
    folder = _folder()
    if folder is None:
        raise DataError(MISSING)
    try:
        functions = _functions(folder / "v1" / "tools")
        rows = [row for suite in SUITES for row in _suite(folder, suite, functions)]
    except (OSError, SyntaxError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder} cannot be read ({type(error).__name__}: {error}); "
            f"pip install --force-reinstall --no-deps {PIN}"
        ) from None
    return [row for row in rows if split in (WHOLE, split_of_entry(row["id"]))]


def split_of_entry(identity: str) -> str:
    """Return the split of an entry by the hash of its id."""
    digest = hashlib.sha256(f"agentdojo/{identity}".encode()).digest()
    bucket = int.from_bytes(digest[:4], "little") % 1000
    return next(split for split, border in SHARES if bucket < border)


def _folder() -> Path | None:
    spec = importlib.util.find_spec("agentdojo")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "default_suites"


def _parsed(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text(encoding="utf-8")).body


def _suite(folder: Path, suite: str, functions: Names) -> list[dict[str, Any]]:
    """Return the entries of one suite, each user task in its newest version."""
    declarations = {name: functions[name] for name in _tool_names(folder / "v1" / suite)}
    tools = [listed(declaration) for declaration in declarations.values()]
    newest: dict[int, tuple[tuple[int, ...], dict[str, Any]]] = {}
    for file in sorted(folder.glob(f"v*/{suite}/user_tasks.py")):
        for number, version, prompt, call in _tasks(_parsed(file)):
            if number in newest and newest[number][0] > version:
                continue
            row = {
                "id": f"{suite}/user_task_{number}", "kind": suite,
                "messages": [
                    {"role": "system", "content": "", "tools": tools},
                    {"role": "user", "content": prompt},
                ],
                "expected": [_expected(call, declarations[call["function"]]["parameters"])],
            }  # fmt: skip
            newest[number] = (version, row)
    return [newest[number][1] for number in sorted(newest)]


def _tasks(body: Sequence[ast.stmt]) -> Iterator[tuple[int, tuple[int, ...], str, dict[str, Any]]]:
    """Yield number, version, request and first call of every user task of a file."""
    shared = _constants(body, {})
    for node in body:
        version = _version(node, shared) if isinstance(node, ast.ClassDef) else None
        if not isinstance(node, ast.ClassDef) or version is None:
            continue
        own = _constants(node.body, shared)
        calls = [
            call
            for part in node.body
            if isinstance(part, ast.FunctionDef) and part.name == "ground_truth"
            for call in ast.walk(part)
            if isinstance(call, ast.Call) and _called(call) == "FunctionCall"
        ]
        first = min(calls, key=lambda call: (call.lineno, call.col_offset))
        keywords = {word.arg: _value(word.value, own) for word in first.keywords if word.arg}
        yield int(node.name.removeprefix("UserTask")), version, own["PROMPT"], keywords


def _version(node: ast.ClassDef, names: Names) -> tuple[int, ...] | None:
    """Return the version that a user task belongs to; None for a class that is not one."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Attribute) and decorator.attr == "register_user_task":
            return FIRST_VERSION
        if isinstance(decorator, ast.Call) and _called(decorator) == "update_user_task":
            return tuple(_value(decorator.args[0], names))
    return None


def _called(call: ast.Call) -> str:
    """Return the last part of the name of what is called; "" where it has no name."""
    match call.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def _constants(body: Sequence[ast.stmt], outer: Names) -> dict[str, Any]:
    """Return the names that a body gives a value that can be read without running it."""
    names = dict(outer)
    for node in body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                names.pop(name, None)  # what needs a name without a value says that it is missing
                with suppress(LookupError, TypeError, ValueError):
                    names[name] = _value(value, names)
    return names


def _value(node: ast.AST, names: Names) -> Any:
    """Return the value of an expression of constants. Raises ValueError for any other, KeyError for
    a name that has no such value.
    """
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name):
            return names[name]
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_value(part, names) for part in parts]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {_value(key, names): _value(one, names) for key, one in pairs if key}
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left, names) + _value(right, names)
        case ast.JoinedStr(values=parts):
            return "".join(str(_value(part, names)) for part in parts)
        case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
            return _value(value, names)
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(by)), attr="join"), args=[parts]
        ):
            return by.join(_value(parts, names))
    raise ValueError(f"not a constant: {ast.unparse(node)}")


def _expected(call: Names, schema: Names) -> dict[str, Any]:
    """Return a call as `evaluate.calling` reads it: an argument may be left out, or be its default,
    where the solution does not need another value.
    """
    defaults = {
        name: entry["default"] for name, entry in schema["properties"].items() if "default" in entry
    }
    arguments = {name: [OMITTED, default] for name, default in defaults.items()}
    for name, value in call["args"].items():
        is_default = name in defaults and defaults[name] == value
        arguments[name] = [OMITTED, value] if is_default else [value]
    return {"name": call["function"], "arguments": arguments}


def _tool_names(folder: Path) -> list[str]:
    for node in _parsed(folder / "task_suite.py"):
        match node:
            case ast.Assign(targets=[ast.Name(id="TOOLS")], value=ast.List(elts=parts)):
                return [part.id for part in parts if isinstance(part, ast.Name)]
    raise ValueError(f"{folder} lists no tools")


def _functions(folder: Path) -> dict[str, dict[str, Any]]:
    """Return name -> declaration of every function in the files of tools that has a docstring."""
    bodies = [_parsed(file) for file in sorted(folder.glob("*.py"))]
    enums = {
        node.name: [_value(part.value, {}) for part in node.body if isinstance(part, ast.Assign)]
        for body in bodies
        for node in body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id == "StrEnum" for base in node.bases)
    }
    return {
        node.name: _declaration(node, enums)
        for body in bodies
        for node in body
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
    }


def _declaration(node: ast.FunctionDef, enums: Names) -> dict[str, Any]:
    """Return a function as a tool, with the arguments that its docstring describes, as the package
    does.
    """
    try:
        from docstring_parser import parse
    except ImportError:
        raise DataError(NO_PARSER) from None
    documentation = parse(ast.get_docstring(node) or "")
    declared = {argument.arg: argument.annotation for argument in node.args.args}
    # Defaults belong to the last arguments.
    pairs = zip(reversed(declared), reversed(node.args.defaults), strict=False)
    defaults = {name: _value(default, {}) for name, default in pairs}
    properties: dict[str, Any] = {}
    for part in documentation.params:
        annotation = declared[part.arg_name]
        properties[part.arg_name] = {
            **(_schema(annotation, enums) if annotation else {}),
            "description": " ".join((part.description or "").split()),
        }
        if part.arg_name in defaults:
            properties[part.arg_name]["default"] = defaults[part.arg_name]
    texts = (documentation.short_description, documentation.long_description)
    return {
        "name": node.name,
        "description": "\n".join(text for text in texts if text).replace("None", "null"),
        "parameters": {
            "type": "object", "properties": properties,
            "required": [name for name in properties if name not in defaults],
        },
    }  # fmt: skip


def _schema(annotation: ast.expr, enums: Names) -> dict[str, Any]:
    """Return the JSON schema of an annotation. Raises ValueError for one of another form."""
    match annotation:
        case ast.Name(id=name) if name in _TYPES:
            return {"type": _TYPES[name]}
        case ast.Name(id=name) if name in enums:
            return {"type": "string", "enum": enums[name]}
        case ast.Subscript(value=ast.Name(id="list"), slice=inner):
            return {"type": "array", "items": _schema(inner, enums)}
        case ast.BinOp(left=inner, op=ast.BitOr(), right=ast.Constant(value=None)):
            return {"anyOf": [_schema(inner, enums), {"type": "null"}]}
    raise ValueError(f"an annotation of another form: {ast.unparse(annotation)}")
