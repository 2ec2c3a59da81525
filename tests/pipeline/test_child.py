"""The child process of a phase: its events, its priority, and threads that wait for it."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from agent_forge.core import lifetime
from agent_forge.core.events import Event, EventLog, EventReader
from agent_forge.pipeline.child import watch_child
from tests.conftest import forge_environment

EMIT = """
import sys
from pathlib import Path
from agent_forge.core.events import EventLog
log = EventLog(Path(sys.argv[1]), "train", interval_seconds=0.0)
for step in range(1, 4):
    log.progress("count", step, 3)
"""


@pytest.fixture(autouse=True)
def _tree_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", forge_environment()["PYTHONPATH"])


def test_a_phase_can_be_run_in_a_thread_that_is_not_the_main_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    earlier = EventLog(path, "train")
    earlier.message("of an earlier run")
    earlier.close()
    events = EventReader(path)
    events.skip_to_end()
    seen: list[Event] = []
    codes: list[int] = []

    def work() -> None:
        with tempfile.TemporaryFile() as errors:
            command = [sys.executable, "-c", EMIT, str(path)]
            codes.append(watch_child(command, errors, events, seen.append))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert codes == [0]
    assert [event.step for event in seen] == [1, 2, 3]


def test_background_work_lowers_its_session_and_what_it_starts() -> None:
    child = subprocess.Popen(
        ["sh", "-c", "read go; sleep 60 & echo $!; wait"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    lifetime.give_way(child.pid)
    assert child.stdin is not None
    assert child.stdout is not None
    print("go", file=child.stdin, flush=True)
    later = int(child.stdout.readline())
    try:
        for pid in (child.pid, later):
            assert os.getpriority(os.PRIO_PROCESS, pid) == lifetime.BACKGROUND_NICE
            group = Path(f"/proc/{pid}/autogroup")
            if group.exists():
                assert group.read_text().split()[-1] == str(lifetime.BACKGROUND_NICE)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    assert os.nice(0) < lifetime.BACKGROUND_NICE


def test_a_system_without_groups_of_sessions_lowers_niceness_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lowered: list[int] = []
    monkeypatch.setattr(lifetime, "Path", lambda _: tmp_path / "missing" / "autogroup")
    monkeypatch.setattr(os, "setpriority", lambda *order: lowered.append(order[2]))
    lifetime.give_way()
    assert lowered == [lifetime.BACKGROUND_NICE]
