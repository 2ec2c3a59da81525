"""Read messages from a person at a terminal, with line editing, history and several lines.

Ctrl-C works as in shells. What was typed is kept in `agent-forge/chat_history` under XDG_STATE_HOME
(~/.local/state), readable only by its owner. prompt_toolkit does the work, and is imported only
here.
"""

import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings

PROMPT = "you › "
KEYS = (
    "Alt-Enter begins a new line; Ctrl-C clears the line, stops an answer, and leaves from "
    "an empty line"
)


def history_file() -> Path:
    """Return where typed messages are kept."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "agent-forge" / "chat_history"


def line_reader(commands: Collection[str]) -> Callable[[], str]:
    """Return a function that reads one message; it raises EOFError where the person leaves.

    commands: what Tab completes. Where output is not a terminal, a plain line is read.
    """
    if not sys.stdout.isatty():
        return lambda: input(PROMPT)
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    session: PromptSession[str] = PromptSession(
        history=_history(),
        key_bindings=_keys(),
        completer=WordCompleter(sorted(commands), sentence=True),
        complete_while_typing=False,
        multiline=True,
        prompt_continuation="    … ",
    )
    return lambda: session.prompt([("bold ansicyan", PROMPT)])


def _history() -> Any:
    """Return the history on disk, or one in memory where the disk cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    file = history_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600)
        with file.open("ab"):
            pass
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))


def _keys() -> "KeyBindings":
    """Return the keys: Enter sends, Alt-Enter begins a line, Ctrl-C clears the line or leaves."""
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.keys import Keys

    keys = KeyBindings()

    @keys.add(Keys.Vt100MouseEvent)
    def pass_over(event: Any) -> None:
        # A colour code (ESC [31m), pasted where the terminal does not mark pasting, reads as a mouse
        # event; the library's own handler would raise ValueError for one of so few numbers.
        del event

    @keys.add("enter")
    def send(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def begin_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def clear(event: Any) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=EOFError, style="class:exiting")

    return keys
