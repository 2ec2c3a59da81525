"""The child process of a phase: its events, its priority, and threads that wait for it."""

import os
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
    show = "import os, pathlib; p = pathlib.Path('/proc/self/autogroup'); "
    show += "print(os.nice(0), p.read_text() if p.exists() else '')"
    script = (
        "import subprocess, sys\nfrom agent_forge.core.lifetime import give_way\ngive_way()\n"
        f"subprocess.run([sys.executable, '-c', {show!r}], check=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        start_new_session=True,
    )  # fmt: skip
    niceness, _, group = done.stdout.strip().partition(" ")
    assert int(niceness) == lifetime.BACKGROUND_NICE
    if Path("/proc/self/autogroup").exists():
        assert group.split()[-2:] == ["nice", str(lifetime.BACKGROUND_NICE)]
    assert os.nice(0) < lifetime.BACKGROUND_NICE


def test_a_system_without_groups_of_sessions_lowers_niceness_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lowered: list[int] = []
    monkeypatch.setattr(lifetime, "Path", lambda _: tmp_path / "missing" / "autogroup")
    monkeypatch.setattr(os, "setpriority", lambda *order: lowered.append(order[2]))
    lifetime.give_way()
    assert lowered == [lifetime.BACKGROUND_NICE]
