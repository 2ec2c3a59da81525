"""What `forge serve` makes of its settings."""

import asyncio
import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from agent_forge.core.errors import ConfigError
from agent_forge.server import audit
from agent_forge.server.composer.client import Composer
from agent_forge.server.listening import bound
from agent_forge.server.serving import AUDIT, ServeSettings, application, opened
from tests.server.house import HOME


def test_heads_of_the_audit_log_leave_with_every_record_and_a_lost_one_is_a_503(
    tmp_path: Path,
) -> None:
    elsewhere, state = tmp_path / "elsewhere", tmp_path / "state"
    elsewhere.mkdir()
    settings = ServeSettings(state=state, watch=[], audit_heads=f"sh -c 'cat >> {elsewhere}/heads'")
    with opened(settings) as service:
        service.composer = Composer(early=False)
        app = application(service, settings, [])
        with TestClient(app, base_url=HOME) as client:
            assert [client.get("/v1/jobs").status_code for _ in range(3)] == [401] * 3
            heads = audit.read_heads((elsewhere / "heads").read_text())
            assert [head.seq for head in heads] == [1, 2, 3]
            assert audit.verify(state / AUDIT, heads=heads).intact
            (elsewhere / "heads").unlink()
            elsewhere.rmdir()
            assert client.get("/v1/jobs").status_code == 503
    # Who cuts the log and its own head is seen by the heads elsewhere.
    (state / AUDIT).write_bytes(b"".join((state / AUDIT).read_bytes().splitlines(True)[:1]))
    (state / AUDIT).with_suffix(".head").unlink()
    assert not audit.verify(state / AUDIT, heads=heads).intact


def test_answers_do_not_wait_for_acknowledgements() -> None:
    async def option_of_a_connection() -> int:
        options: list[int] = []

        async def served(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            options.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = bound("127.0.0.1", 0)
        async with await asyncio.start_server(served, sock=listener):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            await reader.read()
            writer.close()
        return options[0]

    assert asyncio.run(option_of_a_connection()) == 1


def test_a_command_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    settings = ServeSettings(state=tmp_path, watch=[], audit_heads="logger 'open")
    refusal = pytest.raises(ConfigError, match="--audit-heads logger 'open: No closing quotation")
    with refusal, opened(settings):
        pass
