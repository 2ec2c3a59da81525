"""The routes of OpenAI's API that are served: models, and chat completions whole or as a stream.

An app mounts `router(models, pool)` below its own key check, limits and audit. A client that goes
away cancels its answer, which then costs at most one more token.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.params import Depends
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from agent_forge.core.errors import CheckpointError
from agent_forge.server.openai.errors import OpenAIError, OpenAIRoute, declared
from agent_forge.server.openai.models import AGENT, ServedModel, ServedModels
from agent_forge.server.openai.pool import BusyError, Job, ModelPool
from agent_forge.server.openai.process import ModelError
from agent_forge.server.openai.replies import Reply
from agent_forge.server.openai.requests import ChatRequest
from agent_forge.server.openai.worker import OUT_OF_CONTEXT

COMPLETION: dict[str, Any] = {
    "description": "A chat.completion, or with stream its chunks as server-sent events.",
    "content": {"application/json": {}, "text/event-stream": {}},
}
_log = logging.getLogger("agent_forge")


def router(
    models: ServedModels, pool: ModelPool, dependencies: Sequence[Depends] = ()
) -> APIRouter:
    """Return the routes below `/v1`.

    dependencies: what every request must pass first, such as the check of its key; their
    HTTPExceptions reach the client in OpenAI's form.
    """
    routes = APIRouter(
        prefix="/v1", route_class=OpenAIRoute, dependencies=list(dependencies), tags=["openai"],
        responses=declared(401, 403, 429),
    )  # fmt: skip

    @routes.get("/models")
    def list_models() -> dict[str, Any]:
        """List the models: each by its id, and as an agent that runs its own tools."""
        entries = [_entry(model, suffix) for model in models.list() for suffix in ("", AGENT)]
        return {"object": "list", "data": entries}

    @routes.get("/models/{model}", responses=declared(404))
    def get_model(model: str) -> dict[str, Any]:
        """Return one model."""
        for entry in models.list():
            if entry.id == model.removesuffix(AGENT):
                return _entry(entry, AGENT if model.endswith(AGENT) else "")
        raise _unknown(f"no model '{model}'")

    @routes.post(
        "/chat/completions", response_model=None,
        responses={200: COMPLETION, **declared(400, 404, 413, 415, 500, 503)},
    )  # fmt: skip
    async def complete(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation, whole or as a stream of chunks."""
        as_agent = _is_for_an_agent(body)
        try:
            path = models.path_of(body.model.removesuffix(AGENT))
        except CheckpointError as error:
            raise _unknown(str(error)) from None
        _log.info("chat: %s%s", body.model, f" for {body.user}" if body.user else "")
        answer = Answer(pool, path, body.job(as_agent=as_agent))
        usage = body.stream_options is not None and body.stream_options.include_usage
        reply = Reply(model=body.model, as_agent=as_agent, include_usage=usage)
        try:
            first = await answer.first(request)
            if body.stream:
                return ChunkStream(answer, reply, first)
            return JSONResponse(reply.whole([first, *[e async for e in answer.rest(request)]]))
        except BaseException:
            answer.cancel()
            raise

    return routes


def _is_for_an_agent(body: ChatRequest) -> bool:
    """Return whether the model runs its own tools. Raises OpenAIError for what it cannot take."""
    as_agent = body.model.endswith(AGENT)
    if as_agent and body.tools:
        raise OpenAIError(
            400, f"{body.model} runs its own tools; leave tools out, or name the model "
            f"without {AGENT}", param="tools",
        )  # fmt: skip
    if body.agent_memory and not as_agent:
        raise OpenAIError(
            400, f"{body.model} has no memory of its own; name {body.model}{AGENT}, or leave "
            "agent_memory out", param="agent_memory",
        )  # fmt: skip
    return as_agent


class ClientGoneError(OpenAIError):
    """The client has closed the connection; nobody reads this answer."""

    def __init__(self) -> None:
        super().__init__(499, "the client closed the connection")


class Answer:
    """The events of one job, for the event loop. Raises OpenAIError for what the job tells."""

    def __init__(self, pool: ModelPool, path: Any, job: dict[str, Any]) -> None:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any]]()

        def tell(event: dict[str, Any]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(events.put_nowait, event)

        self._events = events
        self._has_ended = False
        try:
            self._job: Job = pool.submit(path, job, tell)
        except BusyError as error:
            raise OpenAIError(503, str(error), code="model_busy") from None
        except (ModelError, OSError) as error:
            raise OpenAIError(503, str(error), code="model_failed") from None

    def cancel(self) -> None:
        """End the answer before its next token."""
        self._job.cancel()

    async def next(self) -> dict[str, Any]:
        """Return the next event."""
        event = await self._events.get()
        self._has_ended = event["event"] == "done"
        if event["event"] != "error":
            return event
        if event["code"] == "model_failed":
            raise OpenAIError(500, event["message"], code=event["code"])
        param = "messages" if event["code"] == OUT_OF_CONTEXT else None
        raise OpenAIError(400, event["message"], param=param, code=event["code"])

    async def first(self, request: Request) -> dict[str, Any]:
        """Return the first event, unless the client goes away before it comes."""
        return await _unless_gone(self.next(), request)

    async def rest(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        """Yield the events after the first, unless the client goes away."""
        while not self._has_ended:  # an answer without a word is its end alone
            yield await _unless_gone(self.next(), request)


async def _unless_gone(event: Any, request: Request) -> dict[str, Any]:
    """Wait for an event. Raises ClientGoneError when the client disconnects first."""
    waiting = asyncio.ensure_future(event)
    leaving = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()  # type: ignore[no-any-return]
        raise ClientGoneError
    finally:
        waiting.cancel()
        leaving.cancel()


async def _gone(receive: Receive) -> None:
    """Wait until the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


class ChunkStream(Response):
    """Server-sent events, as OpenAI's: chunks, a last `[DONE]`; an error in between is a chunk."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, reply: Reply, first: dict[str, Any]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.answer, self.reply, self.first = answer, reply, first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream until its end, or until the client has gone."""
        del scope
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self.answer.cancel()
            sending.cancel()
            leaving.cancel()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for line in self._lines():
            content = f"data: {line}\n\n".encode()
            await send({"type": "http.response.body", "body": content, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _lines(self) -> AsyncIterator[str]:
        yield _compact(self.reply.start())
        event = self.first
        while True:
            for chunk in self.reply.chunks(event):
                yield _compact(chunk)
            if event["event"] == "done":
                break
            try:
                event = await self.answer.next()
            except OpenAIError as error:
                yield _compact(error.body())
                break
        yield "[DONE]"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _entry(model: ServedModel, suffix: str) -> dict[str, Any]:
    return {
        "id": f"{model.id}{suffix}", "object": "model", "created": int(model.time),
        "owned_by": "agent-forge",
    }  # fmt: skip


def _unknown(message: str) -> OpenAIError:
    return OpenAIError(404, message, param="model", code="model_not_found")
