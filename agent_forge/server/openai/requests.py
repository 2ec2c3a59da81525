"""What a client may send to `/v1/chat/completions`: each field is used, or refused by its name.

Source: OpenAI's API reference. A value that asks for what is already done (`n: 1`,
`frequency_penalty: 0`, `store: false`) is taken; one that asks for more is refused, so that no
client believes in a setting that has no effect.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent_forge.core.errors import did_you_mean
from agent_forge.data.calls import write_call, write_response

MOST_STOPS = 4
MOST_FACTS = 1000
# Limits of fields that have no effect here: their only values are those that ask for none.
Only0 = Annotated[float, Field(ge=0, le=0)]
Only1 = Annotated[int, Field(ge=1, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Strict):
    """One part of a message's content; only text can be read here."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class FunctionCall(_Strict):
    """The name and the JSON text of the arguments of a call."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str


class ToolCall(_Strict):
    """A call in an assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall

    def written(self) -> str:
        """Return the call as the model writes it. Raises ValueError for arguments that are no JSON
        object.
        """
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise ValueError(f"the arguments of {self.function.name} are not a JSON object")
        return write_call(self.function.name, arguments)


class ChatMessage(_Strict):
    """One message. reasoning: what `/v1/chat/completions` returned as such; it is not read again."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> "ChatMessage":
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls belong to the assistant, not to {self.role}")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a message of role tool needs the tool_call_id that it answers")
        if self.content is None and not self.tool_calls:
            raise ValueError(f"a message of role {self.role} needs content")
        for call in self.tool_calls or ():
            call.written()
        return self

    def turn(self) -> dict[str, str]:
        """Return the message as chat templates take it, calls and results in their tags."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        if self.role == "tool":
            return {"role": "tool", "content": write_response(text)}
        written = [call.written() for call in self.tool_calls or ()]
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "\n".join([*([text] if text else []), *written])}


class Function(_Strict):
    """A tool of the client's. strict: only False, because nothing here enforces a schema."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: Literal[False] | None = None


class ClientTool(_Strict):
    """A tool as OpenAI wraps it."""

    type: Literal["function"]
    function: Function

    def schema_entry(self) -> dict[str, Any]:
        """Return the tool as chat templates take it."""
        entry = self.function.model_dump(exclude={"strict"})
        return {"type": "function", "function": entry}


class FunctionName(_Strict):
    """The name of a tool."""

    name: Annotated[str, Field(min_length=1, max_length=64)]


class NamedChoice(_Strict):
    """The tool that the model is to call."""

    type: Literal["function"]
    function: FunctionName


class StreamOptions(_Strict):
    """include_usage: a last chunk with the tokens of the whole answer."""

    include_usage: bool = False


class TextFormat(_Strict):
    """The only format of answers: text that nothing constrains."""

    type: Literal["text"]


class MemoryFact(_Strict):
    """A fact that an agent has kept, and its subject ("" where it stands for itself)."""

    fact: Annotated[str, Field(min_length=1, max_length=10_000)]
    about: Annotated[str, Field(max_length=1000)] = ""


class ChatRequest(_Strict):
    """The body of `/v1/chat/completions`."""

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    stop: str | list[str] | None = None
    tools: list[ClientTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    # What an agent remembers when the answer begins. Only here: OpenAI's API has no such field.
    agent_memory: Annotated[list[MemoryFact], Field(max_length=MOST_FACTS)] | None = None
    # Names a user of the client's; it is written to the log.
    user: str | None = None
    n: Only1 | None = None
    frequency_penalty: Only0 | None = None
    presence_penalty: Only0 | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Only0 | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None

    @model_validator(mode="after")
    def _asks_for_what_there_is(self) -> "ChatRequest":
        offered = [tool.function.name for tool in self.tools or ()]
        if self.tool_choice not in (None, "none") and not offered:
            raise ValueError("tool_choice needs tools")
        for name in self.forced_tools():
            if name not in offered:
                hint = did_you_mean(name, offered)
                raise ValueError(f"tool_choice names no tool of tools: '{name}'{hint}")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError(f"max_tokens and max_completion_tokens differ: {both[0]}, {both[1]}")
        if len(self.stops()) > MOST_STOPS or "" in self.stops():
            raise ValueError(f"stop takes up to {MOST_STOPS} texts that are not empty")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    def forced_tools(self) -> list[str]:
        """Return the tools of which the answer must call one; none where it may be words."""
        if isinstance(self.tool_choice, NamedChoice):
            return [self.tool_choice.function.name]
        if self.tool_choice == "required":
            return [tool.function.name for tool in self.tools or ()]
        return []

    def stops(self) -> list[str]:
        """Return the stop texts."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def job(self, *, as_agent: bool) -> dict[str, Any]:
        """Return what the model's process is asked, as JSON values."""
        offered = self.tools if self.tool_choice != "none" else None
        return {
            "messages": [message.turn() for message in self.messages],
            "tools": [tool.schema_entry() for tool in offered or ()],
            "as_agent": as_agent,
            "memory": [fact.model_dump() for fact in self.agent_memory or ()],
            "max_new_tokens": self.max_completion_tokens or self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stops": self.stops(),
            "forced_tools": self.forced_tools(),
            "several_calls": self.parallel_tool_calls is not False
            and not isinstance(self.tool_choice, NamedChoice),
        }
