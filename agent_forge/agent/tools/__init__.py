"""Tools that an agent may call: one file per tool, loaded by its name.

A tool is a module with NAME, DESCRIPTION, PARAMETERS (JSON schema of its arguments) and
`run(arguments, context) -> str`. `Toolbox` runs calls: only tools that were enabled, only arguments
that fit the schema; everything else is answered with an error text that the model reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from agent_forge.agent.calls import BrokenCall, Call
from agent_forge.agent.documents import DocumentIndex
from agent_forge.agent.memory import Memory
from agent_forge.core import registry
from agent_forge.core.errors import ConfigError, ForgeError, did_you_mean

PACKAGE = "agent_forge.agent.tools"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}


class ToolError(ForgeError):
    """A tool cannot do what the call asks for; the model reads the message."""


@dataclass(slots=True, kw_only=True)
class ToolContext:
    """What tools may reach. A tool whose part is missing refuses."""

    memory: Memory | None = None
    documents: DocumentIndex | None = None
    timeout_seconds: float = 5.0
    memory_bytes: int = 64 * 2**20
    # monty (its own interpreter, a subset of Python) or bubblewrap (full Python)
    code_sandbox: str = "monty"
    result_characters: int = 2000  # longer results are cut


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one call.

    `error` is True where the tool did not run or failed; `text` then says why.
    """

    call: Call | BrokenCall
    text: str
    error: bool = False


@dataclass(slots=True)
class Toolbox:
    """The tools that are enabled.

    Everything not named is denied. Raises ConfigError on an unknown name.
    """

    names: Sequence[str]
    context: ToolContext = field(default_factory=ToolContext)
    _modules: dict[str, ModuleType] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._modules = {name: registry.load(PACKAGE, name, "tool") for name in self.names}

    def schemas(self) -> list[dict[str, Any]]:
        """Return the tools in the form that chat templates take."""
        return [
            {
                "type": "function",
                "function": {
                    "name": m.NAME,
                    "description": m.DESCRIPTION,
                    "parameters": m.PARAMETERS,
                },
            }
            for m in self._modules.values()
        ]

    def run(self, call: Call | BrokenCall) -> Result:
        """Run one call and return its result; what went wrong is a result too."""
        if isinstance(call, BrokenCall):
            return Result(call, f"error: {call.message}", error=True)
        module = self._modules.get(call.name)
        if module is None:
            enabled = ", ".join(self.names) or "none"
            hint = did_you_mean(call.name, self.names)
            return Result(
                call,
                f"error: no tool '{call.name}' is enabled{hint}; enabled: {enabled}",
                error=True,
            )
        try:
            arguments = check_arguments(call, module.PARAMETERS)
            text = str(module.run(arguments, self.context))
        except (ToolError, ConfigError) as error:
            return Result(call, f"error: {error}", error=True)
        # No tokenizer accepts half of a surrogate pair.
        text = text.encode("utf-8", "backslashreplace").decode()
        limit = self.context.result_characters
        return Result(call, text if len(text) <= limit else text[: limit - 1] + "…")


def check_arguments(call: Call, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments when they fit the schema; an integer written as text is taken.

    Raises ToolError.
    """
    properties: Mapping[str, Any] = schema["properties"]
    arguments = dict(call.arguments)
    for name in schema.get("required", ()):
        if name not in arguments:
            raise ToolError(f"{call.name} needs '{name}'; its arguments: {', '.join(properties)}")
    for name, value in arguments.items():
        if name not in properties:
            raise ToolError(f"{call.name} has no argument '{name}'{did_you_mean(name, properties)}")
        kind = properties[name]["type"]
        if kind == "integer" and isinstance(value, str) and value.strip().lstrip("-").isdigit():
            arguments[name] = value = int(value)
        if kind == "string" and isinstance(value, int | float) and not isinstance(value, bool):
            arguments[name] = value = str(value)
        if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
            raise ToolError(f"{call.name}: '{name}' must be a JSON {kind}, got {value!r}")
    return arguments
