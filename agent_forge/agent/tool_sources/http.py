"""Send a call to an HTTP endpoint that a user configured, and return its answer as text."""

import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from agent_forge.agent.tool import ToolContext, ToolError
from agent_forge.core.errors import ConfigError

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
MAX_ANSWER_BYTES = 2**20
_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a call goes. `${NAME}` in the URL and headers is read from the environment at a call.

    So that no file and no manifest holds a key.
    """

    url: str
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, fields: Mapping[str, Any], where: str) -> "Endpoint":
        """Return the endpoint that settings name. Raises ConfigError."""
        url = str(fields["endpoint"])
        method = str(fields.get("method", "POST")).upper()
        headers = fields.get("headers") or {}
        check_url(url, where)
        if method not in METHODS:
            raise ConfigError(f"{where}: method must be one of {', '.join(METHODS)}, got {method}")
        if not isinstance(headers, Mapping):
            raise ConfigError(f"{where}: headers must map names to values, got {headers!r:.60}")
        return cls(url, method, {str(key): str(value) for key, value in headers.items()})


def check_url(url: str, where: str) -> None:
    """Raise ConfigError where a URL is not http or https with a host."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"{where}: an endpoint is http://… or https://…, got '{url[:80]}'")


def send(endpoint: Endpoint, arguments: Mapping[str, Any], context: ToolContext) -> str:
    """Return the answer to a call whose arguments go as a JSON body, or into the query of a GET."""
    body: Mapping[str, Any] | None = arguments
    url = endpoint.url
    if endpoint.method in ("GET", "HEAD", "DELETE", "OPTIONS"):
        body, url = None, with_query(url, arguments)
    return request(endpoint.method, url, context, headers=endpoint.headers, body=body)


def with_query(url: str, values: Mapping[str, Any]) -> str:
    """Return a URL with values added to its query: lists repeat the name, objects are JSON."""
    pairs = [
        (name, part if isinstance(part, str) else json.dumps(part, ensure_ascii=False))
        for name, value in values.items()
        for part in (value if isinstance(value, list) else [value])
    ]
    if not pairs:
        return url
    return f"{url}{'&' if '?' in url else '?'}{urllib.parse.urlencode(pairs)}"


def request(
    method: str,
    url: str,
    context: ToolContext,
    *,
    headers: Mapping[str, str] | None = None,
    body: Any = None,
) -> str:
    """Return the text of an answer. Raises ToolError that says what the endpoint said or lacked."""
    url = filled(url)
    check_url(url, "endpoint")
    data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
    sent = urllib.request.Request(url, data, method=method)
    sent.add_header("Accept", "application/json, text/plain;q=0.9, */*;q=0.5")
    if data is not None:
        sent.add_header("Content-Type", "application/json")
    for name, value in (headers or {}).items():
        sent.add_header(name, filled(value))
    place = url.partition("?")[0]
    try:
        with urllib.request.urlopen(sent, timeout=context.timeout_seconds) as answer:
            return _text(answer)
    except urllib.error.HTTPError as error:
        with error:
            said = _text(error).strip()
        raise ToolError(f"{place} answered {error.code} {error.reason}: {said[:300]}") from None
    except TimeoutError:
        raise ToolError(
            f"{place} did not answer within {context.timeout_seconds:g} s; try again later"
        ) from None
    except (urllib.error.URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ToolError(f"{place} cannot be reached: {reason}") from None


def _text(answer: Any) -> str:
    charset = answer.headers.get_content_charset() or "utf-8"
    content = answer.read(MAX_ANSWER_BYTES)
    try:
        return str(content.decode(charset, "replace"))
    except LookupError:
        return str(content.decode("utf-8", "replace"))


def environment_headers(variable: str) -> dict[str, str]:
    """Return the headers that an environment variable holds as a JSON object.

    Raises ToolError.
    """
    text = os.environ.get(variable, "")
    if not text:
        return {}
    try:
        headers = json.loads(text)
    except ValueError:
        headers = None
    if not isinstance(headers, dict):
        raise ToolError(f'{variable} must be a JSON object, for instance {{"X-Key": "…"}}')
    return {str(name): str(value) for name, value in headers.items()}


def filled(text: str) -> str:
    """Return a text whose `${NAME}` are the environment's values. Raises ToolError."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ToolError(
                f"the environment variable {match[1]} is not set; the endpoint needs it"
            )
        return os.environ[match[1]]

    return _VARIABLE.sub(value, text)
