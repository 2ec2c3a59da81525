"""Live updates: the same numbered messages over WebSocket and server-sent events, none lost."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from agent_forge.server.jobs import JobState
from agent_forge.server.live import socket as socket_room
from agent_forge.server.live.hub import NEWEST
from agent_forge.server.live.messages import message_of
from agent_forge.server.store import STATE, StoredEvent, add_event
from tests.server.conftest import until
from tests.server.house import House, house
from tests.server.test_terminals import start

QUICK = {"train": {"steps": 5}}
LONG = {"train": {"steps": 10_000}, "gate": {"samples": 10}}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Return a server for the tests that leave it as it was."""
    with house(tmp_path_factory.mktemp("live") / "state") as opened:
        yield opened


@pytest.fixture
def server(shared: House) -> Iterator[House]:
    """Return the shared server, with a key of every scope."""
    yield shared
    shared.client.headers["authorization"] = f"Bearer {shared.token}"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[House]:
    """Return a server that the test may spoil."""
    with house(tmp_path / "state") as opened:
        yield opened


def newest(server: House) -> int:
    return server.service.supervisor.last_seq()


def until_type(socket: WebSocketTestSession, *kinds: str) -> list[dict[str, Any]]:
    """Return the messages up to the first of some kinds, heartbeats left out."""
    messages: list[dict[str, Any]] = []
    while not messages or messages[-1]["type"] not in kinds:
        message = socket.receive_json()
        if message["type"] != "heartbeat":
            messages.append(message)
    return messages


def subscribe(socket: WebSocketTestSession, **more: Any) -> dict[str, Any]:
    socket.send_json({"type": "subscribe", "channel": "phase_updates", **more})
    (answer,) = until_type(socket, "subscribed")
    return answer


def close_code(socket: WebSocketTestSession) -> int:
    """Return the code with which the server closes, after what it still sends."""
    try:
        while True:
            socket.receive_json()
    except WebSocketDisconnect as closed:
        return closed.code


def finished_job(server: House, config: Any = None, phase: str = "bitnet") -> str:
    task_id = server.post("/phases/start", {"phase_name": phase, "config": config or QUICK})[
        "task_id"
    ]
    until(lambda: server.get(f"/v1/jobs/{task_id}")["state"] not in ("queued", "running"))
    return str(task_id)


@pytest.mark.parametrize("path", ["/ws", "/v1/ws"])
def test_a_phase_is_started_and_followed_over_the_socket(server: House, path: str) -> None:
    with server.socket(path) as socket:
        subscribe(socket)
        socket.send_json({"type": "start_phase", "phase": "bitnet", "config": QUICK})
        started = next(m for m in until_type(socket, "started") if m["type"] == "started")
        messages = until_type(socket, "complete", "error")
    last = messages[-1]
    assert last["type"] == "complete"
    assert (last["phase"], last["results"]["status"]) == ("bitnet", "succeeded")
    progress = [m for m in messages if m["type"] == "progress"]
    percents = [m["percent"] for m in progress]
    assert percents == sorted(percents)
    assert {m["phase"] for m in progress} == {"bitnet"}
    assert all(m["task_id"] == started["task_id"] for m in messages)
    numbers = [m["seq"] for m in messages if "seq" in m]
    assert numbers == sorted(set(numbers))


def test_whoever_starts_a_phase_without_a_subscription_follows_it(server: House) -> None:
    finished_job(server)
    with server.socket() as socket:
        socket.send_json({"type": "start_phase", "phase": "bitnet", "config": QUICK})
        started, *rest = until_type(socket, "complete", "error")
    assert started["type"] == "started"
    assert {m["task_id"] for m in rest} == {started["task_id"]}
    assert [m["step"] for m in rest if m["type"] == "progress"] == [1, 2, 3, 4, 5]
    assert next(m["state"] for m in rest if m["type"] == "state") == "queued"


def test_every_message_has_its_place_and_its_task(
    server: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_room, "HEARTBEAT_SECONDS", 0.05)
    with server.socket() as socket:
        assert socket.receive_json() == {"type": "heartbeat", "task_id": None, "seq": None}
        socket.send_text("nonsense")
        assert until_type(socket, "error")[0].items() >= {"task_id": None, "seq": None}.items()
        last = newest(server)
        subscribe(socket)
        assert socket.receive_json() == {"type": "heartbeat", "task_id": None, "seq": last}
        socket.send_json({"type": "start_phase", "phase": "bitnet", "config": QUICK})
        messages = until_type(socket, "complete", "error")
        (started,) = [m for m in messages if m["type"] == "started"]
        assert started["task_id"] == messages[-1]["task_id"]
        # Whoever takes the newest number that was said comes back without a gap or a repetition.
        assert last <= started["seq"] <= messages[-1]["seq"]
        numbers = [m["seq"] for m in messages if m["type"] != "started"]
        assert numbers == list(range(last + 1, newest(server) + 1))


@pytest.mark.parametrize(
    ("seed", "kind", "word"),
    [(1, "complete", "rejected"), (2, "error", "failed"), (3, "error", "interrupted")],
)
def test_every_end_is_told_once_and_in_its_own_words(
    server: House, seed: int, kind: str, word: str
) -> None:
    task_id = finished_job(server, {**QUICK, "seed": seed})
    with server.socket() as socket:
        subscribe(socket, after=0, task_id=task_id)
        messages = until_type(socket, "complete", "error")
    assert messages[-1]["type"] == kind
    assert (
        messages[-1]["results"]["status"] if kind == "complete" else messages[-1]["code"]
    ) == word
    if kind == "error":
        assert messages[-1]["message"]


def test_a_cancelled_job_is_an_error_with_its_code(server: House) -> None:
    task_id = server.post("/phases/start", {"phase_name": "bitnet", "config": LONG})["task_id"]
    with server.socket() as socket:
        subscribe(socket, after=0, task_id=task_id)
        until_type(socket, "progress")
        server.post(f"/v1/jobs/{task_id}/cancel", status=200)
        last = until_type(socket, "complete", "error")[-1]
    assert (last["type"], last["code"], last["phase"]) == ("error", "cancelled", "bitnet")


def test_a_run_of_a_terminal_is_followed_like_a_job(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    with house(tmp_path / "state", watch=(outputs,)) as server, server.socket() as socket:
        subscribe(socket)
        process = start(outputs / "mine", "end=hang", "steps=4")
        messages = until_type(socket, "progress")
        process.terminate()
        process.wait()
        messages += until_type(socket, "error")
    assert [m["step"] for m in messages if m["type"] == "progress"] == [1, 2, 3, 4]
    assert messages[-1]["code"] == "interrupted"
    assert {m["task_id"] for m in messages} == {messages[-1]["task_id"]}


def test_whoever_comes_back_gets_what_it_missed_and_nothing_twice(server: House) -> None:
    before = newest(server)
    finished_job(server)
    with server.socket() as socket:
        subscribe(socket, after=before)
        first = until_type(socket, "complete")[:4]
    with server.socket() as socket:
        subscribe(socket, after=first[-1]["seq"])
        rest = until_type(socket, "complete")
    numbers = [m["seq"] for m in [*first, *rest]]
    assert numbers == list(range(before + 1, before + len(numbers) + 1))


def test_a_subscription_to_one_job_hears_of_no_other(server: House) -> None:
    one, other = finished_job(server), finished_job(server)
    with server.socket() as socket:
        subscribe(socket, after=0, task_id=other)
        messages = until_type(socket, "complete")
    assert {m["task_id"] for m in messages} == {other} != {one}


def test_news_wake_the_streams_which_wait_for_no_look(own: House) -> None:
    own.service.hub.look_seconds = 1e6
    with own.socket() as socket:
        subscribe(socket)
        for number, text in enumerate(("the last look", "by itself"), start=1):
            own.service.supervisor.change(
                lambda c, n=number, t=text: add_event(c, event(n, "message", message=t), "x", n)
            )
            assert until_type(socket, "message")[0]["message"] == text


def event(seq: int, kind: str, **fields: Any) -> StoredEvent:
    return StoredEvent(
        seq=seq, job_id="job", attempt=1, time=0.0, kind=kind, phase="bitnet", **fields
    )


def many_events(server: House, count: int) -> None:
    def add(connection: Any) -> None:
        for number in range(count):
            add_event(connection, event(0, "progress", step=number, total=count), "many", number)

    server.service.supervisor.change(add)


def test_what_is_older_than_memory_comes_from_the_table(own: House) -> None:
    count = NEWEST + 700
    many_events(own, count)
    until(lambda: own.service.hub.last_seq() == count)
    with own.socket() as socket:
        subscribe(socket, after=0)
        numbers = [socket.receive_json()["seq"] for _ in range(count)]
    assert numbers == list(range(1, count + 1))


def test_below_retention_there_is_a_gap_then_a_snapshot_then_the_rest(own: House) -> None:
    task_id = finished_job(own)
    last = own.service.supervisor.last_seq()
    own.service.supervisor.change(lambda c: c.execute("DELETE FROM event WHERE seq <= 4"))
    own.service.hub._recent.clear()
    with own.socket() as socket:
        subscribe(socket, after=1)
        gap, snapshot, *rest = until_type(socket, "complete")
    assert (gap["type"], gap["after"], gap["oldest"]) == ("gap", 1, 5)
    assert (gap["seq"], gap["task_id"], snapshot["task_id"]) == (1, None, None)
    assert (snapshot["type"], snapshot["seq"], snapshot["as_of"]) == ("snapshot", 4, last)
    assert [(job["task_id"], job["state"]) for job in snapshot["jobs"]] == [(task_id, "succeeded")]
    assert [m["seq"] for m in rest] == list(range(5, last + 1))


def test_a_number_from_another_life_of_the_server_is_a_gap_too(own: House) -> None:
    with own.socket() as socket:
        subscribe(socket, after=10_000)
        assert [m["type"] for m in until_type(socket, "snapshot")] == ["gap", "snapshot"]


def test_wrong_requests_are_answered_and_the_socket_stays(server: House) -> None:
    with server.socket() as socket:
        for text in ("x", "{}", "[]", '{"type": "subscribe"}', '{"type": "subscribe", "channel": "x"}',
                     '{"type": "subscribe", "channel": "phase_updates", "after": -1}',
                     '{"type": "start_phase"}', '{"type": "start_phase", "phase": 1}'):  # fmt: skip
            socket.send_text(text)
            (answer,) = until_type(socket, "error")
            assert answer["phase"] is None
        socket.send_json({"type": "start_phase", "phase": "bitnet", "config": {"out": "/x"}})
        (answer,) = until_type(socket, "error")
        assert answer["phase"] == "bitnet"
        assert "the server assigns this" in answer["message"]
        subscribe(socket)


def test_a_key_without_the_scope_starts_nothing_over_the_socket(server: House) -> None:
    _, token = server.service.ring.create("reader", ["read"])
    server.client.headers["authorization"] = f"Bearer {token}"
    before = newest(server)
    with server.socket() as socket:
        socket.send_json({"type": "start_phase", "phase": "bitnet"})
        assert "scope 'run'" in until_type(socket, "error")[0]["message"]
    assert newest(server) == before


def test_a_ticket_of_the_service_opens_the_socket_of_a_browser(server: House) -> None:
    ticket = server.post("/v1/tickets", status=200)["ticket"]
    del server.client.headers["authorization"]
    with server.socket(f"/ws?ticket={ticket}") as socket:
        subscribe(socket)


def test_a_slow_client_is_closed_with_1013(own: House, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr(socket_room, "SLOW_SECONDS", 0.1)
    sending = socket_room.WebSocket.send_text

    async def stuck(self: Any, text: str) -> None:
        if '"progress"' in text:
            await asyncio.sleep(60)
        await sending(self, text)

    monkeypatch.setattr(socket_room.WebSocket, "send_text", stuck)
    many_events(own, 3)
    with own.socket() as socket:
        subscribe(socket, after=0)
        assert close_code(socket) == 1013


def test_a_revoked_key_ends_its_socket(server: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_room, "HEARTBEAT_SECONDS", 0.05)
    key, token = server.service.ring.create("guest", ["read"])
    server.client.headers["authorization"] = f"Bearer {token}"
    with server.socket() as socket:
        subscribe(socket)
        assert socket.receive_json()["type"] == "heartbeat"
        server.service.ring.revoke(key.id)
        assert close_code(socket) == 1008


def test_the_hub_that_stops_closes_its_sockets_for_a_restart(own: House) -> None:
    with own.socket() as socket:
        subscribe(socket)
        socket.portal.call(own.service.hub.stop_streams)
        assert close_code(socket) == 1012


def test_a_pipeline_tells_the_end_of_each_phase_and_its_own() -> None:
    done = event(7, "complete", message="trained", metrics={"status": "done"})
    of_phase = message_of(done, "run-all").content
    assert (of_phase["type"], of_phase["results"]["status"]) == ("complete", "done")
    assert message_of(done, "bitnet").content["type"] == "message", "the job's own end follows"
    end = event(8, STATE, metrics={"state": JobState.SUCCEEDED, "results": {"checkpoint_id": "a"}})
    assert message_of(end, "run-all").content["results"] == {
        "checkpoint_id": "a", "status": "succeeded",
    }  # fmt: skip
    assert json.loads(message_of(end, "run-all").text)["seq"] == 8
