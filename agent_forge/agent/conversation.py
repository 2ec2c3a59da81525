"""A conversation at a terminal: what was said, the / commands, and an answer that can be stopped.

Reads messages by a function, writes to the agent's memories, and to files only by /save.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from agent_forge.agent.display import Display, TextDisplay
from agent_forge.agent.loop import Agent
from agent_forge.agent.terminal import KEYS
from agent_forge.agent.tool import Confirmation
from agent_forge.core.errors import StorageError, did_you_mean

COMMANDS = {
    "/help": "show this list",
    "/tools": "show the enabled tools",
    "/memory": "show the facts the agent remembers",
    "/persona": "show the system text; /persona TEXT replaces it, /persona off removes it",
    "/thoughts": "show the model's thoughts, or hide them again",
    "/save": "add the conversation to a file of rows; /save FILE names the file",
    "/reset": "begin a new conversation (memories stay)",
    "/quit": "leave (as do Ctrl-D, and Ctrl-C on an empty line)",
}


@dataclass
class Conversation:
    """What an agent and a person have said, and how it is shown."""

    agent: Agent
    console: Console
    display: Display
    messages: list[dict[str, str]] = field(default_factory=list)

    def converse(self, title: str, read: Callable[[], str]) -> None:
        """Answer each message that `read` returns, until /quit or until it raises EOFError."""
        enabled = ", ".join(self.agent.toolbox.names) or "none"
        head = f"{escape(title)}\ntools: {enabled}\n/help lists the commands\n{KEYS}"
        self.console.print(Panel(head, title="Agent Forge", expand=False))
        is_leaving = False  # Ctrl-C reached the process, not the reader, at the last prompt
        while True:
            try:
                line = read().strip()
            except EOFError:
                self.console.print()
                return
            except KeyboardInterrupt:
                self.console.print()
                if is_leaving:
                    return
                is_leaving = True
                self._note("Ctrl-C once more leaves")
                continue
            is_leaving = False
            if line == "/quit":
                return
            try:
                self._take(line)
            except KeyboardInterrupt:  # before an answer began, or in a command
                self._note("stopped")

    def _take(self, line: str) -> None:
        """Run a command, or answer a message; what is not UTF-8 is dropped, and told of."""
        if not line.isascii() and any("\ud800" <= sign <= "\udfff" for sign in line):
            self._note("that line is not UTF-8, so it is dropped")
        elif line.startswith("/"):
            self.run_command(line)
        elif line:
            self.answer(line)

    def confirm(self, question: Confirmation) -> bool:
        """Ask whether a destructive call may run with these arguments; only "y" or "yes" is yes."""
        self.console.print(f"  {escape(str(question))} changes things. Run it? (y/N) ", end="")
        return self.console.input().strip().lower() in ("y", "yes")

    def answer(self, text: str) -> bool:
        """Answer one message, shown as it comes; return False where Ctrl-C stopped the answer.

        What was said until then stays in the conversation. A message that was stopped before its
        first word is dropped.
        """
        question = {"role": "user", "content": text}
        live = self.agent.live([*self.messages, question])
        if isinstance(self.display, TextDisplay):
            self.display.wait()
        is_whole = True
        try:
            for event in live:
                self.display.show(event)
        except KeyboardInterrupt:
            is_whole = False
            self.display.show(live.interrupted())
        if live.turn.messages:
            self.messages += [question, *live.turn.messages]
        elif not is_whole:
            self._note("nothing was said yet, so that message is dropped")
        return is_whole

    def run_command(self, line: str) -> None:
        """Carry out one / command other than /quit."""
        name, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/help": self._help, "/tools": self._tools, "/memory": self._memory,
            "/persona": self._persona, "/thoughts": self._thoughts, "/save": self._save,
            "/reset": self._reset,
        }  # fmt: skip
        if name in commands:
            commands[name](rest.strip())
        else:
            self._note(f"no command {name}{did_you_mean(name, COMMANDS)}; /help lists them")

    def _note(self, text: str) -> None:
        self.console.print(f"  {escape(text)}")

    def _help(self, _: str) -> None:
        for name, meaning in COMMANDS.items():
            self.console.print(f"  [bold]{name:9}[/] {meaning}")

    def _tools(self, _: str) -> None:
        for schema in self.agent.toolbox.schemas():
            tool = schema["function"]
            self.console.print(f"  [bold]{tool['name']:10}[/] {escape(tool['description'])}")
        if not self.agent.toolbox.names:
            self._note("no tool is enabled")

    def _memory(self, _: str) -> None:
        facts = self.agent.memory.semantic.all()
        for fact in facts:
            sources = self.agent.memory.semantic.sources(fact.id)
            stated = f"  [dim]{escape(sources[-1].session)}[/]" if sources else ""
            text = f"{fact.about}: {fact.content}" if fact.about else fact.content
            self.console.print(f"  {escape(text)}{stated}")
        if not facts:
            self._note("nothing is remembered")

    def _persona(self, text: str) -> None:
        if text:
            system = "" if text == "off" else text
            self.agent.settings = replace(self.agent.settings, system=system)
        self._note(self.agent.settings.system or "no system text; /persona TEXT sets one")

    def _thoughts(self, text: str) -> None:
        if not isinstance(self.display, TextDisplay):
            self._note("every event is printed, thoughts too")
            return
        shows = not self.display.shows_thoughts if text not in ("on", "off") else text == "on"
        self.display.shows_thoughts = shows
        self._note("thoughts are shown" if shows else "thoughts are hidden")

    def _save(self, name: str) -> None:
        if not self.messages:
            self._note("nothing has been said yet")
            return
        file = Path(name or f"chat-{datetime.now():%Y%m%d-%H%M%S}.jsonl").expanduser()
        try:
            save_row(self.messages, self.agent.settings.system, file)
        except StorageError as error:
            self._note(str(error))
        else:
            self._note(f"added as a row to {file}; data.rows=[{file}] trains on it")

    def _reset(self, _: str) -> None:
        self.messages.clear()
        self._note("a new conversation")


def save_row(messages: list[dict[str, str]], system: str, file: Path) -> None:
    """Add a conversation to a JSONL file of rows. Raises StorageError where that fails."""
    first = [{"role": "system", "content": system}] if system else []
    row = json.dumps({"messages": [*first, *messages]}, ensure_ascii=False)
    try:
        with file.open("a", encoding="utf-8") as rows:
            rows.write(row + "\n")
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror}; name another file") from None
