"""Talk to an agent: `chat(path)` loops on a terminal, and answers a message or a pipe once.

Reads a checkpoint directory; writes the memory file when one is named. Tool calls are shown as they
were run.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from agent_forge.agent.calls import BrokenCall, Call
from agent_forge.agent.loop import Agent, Turn
from agent_forge.agent.terminal import KEYS, line_reader
from agent_forge.core.errors import ConfigError, did_you_mean

COMMANDS = {
    "/help": "show this list",
    "/tools": "show the enabled tools",
    "/memory": "show the facts the agent remembers",
    "/reset": "begin a new conversation (memories stay)",
    "/quit": "leave (as do Ctrl-D, and Ctrl-C on an empty line)",
}


def chat(
    path: Path | str,
    *,
    once: str | None = None,
    memory: Path | str = ":memory:",
    documents: Sequence[str] = (),
    device: str = "cpu",
    engine: str = "auto",
    encoding: str = "utf-8",
    search_endpoint: str = "",
    show_calls: bool = True,
    console: Console | None = None,
) -> None:
    """Answer `once` or the whole piped standard input; on a terminal, converse until /quit.

    encoding: the encoding of the text files among `documents`.

    Raises CheckpointError when `path` holds no agent and ConfigError when there is nothing to
    answer.
    """
    console = console or Console(highlight=False)
    interactive = once is None and sys.stdin.isatty()
    if not interactive:
        once = (sys.stdin.read() if once is None else once).strip()
        if not once:
            raise ConfigError(
                "nothing to answer: give a message, pipe one in, or start chat on a terminal"
            )
        _refuse_undecodable(once)
    agent = Agent.from_checkpoint(
        path, memory=memory, documents=documents, device=device, engine=engine, encoding=encoding,
        search_endpoint=search_endpoint,
    )  # fmt: skip
    try:
        if once is not None:
            show_turn(console, agent.reply([{"role": "user", "content": once}]), show_calls)
        else:
            converse(agent, console, str(path), show_calls, line_reader(COMMANDS))
    finally:
        agent.memory.close()


def converse(
    agent: Agent, console: Console, title: str, show_calls: bool, read: Callable[[], str]
) -> None:
    """Answer each message that `read` returns, until /quit or until it raises EOFError.

    Ctrl-C while the agent answers stops only that answer: the conversation before it stays, and the
    message that was being answered is dropped.
    """
    enabled = ", ".join(agent.toolbox.names) or "none"
    head = f"{escape(title)}\ntools: {enabled}\n/help lists the commands\n{KEYS}"
    console.print(Panel(head, title="Agent Forge", expand=False))
    messages: list[dict[str, str]] = []
    while True:
        try:
            line = read().strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line == "/quit":
            return
        if line.startswith("/"):
            if line == "/reset":
                messages = []
            run_command(agent, console, line)
        elif line:
            conversation = [*messages, {"role": "user", "content": line}]
            try:
                with console.status("thinking"):
                    turn = agent.reply(conversation)
            except KeyboardInterrupt:
                console.print("[yellow]stopped; the conversation goes on without that message[/]")
                continue
            messages = [*conversation, *turn.messages]
            show_turn(console, turn, show_calls)


def _refuse_undecodable(text: str) -> None:
    """Raise ConfigError when a message holds bytes that the terminal's encoding could not read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the message is not UTF-8 (character {error.start}); set a UTF-8 locale, "
            "for instance LC_ALL=C.UTF-8"
        ) from None


def run_command(agent: Agent, console: Console, line: str) -> None:
    """Carry out one / command other than /quit."""
    if line == "/help":
        for name, meaning in COMMANDS.items():
            console.print(f"  [bold]{name:8}[/] {meaning}")
    elif line == "/tools":
        for schema in agent.toolbox.schemas():
            tool = schema["function"]
            console.print(f"  [bold]{tool['name']:10}[/] {escape(tool['description'])}")
        if not agent.toolbox.names:
            console.print("  no tool is enabled")
    elif line == "/memory":
        facts = agent.memory.semantic.all()
        for fact in facts:
            console.print(
                f"  {escape(f'{fact.about}: ' if fact.about else '')}{escape(fact.content)}"
                f"{_stated(agent, fact.id)}"
            )
        if not facts:
            console.print("  nothing is remembered")
    elif line == "/reset":
        console.print("  a new conversation")
    else:
        console.print(
            f"  no command {escape(line)}{did_you_mean(line, COMMANDS)}; /help lists them"
        )


def _stated(agent: Agent, fact: int) -> str:
    """Return when a fact was last stated, "" where no conversation stated it."""
    sources = agent.memory.semantic.sources(fact)
    return f"  [dim]{escape(sources[-1].session)}[/]" if sources else ""


def show_turn(console: Console, turn: Turn, show_calls: bool) -> None:
    """Print the calls that were run and the answer."""
    for result in turn.results if show_calls else ():
        call = _call_text(result.call)
        colour = "red" if result.error else "green"
        console.print(f"[dim]→ {escape(call)}[/]")
        console.print(f"[{colour}]← {escape(result.text)}[/]")
    console.print(escape(turn.text) if turn.text else "[dim](no answer)[/]")
    if not turn.finished:
        console.print("[yellow]stopped: the rounds of tool calls ran out[/]")
    elif turn.cut:
        console.print("[yellow]stopped: the answer reached the agent's max_new_tokens[/]")


def _call_text(call: Call | BrokenCall) -> str:
    if isinstance(call, BrokenCall):
        return call.text
    return f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"
