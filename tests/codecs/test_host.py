"""Coding in several processes: the bytes of one process, errors with their words, no orphans."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from agent_forge import codecs
from agent_forge.codecs import entropy, host
from agent_forge.core.errors import CheckpointError, PhaseError


@pytest.fixture
def small_arrays_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "FEWEST_ENTRIES", 1000)


@pytest.mark.usefixtures("small_arrays_too")
def test_several_processes_code_to_the_bytes_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (
        torch.randn(64, 48, generator=generator),
        torch.randn(200, 48, generator=generator),
    )
    offers = [
        ("waterfill", {"loss": 1e-4}), ("waterfill", {"step": 0.5}),
        ("intk", {"bits": 4, "group": 16}), ("vptq", {"codebook": 8}), ("seedlm", {"seeds": 63}),
        ("raw", {}),
    ]  # fmt: skip
    processes = set()

    def coded(offer: tuple[str, dict[str, float]]) -> tuple[bytes, float | None, torch.Tensor]:
        processes.add(host.call(os.getpid, entries=1000))
        payload, decoded = codecs.encode_and_decode(
            offer[0], weight, offer[1], inputs.T @ inputs / 200
        )
        assert torch.equal(decoded, codecs.decode(payload))
        return payload.data, payload.relative_error, decoded

    alone = [coded(offer) for offer in offers]
    assert processes == {os.getpid()}
    processes.clear()
    with contextlib.closing(host.Pool(2)) as pool:
        together = pool.map(coded, offers, weight.numel())
    assert processes
    assert os.getpid() not in processes
    for one, other in zip(alone, together, strict=True):
        assert one[:2] == other[:2]
        assert torch.equal(one[2], other[2])


@pytest.mark.usefixtures("small_arrays_too")
def test_an_error_in_a_worker_keeps_its_kind_and_words_and_a_dead_worker_is_named() -> None:
    with contextlib.closing(host.Pool(2)) as pool:
        with pytest.raises(CheckpointError, match="no known method"):
            pool.map(
                lambda data: host.call(entropy.expand, data, 2000, entries=2000), [b"", b"?"], 2000
            )
        with pytest.raises(PhaseError, match=r"process that codes .* died .* runtime\.threads=1"):
            pool.map(lambda code: host.call(os._exit, code, entries=2000), [3, 3], 2000)


def test_one_worker_or_a_small_array_starts_no_process_and_no_thread() -> None:
    def thread(_: int) -> threading.Thread:
        return threading.current_thread()

    for workers, entries in ((1, 1 << 30), (8, host.FEWEST_ENTRIES - 1)):
        with contextlib.closing(host.Pool(workers)) as pool:
            assert pool.map(thread, [1, 2], entries) == [threading.current_thread()] * 2
            assert pool._executor is None


@pytest.mark.usefixtures("small_arrays_too")
def test_one_thread_works_at_a_time_and_few_items_are_held() -> None:
    working, most, held, most_held = 0, 0, 0, 0
    lock = threading.Lock()

    def item(_: int) -> int:
        nonlocal working, most, held, most_held
        held += 1
        most_held = max(most_held, held)
        for _round in range(3):
            with lock:
                working += 1
                most = max(most, working)
            time.sleep(0.002)
            with lock:
                working -= 1
            host.call(np.bincount, np.zeros(2000, np.int64), entries=2000)
        held -= 1
        return os.getpid()

    with contextlib.closing(host.Pool(6)) as pool:
        assert len(pool.map(item, range(12), 2000)) == 12
    assert most == 1
    assert 1 < most_held <= host.MOST_IN_FLIGHT


ORPHANS = """
import contextlib, os, time
from agent_forge.codecs import host

def first(number):
    print(host.call(os.getpid, entries=1 << 30), flush=True)
    host.call(time.sleep, 600, entries=1 << 30)

if __name__ == "__main__":
    with contextlib.closing(host.Pool(2)) as pool:
        pool.map(first, [1, 2], 1 << 30)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_workers_end_with_a_killed_parent_and_import_no_torch() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = Path("/proc", parent.stdout.readline().strip())
        assert "libtorch" not in (worker / "maps").read_text()
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while _lives(worker):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def _lives(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
