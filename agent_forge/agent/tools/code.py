"""Run a Python program in a sandbox and return what it prints, and the value of its last line."""

from typing import Any

from agent_forge.agent import sandbox
from agent_forge.agent.tools import ToolContext, ToolError

NAME = "code"
DESCRIPTION = (
    "Run a short Python program and return what it prints; the value of the last line is shown too."
)
PARAMETERS = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "description": "Python source; no network, no files"}
    },
    "required": ["code"],
}


def run(arguments: dict[str, Any], context: ToolContext) -> str:
    """Return the printed text and the last value.

    Raises ToolError on an error in the program or a limit that was hit.
    """
    try:
        return sandbox.run_python(
            arguments["code"],
            kind=context.code_sandbox,
            timeout_seconds=context.timeout_seconds,
            memory_bytes=context.memory_bytes,
        )
    except sandbox.SandboxError as error:
        raise ToolError(str(error)) from None
