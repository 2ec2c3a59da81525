"""What the middleware of this room share: headers of a scope, and answers that refuse.

A refused WebSocket is answered before it opens, with the same status and body as a request, where
the server can do that (uvicorn can); elsewhere it is closed, which a client sees as 403.
"""

import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

# Status -> the machine-readable kind of an error; clients of OpenAI's interface read it too.
KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 405: "method_not_allowed", 406: "not_acceptable", 408: "timeout_error",
    409: "conflict_error", 410: "gone_error", 413: "request_too_large",
    415: "unsupported_media_type", 416: "range_not_satisfiable", 421: "misdirected_request",
    422: "invalid_request_error", 429: "rate_limit_error", 500: "server_error",
    503: "unavailable_error", 507: "storage_error",
}  # fmt: skip


def headers_of(scope: Scope) -> Headers:
    """Return the headers of a request."""
    return Headers(scope=scope)


def error_body(status: int, message: str, code: str = "") -> dict[str, Any]:
    """Return the one form of all errors of the service, which OpenAI's interface uses too."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "code": code or kind, "param": None}}


async def refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    message: str,
    *,
    code: str = "",
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer a request or a WebSocket with an error and nothing else."""
    body = json.dumps(error_body(status, message, code)).encode()
    lines = {"content-type": "application/json", "content-length": str(len(body))}
    lines |= dict(headers or {})
    raw = [(name.lower().encode(), value.encode()) for name, value in lines.items()]
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})
        return
    await receive()  # websocket.connect
    if "websocket.http.response" in scope.get("extensions", {}):
        await send({"type": "websocket.http.response.start", "status": status, "headers": raw})
        await send({"type": "websocket.http.response.body", "body": body})
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": message[:120]})
