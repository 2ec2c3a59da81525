"""Tools from an OpenAPI 3 file: one per operation, run by its HTTP request.

The operation's id names the tool; parameters of path, query and header and the fields of a JSON
body are its arguments. GET, HEAD and OPTIONS are safe by HTTP's own rule; every other method may
change something, so its tool is destructive unless the operation says `x-destructive: false`.
`servers[0].url` is where requests go; FORGE_OPENAPI_HEADERS may hold headers for them as JSON, so
that no key stands in a file. Source: the OpenAPI specification 3.1.1.
"""

import json
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_forge.agent.tool import Tool, ToolContext, ToolError, ToolSource
from agent_forge.agent.tool_sources.http import (
    check_url,
    environment_headers,
    request,
    with_query,
)
from agent_forge.agent.tool_sources.schemas import plain_schema
from agent_forge.core.errors import ConfigError

METHODS = ("get", "put", "post", "delete", "options", "head", "patch")
SAFE = ("get", "head", "options")
HEADERS_VARIABLE = "FORGE_OPENAPI_HEADERS"
BODY = "body"  # the argument that a body becomes where it is not an object with fields


@dataclass(frozen=True, slots=True)
class Operation:
    """Where the arguments of one tool go in its request."""

    method: str
    url: str
    places: Mapping[str, str]  # argument -> path, query, header, cookie, field or body


def operation_tools(document: Mapping[str, Any], path: Path, digest: str) -> list[Tool]:
    """Return one tool per operation. Raises ConfigError that names the operation."""
    version = str(document.get("openapi", document.get("swagger")))
    if not version.startswith("3."):
        raise ConfigError(f"{path}: OpenAPI 3 is read, this file is version {version}")
    base = _base(document, path)
    source = ToolSource("openapi", str(path), digest)
    tools = []
    for route, item in (document.get("paths") or {}).items():
        for method in METHODS:
            if isinstance(item, Mapping) and isinstance(item.get(method), Mapping):
                reader = _Reader(document, f"{path}: {method.upper()} {route}")
                tools.append(reader.tool(base + route, method, item, source))
    if not tools:
        raise ConfigError(f"{path}: no operation under paths")
    return tools


def _base(document: Mapping[str, Any], path: Path) -> str:
    """Return the address that requests begin with."""
    server = (document.get("servers") or [{}])[0]
    url = str(server.get("url", ""))
    for name, variable in (server.get("variables") or {}).items():
        url = url.replace(f"{{{name}}}", str(variable.get("default", "")))
    check_url(url, f"{path}: servers[0].url")
    return url.rstrip("/")


class _Reader:
    """Reads one operation of a document; `where` names it in messages."""

    def __init__(self, document: Mapping[str, Any], where: str) -> None:
        self.document, self.where = document, where
        self.definitions: dict[str, Any] = {}  # schemas that lie inside themselves

    def tool(self, url: str, method: str, item: Mapping[str, Any], source: ToolSource) -> Tool:
        """Return the operation as a tool."""
        operation = item[method]
        properties: dict[str, Any] = {}
        places: dict[str, str] = {}
        required: list[str] = []
        shared = {_key(p): p for p in map(self._followed, item.get("parameters", ()))}
        own = {_key(p): p for p in map(self._followed, operation.get("parameters", ()))}
        for parameter in {**shared, **own}.values():
            self._add(parameter["name"], parameter["in"], places)
            properties[parameter["name"]] = self._parameter(parameter)
            if parameter.get("required"):
                required.append(parameter["name"])
        self._add_body(operation.get("requestBody"), properties, places, required)
        schema = {"type": "object", "properties": properties, "required": required}
        if self.definitions:
            schema["$defs"] = self.definitions
        request = Operation(method.upper(), url, places)
        texts = [operation.get("summary"), operation.get("description")]

        def run(arguments: dict[str, Any], context: ToolContext) -> str:
            return send(request, arguments, context)

        return Tool(
            operation.get("operationId") or _slug(method, url),
            " ".join(" ".join(text.split()) for text in dict.fromkeys(texts) if text),
            schema,
            run,
            destructive=bool(operation.get("x-destructive", method not in SAFE)),
            source=source,
        )

    def _parameter(self, parameter: Mapping[str, Any]) -> dict[str, Any]:
        """Return the schema of one parameter, with its description."""
        content: Any = next(iter((parameter.get("content") or {}).values()), {})
        schema = self._schema(parameter.get("schema", content.get("schema", {})))
        if parameter.get("description") and "description" not in schema:
            schema["description"] = " ".join(str(parameter["description"]).split())
        return schema

    def _add_body(
        self,
        body: Any,
        properties: dict[str, Any],
        places: dict[str, str],
        required: list[str],
    ) -> None:
        """Add the fields of a JSON body, or the whole body where it is not an object."""
        if not body:
            return
        body = self._followed(body)
        content: Mapping[str, Any] = body.get("content") or {}
        media = next((value for key, value in content.items() if "json" in key), None)
        if media is None:
            raise ConfigError(f"{self.where}: only JSON bodies are sent, not {', '.join(content)}")
        schema = self._schema(media.get("schema", {}))
        fields = schema.get("properties")
        if schema.get("type") == "object" and fields:
            for name, value in fields.items():
                self._add(name, "field", places)
                properties[name] = value
            required += schema.get("required", ())
            return
        self._add(BODY, BODY, places)
        properties[BODY] = schema
        if body.get("required"):
            required.append(BODY)

    def _add(self, name: str, place: str, places: dict[str, str]) -> None:
        if name in places:
            raise ConfigError(
                f"{self.where}: two arguments are named '{name}', in {places[name]} and {place}"
            )
        places[name] = place

    def _schema(self, schema: Any) -> dict[str, Any]:
        result = plain_schema(schema, self.document, self.where)
        self.definitions |= result.pop("$defs", {})
        if result.pop("nullable", False) and isinstance(result.get("type"), str):
            result["type"] = [result["type"], "null"]  # OpenAPI 3.0 has no "null" type
        return result

    def _followed(self, value: Any) -> Any:
        """Return what a reference points at, or the value itself."""
        if isinstance(value, Mapping) and "$ref" in value:
            node: Any = self.document
            for part in str(value["$ref"]).removeprefix("#/").split("/"):
                if not isinstance(node, Mapping) or part not in node:
                    raise ConfigError(f"{self.where}: '{value['$ref']}' leads nowhere")
                node = node[part]
            return node
        return value


def send(operation: Operation, arguments: Mapping[str, Any], context: ToolContext) -> str:
    """Send one operation's request and return the answer's text. Raises ToolError."""
    url = operation.url
    query: dict[str, Any] = {}
    headers = environment_headers(HEADERS_VARIABLE)
    body: Any = None
    for name, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        match operation.places[name]:
            case "path":
                url = url.replace(f"{{{name}}}", urllib.parse.quote(text, safe=""))
            case "query":
                query[name] = value
            case "header":
                headers[name] = text
            case "cookie":
                headers["Cookie"] = f"{name}={urllib.parse.quote(text)}"
            case "body":
                body = value
            case _:
                body = {**(body or {}), name: value}
    missing = re.findall(r"\{(\w+)\}", url.partition("?")[0])
    if missing:
        raise ToolError(f"the path needs '{missing[0]}'")
    if any(ord(letter) < 32 for value in headers.values() for letter in value):
        raise ToolError("a header holds a control character")
    return request(operation.method, with_query(url, query), context, headers=headers, body=body)


def _key(parameter: Mapping[str, Any]) -> tuple[str, str]:
    return str(parameter.get("name")), str(parameter.get("in"))


def _slug(method: str, url: str) -> str:
    """Return a name for an operation without an id, such as get_pets_petId."""
    path = urllib.parse.urlsplit(url).path
    return "_".join([method, *re.findall(r"\w+", path)])
