"""Errors in OpenAI's JSON form, whoever raises them inside a route.

`{"error": {"message", "type", "param", "code"}}`, with the status codes that OpenAI's clients turn
into their exceptions: 400 BadRequest, 401 Authentication, 404 NotFound, 429 RateLimit, 5xx server.
"""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}


class ErrorDetail(BaseModel):
    """What went wrong, as OpenAI writes it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of an error."""

    error: ErrorDetail


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return these errors for a route's description."""
    text = "An error in OpenAI's form."
    return {status: {"model": ErrorAnswer, "description": text} for status in statuses}


class OpenAIError(Exception):
    """An answer that is an error. param: the field of the request that is wrong."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """Return the error as OpenAI writes it."""
        kind = TYPES.get(self.status, "server_error")
        return {
            "error": {
                "message": self.message, "type": kind, "param": self.param, "code": self.code,
            }
        }  # fmt: skip

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """Return the whole answer."""
        return JSONResponse(self.body(), self.status, headers)


class OpenAIRoute(APIRoute):
    """A route whose errors, and its dependencies' errors, all have OpenAI's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, with its errors translated."""
        handle = super().get_route_handler()

        async def translated(request: Request) -> Response:
            try:
                return await handle(request)
            except OpenAIError as error:
                return error.response()
            except RequestValidationError as error:
                return _of_validation(error).response()
            except (HTTPException, StarletteHTTPException) as error:
                detail = error.detail if isinstance(error.detail, str) else str(error.detail)
                code = "invalid_api_key" if error.status_code == 401 else None
                return OpenAIError(error.status_code, detail, code=code).response(error.headers)

        return translated


def _of_validation(error: RequestValidationError) -> OpenAIError:
    """Return the first fault of a body that does not fit its model, by the field's name."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body") or None
    if first["type"] == "extra_forbidden":
        message = f"{place} is not supported here; leave it out"
    elif first["type"] in ("json_invalid", "model_attributes_type"):
        message, place = "the body is not a JSON object", None
    else:
        reason = str(first["msg"]).removeprefix("Value error, ")
        message = reason if place is None or place in reason else f"{place}: {reason}"
    return OpenAIError(400, message, param=place)
