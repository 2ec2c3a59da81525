"""What a tool is, wherever it comes from: a name, a description, a JSON schema, and code to run.

Built-in modules, a user's Python functions, schema and OpenAPI files, and MCP servers all become
`Tool`s (`tool_sources/`), and a `Toolbox` runs the enabled ones. A manifest keeps each tool as
`Tool.entry()`: the name alone for a built-in one, else the schema with its source and hash, so that
the agent can offer it again without its code.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from agent_forge.core.errors import ConfigError, ForgeError, did_you_mean
from agent_forge.data.calls import BrokenCall, Call

if TYPE_CHECKING:
    from agent_forge.agent.documents import Documents
    from agent_forge.agent.memory import Memory

KINDS = ("builtin", "python", "schema", "openapi", "mcp")
ENTRY_KEYS = ("name", "description", "parameters", "destructive", "source")
ANY_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}}


class ToolError(ForgeError):
    """A tool cannot do what the call asks for; the model reads the message."""


@dataclass(slots=True, kw_only=True)
class ToolContext:
    """What tools may reach. A tool whose part is missing refuses."""

    memory: "Memory | None" = None
    documents: "Documents | None" = None
    timeout_seconds: float = 5.0
    memory_bytes: int = 64 * 2**20
    # monty (its own interpreter, a subset of Python) or bubblewrap (full Python)
    code_sandbox: str = "monty"
    result_characters: int = 2000  # longer results are cut


Run = Callable[[dict[str, Any], ToolContext], str]


@dataclass(frozen=True, slots=True)
class ToolSource:
    """Where a tool comes from.

    kind: one of KINDS. place: the file, the URL, or the command of a server. sha256: of the file,
    or of the tools that a server listed.
    """

    kind: str = "builtin"
    place: str = ""
    sha256: str = ""

    def __str__(self) -> str:
        return self.place or self.kind


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool.

    parameters: the JSON schema of its arguments. run: (arguments, context) -> text, or None where
    nothing implements it: its calls are then written and scored, never run. destructive: it changes
    something outside, so it is denied unless it is allowed by name.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Run | None = field(default=None, compare=False)  # one source gives one code
    destructive: bool = False
    source: ToolSource = field(default_factory=ToolSource)

    def schema(self) -> dict[str, Any]:
        """Return the tool in the form that chat templates take."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        return {"type": "function", "function": function}

    def entry(self) -> str | dict[str, Any]:
        """Return what a manifest keeps of the tool: a built-in one's name, else all but code."""
        if self.source.kind == "builtin":
            return self.name
        return {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
            "destructive": self.destructive,
            "source": asdict(self.source),
        }

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> "Tool":
        """Return the tool of a manifest's entry, without code. Raises ConfigError."""
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            raise ConfigError(f"agent.tools: an entry needs a name, got {str(entry)[:60]}")
        for key in entry:
            if key not in ENTRY_KEYS:
                hint = did_you_mean(key, ENTRY_KEYS)
                raise ConfigError(
                    f"agent.tools, {name}: '{key}' is not known{hint}; "
                    f"known: {', '.join(ENTRY_KEYS)}"
                )
        source = entry.get("source") or {}
        if source.get("kind") not in KINDS:
            raise ConfigError(
                f"agent.tools, {name}: source.kind must be one of {', '.join(KINDS)}, "
                f"got {source.get('kind')!r}"
            )
        return cls(
            name,
            entry.get("description", ""),
            entry.get("parameters", ANY_ARGUMENTS),
            destructive=bool(entry.get("destructive", False)),
            source=ToolSource(**source),
        )


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What a person is asked before a destructive tool runs, bound to these very arguments."""

    call: Call
    digest: str

    def __str__(self) -> str:
        return f"{self.call.name}({json.dumps(self.call.arguments, ensure_ascii=False)})"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one call.

    error: the tool did not run or failed; `text` then says why. confirmation: the call waits for a
    person; run it again with `confirmed=confirmation.digest`.
    """

    call: Call | BrokenCall
    text: str
    error: bool = False
    confirmation: Confirmation | None = None


def call_digest(call: Call) -> str:
    """Return the hash of a call's name and arguments; the order of keys does not matter."""
    text = json.dumps([call.name, call.arguments], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
