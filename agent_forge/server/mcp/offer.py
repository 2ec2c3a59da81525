"""Put the rooms that are asked for into one MCP server, each function a tool with its hints."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from agent_forge.core.errors import ConfigError, ForgeError
from agent_forge.server.mcp import check_rooms

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

INSTRUCTIONS = (
    "Agent Forge: memories across sessions, checkpoints of models by id, versions of models in a "
    "git registry, and evaluations."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a server offers.

    rooms: names of ROOMS. models: directories below which checkpoints lie. memory: the SQLite
    file of the memories. repository: the address or directory of the git repository that the room
    "registry" shows, or "". state: where results and caches are kept.
    """

    rooms: Sequence[str]
    models: Sequence[Path]
    memory: str
    repository: str
    state: Path

    def check(self) -> None:
        """Raise ConfigError for a room that does not exist, or that lacks its part."""
        check_rooms(self.rooms, self.repository, "--registry")
        reads_models = {"checkpoints", "evaluations"} & set(self.rooms)
        if reads_models and not any(folder.is_dir() for folder in self.models):
            shown = ", ".join(map(str, self.models))
            raise ConfigError(f"no directory {shown}; name one with --models")


def make_server(offer: Offer, **options: Any) -> "MCPServer":
    """Return the server of an offer. options: further arguments of `MCPServer`, for its keys.

    Raises ConfigError where the offer does not hold, or mcp is not installed.
    """
    offer.check()
    from mcp.server.mcpserver import MCPServer

    from agent_forge import __version__

    server: MCPServer = MCPServer(
        "agent-forge", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING",
        **options,
    )  # fmt: skip
    for room in offer.rooms:
        _ROOMS[room](_Tools(server, offer), offer)
    return server


class _Tools:
    """Adds tools to a server; their ForgeErrors reach the client as one line without paths."""

    def __init__(self, server: "MCPServer", offer: Offer) -> None:
        from agent_forge.server.mcp.catalogue import Catalogue

        self.server = server
        self.catalogue = Catalogue(offer.models)

    def reading(self, function: Callable[..., Any]) -> None:
        """Add a tool that changes nothing."""
        self._add(function, read_only=True, destructive=False)

    def adding(self, function: Callable[..., Any]) -> None:
        """Add a tool that only adds something."""
        self._add(function, read_only=False, destructive=False)

    def destroying(self, function: Callable[..., Any]) -> None:
        """Add a tool that takes something away."""
        self._add(function, read_only=False, destructive=True)

    def _add(self, function: Callable[..., Any], *, read_only: bool, destructive: bool) -> None:
        from mcp.server.mcpserver.exceptions import ToolError
        from mcp.types import ToolAnnotations

        @functools.wraps(function)
        def answering(*arguments: Any, **named: Any) -> Any:
            try:
                return function(*arguments, **named)
            except ForgeError as error:
                raise ToolError(self.catalogue.without_root(str(error))) from None

        hints = ToolAnnotations(
            read_only_hint=read_only, destructive_hint=destructive, open_world_hint=False
        )
        self.server.add_tool(answering, annotations=hints)


def _memory(tools: _Tools, offer: Offer) -> None:
    from agent_forge.agent.memory import Memory

    memory = Memory(offer.memory)
    lock = Lock()  # tools run on several threads, and the file has one connection

    def memory_remember(fact: str, about: str = "") -> str:
        """Keep a fact for later sessions. A new fact about the same subject replaces the old."""
        if not fact.strip():
            raise ConfigError("the fact is empty")
        with lock:
            memory.semantic.remember(fact, about)
        return "stored"

    def memory_recall(query: str, count: int = 5) -> list[dict[str, str]]:
        """Look up the facts that fit a question best."""
        with lock:
            facts = memory.semantic.recall(query, min(max(count, 1), 50))
        return [{"about": fact.about, "fact": fact.content} for fact in facts]

    def memory_forget(about: str) -> int:
        """Forget what was remembered about a subject; return how many facts that were."""
        with lock:
            return memory.semantic.forget(about)

    def memory_note(session: str, role: str, content: str) -> str:
        """Keep one message of a conversation."""
        with lock:
            memory.episodic.add(session, role, content)
        return "stored"

    def memory_search(query: str, count: int = 5) -> list[dict[str, Any]]:
        """Search the messages of all sessions by words."""
        with lock:
            episodes = memory.episodic.search(query, min(max(count, 1), 50))
        return [{"session": e.session, "role": e.role, "content": e.content, "time": e.time}
                for e in episodes]  # fmt: skip

    def memory_sessions() -> list[dict[str, Any]]:
        """List the sessions, with the number of their messages."""
        with lock:
            return [{"session": name, "messages": n} for name, n in memory.episodic.sessions()]

    for function in (memory_recall, memory_search, memory_sessions):
        tools.reading(function)
    tools.adding(memory_remember)
    tools.adding(memory_note)
    tools.destroying(memory_forget)


def _checkpoints(tools: _Tools, offer: Offer) -> None:
    del offer
    catalogue = tools.catalogue

    def checkpoints_list(phase: str = "") -> list[dict[str, Any]]:
        """List the checkpoints, oldest first; of one phase where it is named."""
        rows = [catalogue.summary(opened) for opened in catalogue.all()]
        return [row for row in rows if not phase or row["phase"] == phase]

    def checkpoints_manifest(checkpoint: str) -> dict[str, Any]:
        """Show a checkpoint by id or name: lineage, settings, metrics, files, agent."""
        return catalogue.manifest(catalogue.get(checkpoint))

    def checkpoints_read(checkpoint: str, file: str) -> str:
        """Read a small text file of a checkpoint, such as README.md or config.json."""
        return catalogue.read(catalogue.get(checkpoint), file)

    def checkpoints_verify(checkpoint: str) -> str:
        """Check every file of a checkpoint against its hash; return ok, or what is damaged."""
        return catalogue.verify(catalogue.get(checkpoint))

    for function in (checkpoints_list, checkpoints_manifest, checkpoints_read, checkpoints_verify):
        tools.reading(function)


def _registry(tools: _Tools, offer: Offer) -> None:
    from agent_forge.server.mcp.registry import GitRegistry

    git = GitRegistry(offer.repository, offer.state)
    lock = Lock()  # a fetch moves FETCH_HEAD

    def registry_branches() -> list[dict[str, str]]:
        """List the branches of the registry, with their commits."""
        return git.refs("heads")

    def registry_tags() -> list[dict[str, str]]:
        """List the tags of the registry, with their commits."""
        return git.refs("tags")

    def registry_models(ref: str) -> list[str]:
        """List the models of a branch, tag or commit; "." is the repository itself."""
        with lock:
            return git.models(ref)

    def registry_manifest(ref: str, model: str = ".") -> dict[str, Any]:
        """Show the manifest of a model at a branch, tag or commit."""
        with lock:
            return git.manifest(ref, model)

    def registry_card(ref: str, model: str = ".") -> str:
        """Show the model card of a model at a branch, tag or commit."""
        with lock:
            return git.card(ref, model)

    def registry_pointers(ref: str, model: str = ".") -> list[dict[str, Any]]:
        """List the large files of a model (LFS pointers) by hash and size; none is fetched."""
        with lock:
            return git.pointers(ref, model)

    for function in (registry_branches, registry_tags, registry_models, registry_manifest,
                     registry_card, registry_pointers):  # fmt: skip
        tools.reading(function)


def _evaluations(tools: _Tools, offer: Offer) -> None:
    from agent_forge.server.mcp.catalogue import without_paths
    from agent_forge.server.mcp.evaluations import Evaluations

    catalogue, evaluations = tools.catalogue, Evaluations(offer.state)

    def eval_tasks() -> list[str]:
        """List the evaluation tasks."""
        return evaluations.tasks()

    def eval_read(checkpoint: str) -> dict[str, Any]:
        """Show what was measured of a checkpoint: by its phase, and by evaluations since."""
        opened = catalogue.get(checkpoint)
        measured = evaluations.read(opened.id)
        return {"phase": without_paths(opened.metrics), "evaluations": measured}

    def eval_run(
        checkpoint: str, tasks: list[str], items: int = 50, split: str = "test"
    ) -> dict[str, Any]:
        """Score a checkpoint on held-out items; minutes, as a rule. One runs at a time."""
        return evaluations.run(catalogue.get(checkpoint), tasks, items, split)

    tools.reading(eval_tasks)
    tools.reading(eval_read)
    tools.adding(eval_run)


_ROOMS: dict[str, Callable[[_Tools, Offer], None]] = {
    "memory": _memory,
    "checkpoints": _checkpoints,
    "registry": _registry,
    "evaluations": _evaluations,
}
