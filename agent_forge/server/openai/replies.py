"""Events of an agent as OpenAI's objects: one whole completion, or the chunks of a stream.

Thoughts are `reasoning` and `reasoning_content` (the two names that clients know). What an agent
does with its own tools has no place in OpenAI's format: it is added as `agent_events`, and what it
remembers at the end as `agent_memory`; other clients pass over both.
"""

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Event = Mapping[str, Any]  # a record of agent/events.py
# cancelled: nobody reads it, but it may be on its way when a client leaves.
FINISH = {
    "stop": "stop", "length": "length", "rounds": "length", "tool_calls": "tool_calls",
    "cancelled": "stop",
}  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Reply:
    """One answer and its head. as_agent: calls were run here, and are told as `agent_events`."""

    model: str
    as_agent: bool
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """Return the `chat.completion` of all events of a reply."""
        text, thoughts = _joined(events, "text"), _joined(events, "thought")
        done = events[-1]
        calls = [_call(event) for event in events if self._is_clients(event)]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text if text or not calls else None,
            "refusal": None,
        }
        if thoughts:
            message |= {"reasoning": thoughts, "reasoning_content": thoughts}
        if calls:
            message["tool_calls"] = calls
        own = [event for event in events if self._is_agents(event)]
        if own:
            message["agent_events"] = own
        if "memory" in done:
            message["agent_memory"] = done["memory"]
        choice = {
            "index": 0, "message": message, "finish_reason": FINISH[done["finish"]],
            "logprobs": None,
        }  # fmt: skip
        return {
            **self._head("chat.completion"), "choices": [choice], "usage": _usage(done["usage"]),
        }  # fmt: skip

    def start(self) -> dict[str, Any]:
        """Return the first chunk of a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def chunks(self, event: Event) -> Iterator[dict[str, Any]]:
        """Yield the chunks that an event is in a stream."""
        kind = event["event"]
        if kind == "text":
            yield self._chunk({"content": event["text"]})
        elif kind == "thought":
            text = event["text"]
            yield self._chunk({"reasoning": text, "reasoning_content": text})
        elif self._is_agents(event):
            yield self._chunk({"agent_events": [dict(event)]})
        elif self._is_clients(event):
            yield self._chunk({"tool_calls": [{"index": event["number"], **_call(event)}]})
        elif kind == "done":
            memory = {"agent_memory": event["memory"]} if "memory" in event else {}
            yield self._chunk(memory, FINISH[event["finish"]])
            if self.include_usage:
                yield {
                    **self._head("chat.completion.chunk"), "choices": [],
                    "usage": _usage(event["usage"]),
                }  # fmt: skip

    def _is_clients(self, event: Event) -> bool:
        return event["event"] == "call" and not self.as_agent

    def _is_agents(self, event: Event) -> bool:
        return event["event"] in ("call", "result") and self.as_agent

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.model,
            "system_fingerprint": None,
        }  # fmt: skip

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self.include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}


def _joined(events: Sequence[Event], kind: str) -> str:
    return "".join(event["text"] for event in events if event["event"] == kind)


def _call(event: Event) -> dict[str, Any]:
    arguments = json.dumps(event["arguments"], ensure_ascii=False)
    return {
        "id": f"call_{secrets.token_hex(12)}", "type": "function",
        "function": {"name": event["name"], "arguments": arguments},
    }  # fmt: skip


def _usage(usage: Mapping[str, int]) -> dict[str, Any]:
    return {
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "total_tokens": usage["total_tokens"],
        "completion_tokens_details": {"reasoning_tokens": usage["reasoning_tokens"]},
    }
