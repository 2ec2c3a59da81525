"""Talk to an agent: `chat(path)` loops on a terminal, and answers a message or a pipe once.

Reads a checkpoint directory; writes the memory file when one is named. Words and tool calls are
shown as they come.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from agent_forge.agent.conversation import COMMANDS, Conversation
from agent_forge.agent.display import Display, JsonDisplay, TextDisplay
from agent_forge.agent.loop import OPENING, Agent, Opening
from agent_forge.agent.terminal import line_reader
from agent_forge.agent.tool_sources import load_tools
from agent_forge.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """What is said to an agent, and how its answers are shown.

    message: None takes what is piped in, and converses on a terminal. once: leave after one answer,
    on a terminal too. as_json: print each event as one JSON line (events.py). show_thoughts: show
    thoughts from the start, and what a model that thinks between tokens thinks there, in brackets.
    """

    message: str | None = None
    once: bool = False
    as_json: bool = False
    show_calls: bool = True
    show_thoughts: bool = False
    console: Console | None = None


def chat(
    path: Path | str, talk: Talk, opening: Opening = OPENING, tools: Sequence[str] = ()
) -> None:
    """Answer a message or the whole piped standard input; on a terminal, converse until /quit.

    tools: what the agent may call in place of its manifest's tools (tool_sources); Python files
    among them are run.

    Raises CheckpointError when `path` holds no agent, ConfigError when there is nothing to answer,
    and KeyboardInterrupt when Ctrl-C stops the only answer.
    """
    console, message = talk.console or Console(highlight=False), talk.message
    if message is None and not sys.stdin.isatty():
        message = sys.stdin.read()
    if message is not None:
        message = message.strip()
        if not message:
            raise ConfigError(
                "nothing to answer: give a message, pipe one in, or start chat on a terminal"
            )
        _refuse_undecodable(message)
    with ExitStack() as stack:
        own = load_tools(tools, stack) if tools else None
        agent = Agent.from_checkpoint(path, opening, own)
        stack.callback(agent.memory.close)
        model: Any = agent.model
        if talk.show_thoughts and getattr(model, "thinks", False):
            model.keeps_thoughts = True
        display: Display = (
            JsonDisplay(console)
            if talk.as_json
            else TextDisplay(
                console, shows_calls=talk.show_calls, shows_thoughts=talk.show_thoughts
            )
        )
        _hold(Conversation(agent, console, display), str(path), message, talk.once)


def _hold(conversation: Conversation, title: str, message: str | None, once: bool) -> None:
    """Converse on a terminal, or give the only answer. Raises KeyboardInterrupt where that is
    stopped.
    """
    if message is None:
        conversation.agent.confirm = conversation.confirm
    if message is None and not once:
        conversation.converse(title, line_reader(COMMANDS))
        return
    try:
        is_whole = conversation.answer(message or line_reader(())())
    except EOFError:
        return  # the person left without a message
    if not is_whole:
        raise KeyboardInterrupt


def _refuse_undecodable(text: str) -> None:
    """Raise ConfigError when a message holds bytes that the terminal's encoding could not read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the message is not UTF-8 (character {error.start}); set a UTF-8 locale, "
            "for instance LC_ALL=C.UTF-8"
        ) from None
