"""How models write tool calls: one file per dialect, found by its name.

    hermes         <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>   (Hermes, Qwen)
    llama          [f(a=1)], or {"name": "f", "parameters": {"a": 1}}            (Llama 3 and 4)
    mistral        [TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]
    qwen_coder     <tool_call><function=f><parameter=a>1</parameter></function></tool_call>
    functiongemma  <start_function_call>call:f{a:1}<end_function_call>

A dialect is a module with TAGS (control tokens that a decoder must leave in the text), MARKS (what
in a chat template betrays it), OPENINGS (what a call may begin with), `write(calls) -> text` and
`scan(text, cut, schemas) -> Scan`.
Conversations that are kept are always written as Hermes does; `canonical` and `spoken` translate.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from agent_forge.core import registry
from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.data.call_dialects._scanning import Scan
from agent_forge.data.calls import CALL_OPEN, BrokenCall, Call, write_call

__all__ = [
    "AUTO",
    "DEFAULT",
    "Dialect",
    "Scan",
    "canonical",
    "detect",
    "dialect",
    "names",
    "spoken",
]

AUTO = "auto"
DEFAULT = "hermes"
# The most telling first: Qwen's coder also writes Hermes's tags around its own.
_ORDER = ("functiongemma", "mistral", "qwen_coder", "hermes", "llama")
Schemas = Mapping[str, Mapping[str, Any]]


class Dialect(Protocol):
    """What a file of this folder offers."""

    TAGS: tuple[str, ...]
    MARKS: tuple[str, ...]
    OPENINGS: tuple[str, ...]

    def write(self, calls: Sequence[Call]) -> str:
        """Return calls as this dialect writes them."""

    def scan(self, text: str, *, cut: bool = False, schemas: Schemas | None = None) -> Scan:
        """Return the words and the calls of an assistant's text.

        cut: the text ended because its tokens ran out. schemas: the tools' parameters by name, for
        dialects that write every value as text.
        """


def names() -> list[str]:
    """Return the names of the dialects."""
    return registry.names(__name__)


def dialect(name: str) -> Dialect:
    """Return a dialect. Raises ConfigError that names the nearest known one."""
    return cast(Dialect, registry.load(__name__, name, "call dialect"))


def check_name(name: str) -> str:
    """Return the name of a dialect, or `auto`. Raises ConfigError."""
    known = [AUTO, *names()]
    if name not in known:
        raise ConfigError(
            f"no call dialect '{name}'{did_you_mean(name, known)}; known: {', '.join(known)}"
        )
    return name


def detect(template: str | None) -> str:
    """Return the dialect that a chat template asks for; Hermes where it names none."""
    for name in _ORDER:
        if any(mark in (template or "") for mark in dialect(name).MARKS):
            return name
    return DEFAULT


def canonical(text: str, scan: Scan) -> str:
    """Return a message as conversations keep it: its words, then its calls as Hermes writes them.

    A call that cannot be read stands behind the opening tag as the model wrote it: without a
    closing tag nothing of it is repaired, so that it is an error there too.
    """
    if not scan.calls:
        return text
    parts = [
        write_call(call.name, call.arguments)
        if isinstance(call, Call)
        else f"{CALL_OPEN}{call.text}"
        for call in scan.calls
    ]
    written = "\n".join(parts)
    return f"{scan.words}\n{written}" if scan.words else written


def spoken(content: str, speaker: Dialect) -> str:
    """Return a kept message as a dialect writes it; `canonical` is the way back."""
    scan = dialect(DEFAULT).scan(content)
    if not scan.calls or any(isinstance(call, BrokenCall) for call in scan.calls):
        return content
    written = speaker.write([call for call in scan.calls if isinstance(call, Call)])
    return f"{scan.words}\n{written}" if scan.words else written


def all_tags() -> tuple[str, ...]:
    """Return the control tokens of every dialect, which a decoder leaves in the text."""
    return tuple(dict.fromkeys(tag for name in names() for tag in dialect(name).TAGS))


def plain_name(name: str) -> bool:
    """Return whether a name can be written bare: letters, digits and _, not first a digit."""
    return re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) is not None
