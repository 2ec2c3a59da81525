"""What a job of this machine inherits, and which process is which."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent_forge.core import lifetime
from agent_forge.server.launchers import Launch, last_lines, processes
from agent_forge.server.launchers.environment import job_environment
from agent_forge.server.launchers.local import LocalLauncher
from tests.server.conftest import until

SHOW = """
import json, os, pathlib, sys
links = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
         if os.path.exists(f"/proc/self/fd/{n}")]
pathlib.Path(sys.argv[1]).write_text(json.dumps({
    "environment": dict(os.environ),
    "sockets": [link for link in links if link.startswith("socket:")],
    "session": os.getsid(0) == os.getpid(),
}))
"""


def finished(launcher: LocalLauncher, launch: Launch) -> None:
    handle = launcher.submit(launch)
    until(lambda: not launcher.poll(launch, handle).alive)


def test_a_job_inherits_no_socket_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_API_KEY", "secret-1")
    monkeypatch.setenv("HF_TOKEN", "secret-2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-3")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch = Launch(
        token="t1", directory=tmp_path, arguments=[str(tmp_path / "seen")], gpus=["3", "5"]
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.set_inheritable(True)  # servers of several workers do so
        finished(LocalLauncher([sys.executable, "-c", SHOW], gives_way=False), launch)
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen["sockets"] == []
    assert not [name for name, value in seen["environment"].items() if "secret" in value]
    assert seen["environment"]["OMP_NUM_THREADS"] == "1"
    assert seen["environment"]["FORGE_ATTEMPT"] == "t1"
    assert seen["environment"]["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert seen["session"]


def test_a_job_gives_way_to_everything_else(tmp_path: Path) -> None:
    # Looked at from outside: on a busy machine such a job would not come to say it itself.
    launcher, launch = LocalLauncher(["sleep", "60"]), Launch(token="t0", directory=tmp_path)
    handle = launcher.submit(launch)
    try:
        pid = handle["pid"]
        assert os.getpriority(os.PRIO_PROCESS, pid) == lifetime.BACKGROUND_NICE
        group = Path(f"/proc/{pid}/autogroup")
        if group.exists():
            assert group.read_text().split()[-1] == str(lifetime.BACKGROUND_NICE)
    finally:
        launcher.cancel(launch, handle, force=True)
        until(lambda: not launcher.poll(launch, handle).alive)


def test_a_variable_that_is_allowed_by_name_is_passed_on() -> None:
    source = {"HF_TOKEN": "x", "HF_HOME": "/h", "TOKENIZERS_PARALLELISM": "0", "FORGE_KEY": "k"}
    assert job_environment(source) == {"HF_HOME": "/h", "TOKENIZERS_PARALLELISM": "0"}
    assert job_environment(source, ["HF_TOKEN"])["HF_TOKEN"] == "x"


def test_a_process_is_known_by_more_than_its_pid() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    identity = processes.identity_of(child.pid)
    assert identity is not None
    assert processes.is_alive(identity)
    for other in (replace(identity, start=1.0), replace(identity, boot="another")):
        assert not processes.is_alive(other)
        assert not processes.send(other, signal.SIGKILL)
    assert child.poll() is None
    assert processes.send(identity, signal.SIGKILL)
    until(lambda: not processes.is_alive(identity))  # a zombie is dead
    child.wait()
    assert processes.identity_of(child.pid) is None


def test_all_processes_of_an_attempt_are_found_and_ended(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " start_new_session=True)\ntime.sleep(60)"
    )
    launcher = LocalLauncher([sys.executable, "-c", script], gives_way=False)
    launch = Launch(token="token-of-two", directory=tmp_path)
    handle = launcher.submit(launch)
    until(lambda: len(processes.of_attempt("token-of-two")) == 2)
    assert launcher.find(launch) == handle
    launcher.cancel(launch, handle, force=True)
    until(lambda: not launcher.poll(launch, handle).alive)
    until(lambda: not processes.of_attempt("token-of-two"))


def test_the_exit_code_is_known_by_a_server_that_did_not_start_the_job(
    tmp_path: Path, forge: object
) -> None:
    del forge
    launch = Launch(token="t2", directory=tmp_path, arguments=["settings", "no-such-phase"])
    launcher = LocalLauncher(gives_way=False)
    finished(launcher, launch)
    assert launcher.poll(launch, {"pid": 1, "start": 1.0, "boot": "gone"}).exit_code == 2
    assert "no phase 'no-such-phase'" in launcher.tail(launch, 1)
    assert launcher.find(launch) is not None


def test_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    began = time.process_time()
    assert last_lines(log, 2) == "line 99998\nline 99999"
    assert time.process_time() - began < 0.1
    assert last_lines(tmp_path / "none", 2) == ""
    assert os.path.getsize(log) > 1 << 16
