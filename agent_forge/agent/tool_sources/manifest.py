"""The tools of a checkpoint's manifest: offered by their schemas, run only by a user's leave.

A checkpoint is data. Its entries name where tools came from, and nothing of that is executed,
started or contacted unless the user names the same source, or trusts the checkpoint's own while
their hashes are what they were.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent_forge.agent.tool import Tool
from agent_forge.agent.tool_sources.builtin import builtin_tool
from agent_forge.agent.tool_sources.loading import load_tools, read_bytes
from agent_forge.core.errors import DataError

Entry = str | Mapping[str, Any]


def kept_tools(
    entries: Sequence[Entry],
    named: Sequence[str] = (),
    *,
    trusted: bool = False,
    stack: ExitStack | None = None,
) -> tuple[list[Tool], list[str]]:
    """Return the tools of a manifest's `agent.tools`, and what the user should know of them.

    named: the sources that the user named now (as for `load_tools`); their tools take the place of
    entries of the same name, and others are added. trusted: the user also allows the sources that
    the manifest names, each as long as its hash is the same. Entries whose source is neither come
    back without code. Each note is one line.
    """
    fresh = {tool.name: tool for tool in load_tools(named, stack)}
    tools: dict[str, Tool] = {}
    notes: list[str] = []
    idle: dict[str, list[str]] = {}
    own = _own_sources(entries, fresh, notes, stack) if trusted else {}
    for entry in entries:
        tool = builtin_tool(entry) if isinstance(entry, str) else Tool.from_entry(entry)
        if tool.name in fresh:
            notes += _changes(tool, fresh[tool.name])
            tool = fresh[tool.name]
        elif tool.name in own:
            notes += _changes(tool, own[tool.name])
            tool = own[tool.name]
        elif tool.source.kind != "builtin":
            idle.setdefault(str(tool.source), []).append(tool.name)
            tool = replace(tool, run=None)
        tools[tool.name] = tool
    notes += [
        f"{', '.join(names)}: the code of {place} is not loaded, so calls are not run; "
        f"name it with --tools to load it"
        for place, names in idle.items()
    ]
    return list({**tools, **fresh}.values()), list(dict.fromkeys(notes))


def differences(entries: Sequence[Entry], tools: Sequence[Tool] | None) -> list[str]:
    """Return a line for each thing the user should know of a manifest's tools.

    tools: those that the user named in place of the manifest's, or None. Nothing is loaded.
    """
    if tools is None:
        return kept_tools(entries)[1]
    named = {tool.name: tool for tool in tools}
    notes = [
        note
        for entry in entries
        if not isinstance(entry, str) and entry.get("name") in named
        for note in _changes(Tool.from_entry(entry), named[entry["name"]])
    ]
    return list(dict.fromkeys(notes))


def _own_sources(
    entries: Sequence[Entry],
    fresh: Mapping[str, Tool],
    notes: list[str],
    stack: ExitStack | None,
) -> dict[str, Tool]:
    """Return the tools of the sources that a manifest names, where their files are the same."""
    tools: dict[str, Tool] = {}
    done: set[str] = set()
    for entry in entries:
        if isinstance(entry, str) or entry.get("name") in fresh:
            continue
        source = Tool.from_entry(entry).source
        if source.place in done or source.kind == "builtin":
            continue
        done.add(source.place)
        if source.kind != "mcp" and not _is_same_file(source.place, source.sha256, notes):
            continue
        place = f"mcp:{source.place}" if source.kind == "mcp" else source.place
        tools |= {tool.name: tool for tool in load_tools([place], stack)}
    return tools


def _is_same_file(place: str, digest: str, notes: list[str]) -> bool:
    try:
        now = hashlib.sha256(read_bytes(Path(place))).hexdigest()
    except DataError as error:
        notes.append(str(error))
        return False
    if now != digest:
        notes.append(
            f"{place} has changed since the checkpoint was made (sha256 {digest[:12]}… then, "
            f"{now[:12]}… now), so it is not loaded; name it with --tools to load it as it is"
        )
    return now == digest


def _changes(before: Tool, now: Tool) -> list[str]:
    """Return a line where a tool is not what the model was trained on."""
    notes: list[str] = []
    if before.source.kind == "builtin" or before.source.sha256 == now.source.sha256:
        return notes
    if before.parameters != now.parameters or before.description != now.description:
        notes.append(f"{now.name}: its schema differs from the one that the model has learned")
    notes.append(
        f"{now.source} differs from the one of the checkpoint (sha256 "
        f"{before.source.sha256[:12]}… then, {now.source.sha256[:12]}… now)"
    )
    return notes
