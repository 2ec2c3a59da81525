"""The Model Context Protocol, offered: `forge mcp` over stdio or streamable HTTP.

    memory       state across sessions: facts and messages of an agent's memory file
    checkpoints  the models below one directory, by id and name; no path leaves
    registry     versions of models in a git repository: branches, tags, manifests, cards, pointers
    evaluations  run `forge eval` on a checkpoint, and read what was measured

`offer.py` puts the rooms that are asked for into one server, `http.py` makes an ASGI application of
it for `forge mcp --http` and `forge serve`. Importing this package needs none of the extras.
"""

ROOMS = ("memory", "checkpoints", "registry", "evaluations")
