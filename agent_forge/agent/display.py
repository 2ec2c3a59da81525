"""Show the events of a reply as they come: words on a terminal or a pipe, or JSON lines.

On a terminal, control characters of the model and of tools are shown as signs, because an escape
sequence could otherwise change what the terminal shows. A pipe gets the text as it is.
"""

import codecs
import json
from typing import Any, Protocol

from rich.console import Console

from agent_forge.agent.calls import BrokenCall, Call
from agent_forge.agent.events import AgentEvent, Called, Done, Finish, Ran, Said, Thought, record
from agent_forge.core.events import json_safe

# C0 has its own signs in Unicode; C1 and DEL get the one for characters that cannot be shown.
_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_SIGNS |= dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)
NOTES: dict[Finish, str] = {
    "rounds": "stopped: the rounds of tool calls ran out",
    "length": "stopped: the answer reached the agent's max_new_tokens",
    "cancelled": "stopped; the conversation goes on",
}


class Display(Protocol):
    """Something that shows events."""

    def show(self, event: AgentEvent) -> None:
        """Show one event."""


class JsonDisplay:
    """Prints each event as one line of JSON."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def show(self, event: AgentEvent) -> None:
        """Print one event."""
        # A stream that is not UTF-8 would put question marks in place of letters.
        encoding = getattr(self.console.file, "encoding", None) or "utf-8"
        is_utf8 = codecs.lookup(encoding).name == "utf-8"
        line = json.dumps(json_safe(record(event)), ensure_ascii=not is_utf8, allow_nan=False)
        self.console.file.write(line + "\n")
        self.console.file.flush()


class TextDisplay:
    """Prints words as they come, calls and results on lines of their own, thoughts dim or not at
    all.
    """

    def __init__(
        self, console: Console, *, shows_calls: bool = True, shows_thoughts: bool = False
    ) -> None:
        self.console = console
        self.shows_calls, self.shows_thoughts = shows_calls, shows_thoughts
        self._line = ""  # the kind of the line that is being written, or ""
        self._has_answer = False
        self._waiting: Any = None

    def wait(self) -> None:
        """Show, on a terminal, that the reply is being worked on, until its first event."""
        if self.console.is_terminal:
            self._waiting = self.console.status("reading")
            self._waiting.start()

    def show(self, event: AgentEvent) -> None:
        """Print one event."""
        if self._waiting is not None:
            self._waiting.stop()
            self._waiting = None
        match event:
            case Said(text):
                self._write("text", text, "")
                self._has_answer = True
            case Thought(text):
                self._think(text)
            case Called(_, call) if self.shows_calls:
                self.end_line()
                self._print(f"→ {call_text(call)}", "dim")
            case Ran(_, result) if self.shows_calls:
                self._print(f"← {result.text}", "red" if result.error else "green")
            case Done(finish):
                self._end(finish)

    def end_line(self) -> None:
        """End the line that is being written, where there is one."""
        if self._line:
            self.console.print()
        self._line = ""

    def _think(self, text: str) -> None:
        if self.shows_thoughts:
            self._write("thought", text, "dim italic")
        elif self._line != "thinking" and self.console.is_terminal:
            self._write("thinking", "thinking … (/thoughts shows it)", "dim")

    def _write(self, kind: str, text: str, style: str) -> None:
        if self._line not in ("", kind):
            self.end_line()
        self._line = kind
        self._print(text, style, end="")
        self.console.file.flush()

    def _end(self, finish: Finish) -> None:
        self.end_line()
        if not self._has_answer:
            self._print("(no answer)", "dim")
        self._has_answer = False
        if finish in NOTES:
            self._print(NOTES[finish], "yellow")

    def _print(self, text: str, style: str, end: str = "\n") -> None:
        if not self.console.is_terminal:
            self.console.file.write(text + end)
            return
        self.console.print(
            text.translate(_SIGNS), style=style or None, end=end, markup=False, highlight=False,
            soft_wrap=True, emoji=False,
        )  # fmt: skip


def call_text(call: Call | BrokenCall) -> str:
    """Return a call as a person reads it."""
    if isinstance(call, BrokenCall):
        return call.text
    return f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"
