"""MCP over HTTP as `forge serve --mcp` offers it: behind the wall, in the server's lifespan."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from agent_forge.checkpoint import Checkpoint
from agent_forge.core.errors import ConfigError
from agent_forge.server.composer.client import Composer
from agent_forge.server.doors import open_doors
from agent_forge.server.mcp.http import PATH, SCOPE
from agent_forge.server.serving import ServeSettings, application, opened
from tests.server.house import HOME

pytest.importorskip("mcp")
HELLO = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18", "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}  # fmt: skip
LIST = {
    "jsonrpc": "2.0", "id": 2, "method": "tools/call",
    "params": {"name": "checkpoints_list", "arguments": {}},
}  # fmt: skip
ACCEPT = {"accept": "application/json, text/event-stream"}


def test_mcp_is_offered_on_demand_to_keys_with_its_scope_alone(
    tmp_path: Path, shelf: Checkpoint
) -> None:
    settings = ServeSettings(
        state=tmp_path / "state", watch=[shelf.path.parent], mcp_rooms=("checkpoints", "memory")
    )
    with opened(settings) as service:
        service.composer = Composer(early=False)
        assert not [one for one in open_doors(replace(service, mcp_rooms=())) if one.prefix == PATH]
        with pytest.raises(ConfigError, match="did you mean 'memory'"):
            open_doors(replace(service, mcp_rooms=("memry",)))
        tokens = {
            scope: service.ring.create(scope, [scope])[1] for scope in ("admin", "read", SCOPE)
        }
        app = application(service, settings, open_doors(service))
        with TestClient(app, base_url=HOME) as client:

            def post(token: str, body: Any = HELLO, **headers: str) -> Any:
                shown = {"authorization": f"Bearer {token}"}
                return client.post(PATH, json=body, headers={**ACCEPT, **shown, **headers})

            for token, status in (
                ("forge_wrong", 401), (tokens["read"], 403), (tokens["admin"], 200),
            ):  # fmt: skip
                assert post(token).status_code == status
            assert post(tokens[SCOPE], host="evil.example").status_code == 421
            assert post(tokens[SCOPE], origin="http://evil.example").status_code == 403
            hello = post(tokens[SCOPE], origin=HOME)
            assert hello.status_code == 200, hello.text
            session = {"mcp-session-id": hello.headers["mcp-session-id"]}
            answer = post(tokens[SCOPE], LIST, **session).text
            line = next(one for one in answer.splitlines() if one.startswith("data: {"))
            result = json.loads(line.removeprefix("data: "))["result"]
            assert [one["id"] for one in result["structuredContent"]["result"]] == [shelf.id]
            assert str(shelf.path.parent) not in answer
