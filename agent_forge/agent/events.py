"""What happens while an agent replies, one event at a time, for the terminal, the API and batches.

    Said      a piece of text          Thought   a piece of a thought
    Called    a call that is about to run (or that is the caller's to run)
    Ran       its result
    Done      the end: whole text, why it ended, what it cost, the messages that were gained

`record(event)` is the event as JSON: what `forge chat --json` prints, one line per event, and what
the server's model processes send.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from agent_forge.agent.calls import BrokenCall, Call
from agent_forge.agent.tool import Result

# stop: the model ended. length: its tokens ran out. rounds: it still called tools when its rounds
# ran out. tool_calls: its calls are the caller's to run. cancelled: it was told to stop.
Finish = Literal["stop", "length", "rounds", "tool_calls", "cancelled"]


@dataclass(slots=True)
class Usage:
    """Tokens of one reply.

    prompt_tokens: of all prompts of its rounds. completion_tokens: all that were generated, calls
    and thoughts included. reasoning_tokens: those inside thoughts.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Return the tokens that were read and generated."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of text."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of a thought."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A call; `number` counts the calls of the reply from 0."""

    number: int
    call: Call | BrokenCall


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of the call with that number."""

    number: int
    result: Result


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a reply.

    text: its last message without calls and thoughts. messages: all that the conversation gained.
    """

    finish: Finish
    text: str
    usage: Usage
    messages: list[dict[str, str]] = field(default_factory=list)


AgentEvent = Said | Thought | Called | Ran | Done


def record(event: AgentEvent) -> dict[str, Any]:
    """Return an event as JSON values; `event` in it is text, thought, call, result or done."""
    match event:
        case Said(text):
            return {"event": "text", "text": text}
        case Thought(text):
            return {"event": "thought", "text": text}
        case Called(number, Call(name, arguments)):
            return {"event": "call", "number": number, "name": name, "arguments": arguments}
        case Called(number, BrokenCall(text, message)):
            return {"event": "call", "number": number, "broken": text, "reason": message}
        case Ran(number, result):
            return {
                "event": "result", "number": number, "text": result.text, "error": result.error,
            }  # fmt: skip
        case Done(finish, text, usage, messages):
            return {
                "event": "done", "finish": finish, "text": text, "usage": usage_record(usage),
                "messages": messages,
            }  # fmt: skip
    raise AssertionError(event)


def usage_record(usage: Usage) -> Mapping[str, int]:
    """Return the tokens of a reply as JSON values."""
    return {**asdict(usage), "total_tokens": usage.total_tokens}
