"""Turn errors into answers: the class of an error says the status, its one line is the message."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from agent_forge.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ForgeError,
    LockedError,
    StorageError,
)
from agent_forge.server.jobs import UnknownJob, WrongState
from agent_forge.server.security.asgi import error_body

# The first class that fits decides.
STATUSES: tuple[tuple[type[ForgeError], int], ...] = (
    (UnknownJob, 404), (WrongState, 409), (LockedError, 409), (StorageError, 507),
    (CheckpointError, 404), (ConfigError, 422), (DataError, 422),
)  # fmt: skip
MOST_SHOWN = 5


def status_of(error: ForgeError) -> int:
    """Return the HTTP status of an error."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def add_to(app: FastAPI) -> None:
    """Let an application answer errors in the one form of the service."""
    app.add_exception_handler(ForgeError, _forge_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)


async def _forge_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ForgeError)
    status = status_of(error)
    code = type(error).__name__.removesuffix("Error").lower() or "error"
    return JSONResponse(error_body(status, str(error), code), status)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    lines = [
        f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:MOST_SHOWN]
    ]
    return JSONResponse(error_body(422, "; ".join(lines), "invalid"), 422)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND and message == HTTPStatus.NOT_FOUND.phrase:
        message = f"nothing answers {request.method} {request.url.path[:200]}; see /openapi.json"
    headers: dict[str, Any] | None = dict(error.headers) if error.headers else None
    return JSONResponse(error_body(error.status_code, message), error.status_code, headers)


async def _defect(_: Request, __: Exception) -> JSONResponse:
    # The traceback is in the server's log; a client has no use for it.
    return JSONResponse(error_body(500, "a defect of the server; its log has more"), 500)
