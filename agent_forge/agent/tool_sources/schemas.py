"""JSON schemas as small models read them best: without titles and, where possible, references."""

from collections.abc import Mapping
from typing import Any

from agent_forge.core.errors import ConfigError

NAMED = ("properties", "patternProperties", "$defs", "dependentSchemas")  # name -> schema
VALUES = ("enum", "const", "default", "examples", "example", "required", "dependentRequired")
# What Python's users and BFCL's files write for JSON Schema's types; "any" allows every type.
PYTHON_TYPES = {
    "dict": "object", "list": "array", "tuple": "array", "str": "string", "int": "integer",
    "float": "number", "double": "number", "bool": "boolean", "any": "",
}  # fmt: skip
FIRST = ("type", "properties", "required")


def plain_schema(schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a schema whose references are replaced by what they point at.

    root: the document that references of the form `#/…` are looked up in. A reference inside itself
    cannot be replaced: it stays, below `$defs`. Titles are left out, for they only cost tokens.
    Raises ConfigError for a reference that leads nowhere or out of the file.
    """
    copier = _Copier(root, where)
    result = copier.copy(schema, ())
    result.pop("$defs", None)
    while copier.waiting:
        reference = copier.waiting.pop()
        target = _resolve(reference, root, where)
        copier.definitions[_name(reference)] = copier.copy(target, (reference,))
    if copier.definitions:
        result["$defs"] = copier.definitions
    head = {key: result[key] for key in FIRST if key in result}
    return {**head, **{key: value for key, value in result.items() if key not in head}}


class _Copier:
    """Copies schemas; remembers the references that stay because they lie inside themselves."""

    def __init__(self, root: Mapping[str, Any], where: str) -> None:
        self.root, self.where = root, where
        self.waiting: list[str] = []
        self.definitions: dict[str, Any] = {}

    def copy(self, schema: Any, inside: tuple[str, ...]) -> Any:
        """Return the copy of one schema; `inside` are the references that it was reached by."""
        if isinstance(schema, list):
            return [self.copy(part, inside) for part in schema]
        if not isinstance(schema, Mapping):
            return schema
        reference = schema.get("$ref")
        if isinstance(reference, str):
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            return {**self._target(reference, inside), **self.copy(rest, inside)}
        result: dict[str, Any] = {}
        for key, value in schema.items():
            if key in NAMED and isinstance(value, Mapping):
                result[key] = {name: self.copy(part, inside) for name, part in value.items()}
            elif key in VALUES:
                result[key] = value
            elif key != "title":
                result[key] = self.copy(value, inside)
        return _with_json_types(result)

    def _target(self, reference: str, inside: tuple[str, ...]) -> dict[str, Any]:
        if reference in inside:
            if _name(reference) not in self.definitions and reference not in self.waiting:
                self.waiting.append(reference)
            return {"$ref": f"#/$defs/{_name(reference)}"}
        target = _resolve(reference, self.root, self.where)
        result = self.copy(target, (*inside, reference))
        return result if isinstance(result, dict) else {}


def _with_json_types(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with JSON Schema's names of types in place of Python's."""
    kind = schema.get("type")
    if isinstance(kind, str) and kind.lower() in PYTHON_TYPES:
        name = PYTHON_TYPES[kind.lower()]
        return {
            key: name if key == "type" else value
            for key, value in schema.items()
            if key != "type" or name
        }
    return schema


def _resolve(reference: str, root: Mapping[str, Any], where: str) -> Any:
    """Return what `#/a/b` points at in a document."""
    if not reference.startswith("#"):
        raise ConfigError(f"{where}: the reference '{reference}' leaves the file; copy it in")
    node: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or key not in node:
            raise ConfigError(f"{where}: the reference '{reference}' leads nowhere")
        node = node[key]
    return node


def _name(reference: str) -> str:
    return reference.rpartition("/")[2] or "root"
