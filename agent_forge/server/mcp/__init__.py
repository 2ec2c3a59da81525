"""The Model Context Protocol, offered: `forge mcp` over stdio or streamable HTTP.

    memory       state across sessions: facts and messages of an agent's memory file
    checkpoints  the models below one directory, by id and name; no path leaves
    registry     versions of models in a git repository: branches, tags, manifests, cards, pointers
    evaluations  run `forge eval` on a checkpoint, and read what was measured

`offer.py` puts the rooms that are asked for into one server, `http.py` makes an ASGI application of
it for `forge mcp --http` and `forge serve`. Importing this package needs none of the extras.
"""

import importlib.util
from collections.abc import Sequence

from agent_forge.core.errors import ConfigError, did_you_mean

ROOMS = ("memory", "checkpoints", "registry", "evaluations")


def check_rooms(rooms: Sequence[str], repository: str, option: str) -> None:
    """Raise ConfigError for a room that does not exist or lacks its part, and where mcp is missing.

    option: names the repository of the room "registry" on the command line.
    """
    for room in rooms:
        if room not in ROOMS:
            raise ConfigError(
                f"no room '{room}'{did_you_mean(room, ROOMS)}; known: {', '.join(ROOMS)}"
            )
    if "registry" in rooms and not repository:
        raise ConfigError(f"the room registry needs {option} ADDRESS")
    if importlib.util.find_spec("mcp") is None:
        raise ConfigError("MCP needs the package mcp: pip install 'agent-forge[agent]'")
