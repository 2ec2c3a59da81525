"""A toolbox runs calls of the tools that were enabled, and answers everything else with an error.

A model reads the errors, so each says what would be right. A destructive tool is denied unless it
is allowed by name; a call of an allowed one waits for a person, whose confirmation holds for those
arguments alone.
"""

import hmac
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agent_forge.agent.arguments import check_arguments
from agent_forge.agent.tool import (
    Confirmation,
    Result,
    Tool,
    ToolContext,
    ToolError,
    call_digest,
)
from agent_forge.agent.tool_sources.builtin import builtin_tool
from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.data.calls import BrokenCall, Call


@dataclass(slots=True)
class Toolbox:
    """The tools that are enabled: names of built-in ones, or `Tool`s.

    allow: the destructive tools that may run. confirm: each of their calls waits for a person.
    Everything not named is denied. Raises ConfigError on an unknown name and on two tools of one
    name.
    """

    tools: Sequence[str | Tool]
    context: ToolContext = field(default_factory=ToolContext)
    allow: Collection[str] = ()
    confirm: bool = True
    _tools: dict[str, Tool] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._tools = {}
        for item in self.tools:
            tool = builtin_tool(item) if isinstance(item, str) else item
            other = self._tools.setdefault(tool.name, tool)
            if other is not tool and other != tool:
                raise ConfigError(
                    f"two tools are named '{tool.name}': of {other.source} and of {tool.source}; "
                    "rename one"
                )
        for name in self.allow:
            if name not in self._tools:
                raise ConfigError(
                    f"allow: no tool '{name}' is enabled{did_you_mean(name, self._tools)}; "
                    f"enabled: {', '.join(self._tools) or 'none'}"
                )

    @property
    def names(self) -> list[str]:
        """Return the names of the enabled tools."""
        return list(self._tools)

    def enabled(self) -> list[Tool]:
        """Return the enabled tools."""
        return list(self._tools.values())

    def schemas(self) -> list[dict[str, Any]]:
        """Return the tools in the form that chat templates take."""
        return [tool.schema() for tool in self._tools.values()]

    def parameters(self) -> dict[str, Any]:
        """Return the schema of each tool's arguments, by its name."""
        return {name: tool.parameters for name, tool in self._tools.items()}

    def read_only(self) -> "Toolbox":
        """Return the same tools with every destructive one denied."""
        return replace(self, allow=())

    def has_changed_things(self, results: Iterable[Result]) -> bool:
        """Return whether a destructive tool ran among these results of this toolbox."""
        return any(
            isinstance(result.call, Call) and self._tools[result.call.name].destructive
            for result in results
            if not result.error
        )

    def run(self, call: Call | BrokenCall, confirmed: str = "") -> Result:
        """Run one call and return its result; what went wrong is a result too.

        confirmed: the digest of the `Confirmation` that a person gave for this call.
        """
        if isinstance(call, BrokenCall):
            return Result(call, f"error: {call.message}", error=True)
        tool = self._tools.get(call.name)
        if tool is None:
            enabled = ", ".join(self.names) or "none"
            hint = did_you_mean(call.name, self.names)
            return Result(
                call,
                f"error: no tool '{call.name}' is enabled{hint}; enabled: {enabled}",
                error=True,
            )
        try:
            arguments = check_arguments(call, tool.parameters)
            refusal = self._refusal(tool, call, confirmed)
            if refusal is not None:
                return refusal
            if tool.run is None:
                raise ToolError(f"'{tool.name}' is known by its schema only, so nothing was run")
            text = str(tool.run(arguments, self.context))
        except (ToolError, ConfigError) as error:
            return Result(call, f"error: {error}", error=True)
        # No tokenizer accepts half of a surrogate pair.
        text = text.encode("utf-8", "backslashreplace").decode()
        limit = self.context.result_characters
        return Result(call, text if len(text) <= limit else text[: limit - 1] + "…")

    def _refusal(self, tool: Tool, call: Call, confirmed: str) -> Result | None:
        """Return why a call of a destructive tool does not run now, or None where it may."""
        if not tool.destructive:
            return None
        if tool.name not in self.allow:
            text = f"error: '{tool.name}' changes things and is denied; nothing was run"
            return Result(call, text, error=True)
        digest = call_digest(call)
        if not self.confirm or hmac.compare_digest(confirmed, digest):
            return None
        text = f"error: '{tool.name}' waits for the user's confirmation; nothing was run"
        return Result(call, text, error=True, confirmation=Confirmation(call, digest))
