"""Run an agent: its tools, sandbox, memories, the loop around the model, and the terminal chat.

    calls.py      tool calls as text, both ways
    tool.py       what a tool is; toolbox.py runs the enabled ones
    tools/        built-in tools, one file each
    tool_sources/ tools that a user brings: Python, schemas, OpenAPI, MCP servers
    sandbox.py    untrusted code
    memory.py     episodic and semantic memory; working.py what is in view, and summaries
    documents.py  the search index; indexing.py builds it; endpoint.py asks a service instead
    store.py      the SQLite file below memories and documents
    loop.py       Agent, answer_batch, answer_turns
    live.py       one reply as it comes into being, as the events of events.py
    turn.py       what a message of the model adds to a reply
    text_stream.py  tokens to text, thoughts apart, calls left out
    chat.py       `forge chat`

The names below are resolved on first use, so that importing this package needs neither torch nor
numpy. (`chat` is not among them: the module of that name would hide it.)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_forge.agent.calls import (
        BrokenCall,
        Call,
        format_call,
        format_response,
        parse_calls,
        parse_response,
        scan_calls,
    )
    from agent_forge.agent.documents import DocumentIndex
    from agent_forge.agent.live import LiveTurn, TurnLimits
    from agent_forge.agent.loop import Agent, answer_batch, answer_turns
    from agent_forge.agent.memory import EpisodicMemory, Memory, SemanticMemory
    from agent_forge.agent.settings import AgentSettings
    from agent_forge.agent.tool import Confirmation, Result, Tool, ToolContext, ToolError
    from agent_forge.agent.tool_sources import kept_tools, load_tools
    from agent_forge.agent.toolbox import Toolbox
    from agent_forge.agent.turn import Turn
    from agent_forge.agent.working import WorkingMemory

_HOMES = {
    "Agent": "loop",
    "AgentSettings": "settings",
    "BrokenCall": "calls",
    "Call": "calls",
    "Confirmation": "tool",
    "DocumentIndex": "documents",
    "EpisodicMemory": "memory",
    "LiveTurn": "live",
    "Memory": "memory",
    "Result": "tool",
    "SemanticMemory": "memory",
    "Tool": "tool",
    "ToolContext": "tool",
    "ToolError": "tool",
    "Toolbox": "toolbox",
    "Turn": "turn",
    "TurnLimits": "live",
    "WorkingMemory": "working",
    "answer_batch": "loop",
    "answer_turns": "loop",
    "format_call": "calls",
    "format_response": "calls",
    "kept_tools": "tool_sources",
    "load_tools": "tool_sources",
    "parse_calls": "calls",
    "parse_response": "calls",
    "scan_calls": "calls",
}

__all__ = [
    "Agent",
    "AgentSettings",
    "BrokenCall",
    "Call",
    "Confirmation",
    "DocumentIndex",
    "EpisodicMemory",
    "LiveTurn",
    "Memory",
    "Result",
    "SemanticMemory",
    "Tool",
    "ToolContext",
    "ToolError",
    "Toolbox",
    "Turn",
    "TurnLimits",
    "WorkingMemory",
    "answer_batch",
    "answer_turns",
    "format_call",
    "format_response",
    "kept_tools",
    "load_tools",
    "parse_calls",
    "parse_response",
    "scan_calls",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
