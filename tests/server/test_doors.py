"""A door of another room, MCP over HTTP, behind the wall of the service and in its lifespan."""

from pathlib import Path

import pytest

from agent_forge.server.app import Door
from agent_forge.server.mcp.http import PATH, SCOPE, application, local_hosts
from agent_forge.server.mcp.offer import Offer
from tests.server.house import house

pytest.importorskip("mcp")
HELLO = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18", "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}  # fmt: skip
ACCEPT = {"accept": "application/json, text/event-stream"}


def test_mcp_answers_behind_the_wall_to_keys_with_its_scope_alone(tmp_path: Path) -> None:
    offer = Offer(
        rooms=["checkpoints"], models=tmp_path, memory=str(tmp_path / "memory.sqlite"),
        repository="", state=tmp_path / "mcp",
    )  # fmt: skip
    served = application(offer, None, hosts=local_hosts())
    door = Door(prefix=PATH, scope=SCOPE, routes=served.app.routes, lifespan=served.lifespan)
    with house(tmp_path / "state", (door,)) as server:
        answer = server.client.post(PATH, json=HELLO, headers=ACCEPT)
        assert answer.status_code == 200, answer.text
        assert "agent-forge" in answer.text
        _, reader = server.service.ring.create("reader", ["read"])
        _, user = server.service.ring.create("user", [SCOPE])
        for token, status in (("forge_wrong", 401), (reader, 403), (user, 200)):
            headers = {**ACCEPT, "authorization": f"Bearer {token}"}
            assert server.client.post(PATH, json=HELLO, headers=headers).status_code == status
        foreign = {**ACCEPT, "host": "evil.example"}
        assert server.client.post(PATH, json=HELLO, headers=foreign).status_code == 421
