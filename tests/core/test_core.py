"""Seeds, registry and events."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from agent_forge.core import registry
from agent_forge.core.device import pick_device, pick_dtype
from agent_forge.core.errors import ConfigError
from agent_forge.core.events import EventLog, read_events
from agent_forge.core.seeds import numpy_generator, seed_for, torch_generator


def test_seeds_depend_on_every_name_and_on_nothing_else() -> None:
    assert seed_for(0, "a", "b") == seed_for(0, "a", "b")
    assert (
        len(
            {
                seed_for(0, "a"),
                seed_for(1, "a"),
                seed_for(0, "b"),
                seed_for(0, "a", 1),
                seed_for(0, "a", 2),
            }
        )
        == 5
    )
    torch.manual_seed(3)
    one = torch.rand(2, generator=torch_generator(0, "x"))
    assert torch.equal(one, torch.rand(2, generator=torch_generator(0, "x")))
    assert numpy_generator(0, "x").random() == numpy_generator(0, "x").random()


def test_an_unknown_plugin_suggests_the_nearest() -> None:
    assert "reasoning" in registry.names("agent_forge.data.synthetic")
    with pytest.raises(ConfigError, match="no generated task 'reasonin'; did you mean 'reasoning'"):
        registry.load("agent_forge.data.synthetic", "reasonin", "generated task")


def test_a_missing_device_or_dtype_is_refused() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="float16"):
        pick_dtype("float17")
    with pytest.raises(ConfigError, match=r"runtime\.device"):
        pick_device("nonsense")


def test_events_are_numbered_and_survive_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, "bitnet", interval_seconds=0)
    log.progress("train", 1, 3, {"loss": np.float32(0.5), "bad": float("nan")})
    log.message("hello")
    log.close()
    with path.open("a") as file:
        file.write('{"seq": 3, "ti')
    again = EventLog(path, "bitnet")
    again.message("after")
    again.close()
    events = list(read_events(path))
    assert [event.seq for event in events] == [1, 2, 3]
    assert events[0].metrics == {"loss": 0.5, "bad": "nan"}
    assert [e.message for e in read_events(path, after_seq=2)] == ["after"]


def test_progress_is_thinned_but_its_end_is_always_written(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e.jsonl", "train", interval_seconds=60)
    for step in range(1, 101):
        log.progress("a", step, 100)
    assert [event.step for event in read_events(tmp_path / "e.jsonl")] == [1, 100]


def test_lines_of_concurrent_writers_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    logs = [EventLog(path, f"p{i}", interval_seconds=0) for i in range(4)]
    threads = [
        threading.Thread(target=lambda log=log: [log.message("x" * 200) for _ in range(50)])
        for log in logs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (
        sum(json.loads(line)["kind"] == "message" for line in path.read_text().splitlines()) == 200
    )


HOLD_AND_FREE = """
import resource, sys
import numpy as np
from agent_forge.core.device import keep_freed_memory

def turns(count):
    for _ in range(count):
        held = [np.ones(1 << 19, np.float32) for _ in range(60)]
        del held

kept = sys.argv[1] == "kept" and keep_freed_memory()
turns(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
turns(3)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_memory_that_is_freed_and_wanted_again_is_not_fetched_from_the_kernel_again() -> None:
    faults = {}
    for case in ("plain", "kept"):
        process = subprocess.run(
            [sys.executable, "-c", HOLD_AND_FREE, case], capture_output=True, text=True, check=True
        )
        worked, faults[case] = process.stdout.split()[0] == "True", int(process.stdout.split()[1])
    if not worked:
        pytest.skip("this C library has no mallopt")
    assert faults["kept"] < 0.1 * faults["plain"]


def test_events_hold_strict_json_at_every_depth(tmp_path: Path) -> None:
    """A browser reads no NaN, and one such figure would cost it the whole line."""
    log = EventLog(tmp_path / "events.jsonl", "train")
    rows = [{"loss": float("nan"), "best": [1.0, float("inf")]}]
    log.progress("steps", 1, 2, {"loss": float("-inf"), "population": rows})
    log.close()
    (line,) = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = json.loads(line, parse_constant=lambda name: pytest.fail(name))["metrics"]
    assert metrics == {"loss": "-inf", "population": [{"loss": "nan", "best": [1.0, "inf"]}]}
