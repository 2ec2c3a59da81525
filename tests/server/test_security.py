"""The wall around the service: keys, tickets, hosts, origins, bodies, rates and headers.

A small application stands behind it, which answers whatever reaches it with 200 and the key's name.
"""

import json
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse, WebSocketTestSession
from starlette.websockets import WebSocket

from agent_forge.core.errors import ConfigError, StorageError
from agent_forge.server.listening import is_loopback
from agent_forge.server.security.keys import Key, KeyRing, first_key
from agent_forge.server.security.rates import Rates
from agent_forge.server.security.tickets import LIFE_SECONDS, Tickets
from agent_forge.server.security.wall import Wall

HOME = "http://127.0.0.1:8083"


async def _echo(request: Request) -> JSONResponse:
    key: Key | None = request.scope.get("state", {}).get("key")
    return JSONResponse({"key": key.name if key else "", "bytes": len(await request.body())})


async def _socket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(socket.scope["state"]["key"].name)
    await socket.close()


class Scene:
    """A wall, the application behind it, and a client with a key."""

    def __init__(self, state: Path, **changes: Any) -> None:
        self.ring = KeyRing(state)
        self.key, self.token = self.ring.create("tester", ["admin"])
        routes: list[Any] = [
            Route("/healthz", lambda _: PlainTextResponse("ok")),
            Route("/tools/echo", _echo, methods=["GET", "POST"]),
            Route("/{rest:path}", _echo, methods=["GET", "POST"]),
            WebSocketRoute("/socket", _socket),
        ]
        self.wall = Wall(
            ring=self.ring, public=("/healthz", "/assets/"), mounted={"/tools": "mcp"}, **changes
        )
        app = self.wall.around(Starlette(routes=routes))
        self.client = TestClient(app, base_url=HOME)
        self.bearer = {"authorization": f"Bearer {self.token}"}

    def socket(self, path: str, headers: dict[str, str] | None = None) -> WebSocketTestSession:
        """Open a WebSocket of the server; the test client knows only another name of it."""
        return self.client.websocket_connect(f"ws://127.0.0.1:8083{path}", headers=headers or {})


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


# Keys


def test_a_key_verifies_by_its_token_alone(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    key, token = ring.create("laptop", ["read", "run"])
    assert ring.verify(token) == key
    assert len(token.split("_", 2)[2]) == 43, "256 bits in base64"
    for wrong in (
        token[:-1],
        token + "A",
        token[:-1] + ("A" if token[-1] != "A" else "B"),
        "",
        key.id,
    ):
        assert ring.verify(wrong) is None


def test_the_file_of_keys_holds_no_key_and_is_its_owners_alone(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    tokens = [ring.create(f"k{n}", ["read"])[1] for n in range(3)]
    assert stat.S_IMODE(ring.path.stat().st_mode) == 0o600
    for token in tokens:
        assert token.split("_", 2)[2] not in ring.path.read_text()


def test_a_second_process_sees_a_new_key_and_a_revoked_one_at_once(tmp_path: Path) -> None:
    server, shell = KeyRing(tmp_path), KeyRing(tmp_path)
    key, token = shell.create("laptop", ["read"])
    assert server.verify(token) == key
    shell.revoke(key.id)
    assert server.verify(token) is None
    assert server.current(key.id) is None
    assert [one.revoked > 0 for one in server.list()] == [True]


def test_an_expired_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing(tmp_path)
    _, token = ring.create("short", ["read"], expires_days=1)
    assert ring.verify(token)
    later = time.time() + 86401
    monkeypatch.setattr("agent_forge.server.security.keys.time.time", lambda: later)
    assert ring.verify(token) is None


def test_scopes_are_checked_and_admin_has_all(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    with pytest.raises(ConfigError, match="no scope 'raed'; did you mean 'read'"):
        ring.create("x", ["raed"])
    with pytest.raises(ConfigError, match="needs a scope"):
        ring.create("x", [])
    admin, _ = ring.create("x", ["admin"])
    reader, _ = ring.create("y", ["read"])
    assert admin.allows("run")
    assert reader.allows("read")
    assert not reader.allows("run")


def test_revoking_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    key, _ = ring.create("x", ["read"])
    with pytest.raises(ConfigError, match=f"did you mean '{key.id}'"):
        ring.revoke(key.id[:-1] + "x")


def test_a_damaged_file_of_keys_lets_nobody_in(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    _, token = ring.create("x", ["read"])
    ring.path.write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        ring.verify(token)


def test_a_server_that_cannot_read_its_keys_says_so_without_its_places(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.ring.path.write_text("{")
    answer = scene.client.get("/x", headers=scene.bearer)
    assert answer.status_code == 503
    assert answer.headers["x-frame-options"] == "DENY"
    message = answer.json()["error"]["message"]
    assert "cannot read its keys" in message
    assert str(scene.ring.path.parent) not in message
    assert str(scene.ring.path) in caplog.text
    assert scene.client.get("/healthz").status_code == 200
    scene.ring.path.unlink()
    assert scene.client.get("/x", headers=scene.bearer).status_code == 401


def test_the_first_key_is_told_to_a_terminal_or_left_in_a_private_file(tmp_path: Path) -> None:
    line = first_key(KeyRing(tmp_path / "a"), terminal=True)
    assert KeyRing(tmp_path / "a").verify(line.split()[-1])
    assert not (tmp_path / "a" / "first-key").exists()
    line = first_key(KeyRing(tmp_path / "b"), terminal=False)
    place = tmp_path / "b" / "first-key"
    assert str(place) in line
    assert "forge_" not in line
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert KeyRing(tmp_path / "b").verify(place.read_text().strip())
    assert first_key(KeyRing(tmp_path / "b"), terminal=True) == "", "there is one already"


# Who comes in


def test_nothing_but_public_paths_answers_without_a_key(scene: Scene) -> None:
    assert scene.client.get("/healthz").status_code == 200
    for path in ("/", "/v1/jobs", "/never/written", "/healthz/x", "/healthzz", "/assets"):
        answer = scene.client.get(path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "line",
    ["", "Bearer", "Bearer ", "Bearer forge_00000000_" + "A" * 43, "Basic {token}", "{token}",
     "Bearer {token}x", "Bearer {token} {token}", "Bearer null", "bearer\t{token}"],
)  # fmt: skip
def test_a_wrong_authorization_is_refused(scene: Scene, line: str) -> None:
    headers = {"authorization": line.replace("{token}", scene.token)}
    assert scene.client.get("/x", headers=headers).status_code == 401


def test_two_authorizations_are_refused_although_one_is_right(scene: Scene) -> None:
    lines = [("authorization", f"Bearer {scene.token}"), ("authorization", "Bearer x")]
    assert scene.client.get("/x", headers=lines).status_code == 401
    assert scene.client.get("/x", headers=scene.bearer).json()["key"] == "tester"


def test_a_key_in_the_url_opens_nothing(scene: Scene) -> None:
    for name in ("key", "token", "api_key", "access_token", "ticket", "authorization"):
        assert scene.client.get(f"/x?{name}={scene.token}").status_code == 401


def test_a_mounted_application_needs_its_scope(scene: Scene) -> None:
    _, token = scene.ring.create("reader", ["read"])
    answer = scene.client.get("/tools/echo", headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 403
    assert "'mcp'" in answer.json()["error"]["message"]
    assert scene.client.get("/tools/echo", headers=scene.bearer).status_code == 200


# Hosts and pages


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8083", "127.0.0.1.evil.example", "localhost.evil.example",
     "127.0.0.1@evil.example", "evil.example#127.0.0.1", "127.0.0.1:8083:1", "127.0.0.1:x", "",
     "127.0.0.2", "[::1", "0.0.0.0", "127.0.0.1/", "localhost\\"],
)  # fmt: skip
def test_a_foreign_or_malformed_host_is_refused_although_the_key_is_right(
    scene: Scene, host: str
) -> None:
    answer = scene.client.get("/x", headers={**scene.bearer, "host": host})
    assert answer.status_code == 421


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8083", "127.0.0.1:1", "[::1]:8083", "[::1]"]
)
def test_the_names_of_this_machine_are_accepted(scene: Scene, host: str) -> None:
    assert scene.client.get("/x", headers={**scene.bearer, "host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:9999", "http://127.0.0.1:8083.evil.example",
     "http://evil.example/127.0.0.1:8083", "file://", "ftp://127.0.0.1:8083", "http://[::1", ""],
)  # fmt: skip
def test_pages_of_another_origin_are_refused(scene: Scene, origin: str) -> None:
    answer = scene.client.get("/x", headers={**scene.bearer, "origin": origin})
    assert answer.status_code == 403


def test_pages_of_this_server_and_allowed_ones_pass(tmp_path: Path) -> None:
    scene = Scene(tmp_path, origins=("https://panel.example",))
    for origin in (HOME, "https://panel.example"):
        headers = {**scene.bearer, "origin": origin, "sec-fetch-site": "cross-site"}
        assert scene.client.get("/x", headers=headers).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
def test_requests_that_browsers_mark_as_foreign_are_refused(scene: Scene, site: str) -> None:
    headers = {**scene.bearer, "sec-fetch-site": site}
    assert scene.client.get("/x", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""],
)
def test_what_a_form_can_send_is_refused(scene: Scene, kind: str) -> None:
    headers = {**scene.bearer, "content-type": kind}
    answer = scene.client.post("/x", content=b"{}", headers=headers)
    assert answer.status_code == 415


def test_json_and_empty_bodies_are_accepted(scene: Scene) -> None:
    assert scene.client.post("/x", json={}, headers=scene.bearer).status_code == 200
    assert scene.client.post("/x", headers=scene.bearer).status_code == 200


# Bodies


def test_a_long_body_is_refused_announced_or_not(tmp_path: Path) -> None:
    scene = Scene(tmp_path, most_bytes=1000)
    headers = {**scene.bearer, "content-type": "application/json"}
    assert scene.client.post("/x", content=b"1" * 1000, headers=headers).json()["bytes"] == 1000
    assert scene.client.post("/x", content=b"1" * 1001, headers=headers).status_code == 413
    pieces = (b"1" * 100 for _ in range(11))
    answer = scene.client.post("/x", content=pieces, headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "request_too_large"


# Rates


def test_too_many_requests_of_a_key_wait_as_long_as_told(tmp_path: Path) -> None:
    scene = Scene(tmp_path, rates=Rates(requests_per_minute=5))
    codes = [scene.client.get("/x", headers=scene.bearer).status_code for _ in range(7)]
    assert codes == [200] * 5 + [429] * 2
    answer = scene.client.get("/x", headers=scene.bearer)
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    _, other = scene.ring.create("other", ["read"])
    headers = {"authorization": f"Bearer {other}"}
    assert scene.client.get("/x", headers=headers).status_code == 200, "each key has its own count"


def test_guessing_keys_ends_sooner_and_does_not_lock_the_owner_out(tmp_path: Path) -> None:
    scene = Scene(tmp_path, rates=Rates(requests_per_minute=100, failures_per_minute=3))
    wrong = {"authorization": "Bearer forge_00000000_" + "A" * 43}
    codes = [scene.client.get("/x", headers=wrong).status_code for _ in range(5)]
    assert codes == [401] * 3 + [429] * 2
    assert scene.client.get("/x", headers=wrong).headers["retry-after"]
    assert scene.client.get("/x", headers=scene.bearer).status_code == 200


# WebSockets


def test_a_ticket_opens_one_socket_once(scene: Scene) -> None:
    ticket = scene.wall.tickets.make(scene.key.id)
    with scene.socket(f"/socket?ticket={ticket}") as socket:
        assert socket.receive_text() == "tester"
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        scene.socket(f"/socket?ticket={ticket}"),
    ):
        pass
    assert refused.value.status_code == 401


def test_a_key_opens_a_socket_by_its_header_and_not_by_the_url(scene: Scene) -> None:
    with scene.socket("/socket", headers=scene.bearer) as socket:
        assert socket.receive_text() == "tester"
    for query in (
        "",
        f"?key={scene.token}",
        f"?ticket={scene.token}",
        "?ticket=",
        "?ticket=a&ticket=b",
    ):
        with (
            pytest.raises(WebSocketDenialResponse) as refused,
            scene.socket(f"/socket{query}"),
        ):
            pass
        assert refused.value.status_code == 401


def test_a_foreign_page_opens_no_socket_even_with_a_ticket(scene: Scene) -> None:
    ticket = scene.wall.tickets.make(scene.key.id)
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        scene.socket(f"/socket?ticket={ticket}", headers={"origin": "https://evil.example"}),
    ):
        pass
    assert refused.value.status_code == 403


def test_tickets_grow_old_and_die_with_their_key(tmp_path: Path) -> None:
    now = 0.0
    tickets = Tickets(lambda: now)
    old, fresh = tickets.make("a"), tickets.make("b")
    assert tickets.take("nonsense") == ""
    now = LIFE_SECONDS - 0.1
    assert tickets.take(fresh) == "b"
    now = LIFE_SECONDS
    assert tickets.take(old) == ""
    scene = Scene(tmp_path)
    ticket = scene.wall.tickets.make(scene.key.id)
    scene.ring.revoke(scene.key.id)
    with (
        pytest.raises(WebSocketDenialResponse),
        scene.socket(f"/socket?ticket={ticket}"),
    ):
        pass


# Answers


def test_every_answer_carries_the_headers_refusals_too(scene: Scene) -> None:
    answers = [
        scene.client.get("/healthz"), scene.client.get("/x"),
        scene.client.get("/x", headers={"host": "evil.example"}),
        scene.client.get("/x", headers=scene.bearer),
    ]  # fmt: skip
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_a_refusal_never_repeats_the_key(scene: Scene) -> None:
    wrong = scene.token[:-1] + ("A" if scene.token[-1] != "A" else "B")
    answer = scene.client.get("/x", headers={"authorization": f"Bearer {wrong}"})
    assert wrong not in json.dumps(answer.json()) + json.dumps(dict(answer.headers))


def test_only_loopback_counts_as_this_machine() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.5.5.5"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"))
