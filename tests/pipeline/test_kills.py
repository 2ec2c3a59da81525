"""kill -9 of a whole run at seeded moments: the same command ends in the same final checkpoint."""

import json
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_forge import checkpoint
from agent_forge.core.events import read_events
from agent_forge.pipeline.catalogue import phases

Start = Callable[..., "subprocess.Popen[str]"]
SEED = 7
KILLS_BETWEEN_PHASES = 2


def moments(tiny_run: Path, seed: int) -> list[tuple[str, int]]:
    """Return (phase, n): kill at the n-th event that the phase sends.

    One in each phase, two right after its end.
    """
    generator = random.Random(seed)
    chosen = []
    for position, name in enumerate(phases(), start=1):
        sent = sum(
            1 for _ in read_events(tiny_run / ".forge" / f"{position}-{name}" / "events.jsonl")
        )
        chosen.append((name, generator.randrange(1, sent)))
    ends = [(name, 10**9) for name in generator.sample([*phases()][:-1], KILLS_BETWEEN_PHASES)]
    order = list(phases())
    return sorted([*chosen, *ends], key=lambda moment: (order.index(moment[0]), moment[1]))


def kill_at(
    process: "subprocess.Popen[str]", phase: str, number: int, delay_seconds: float
) -> bool:
    """Kill the run `delay_seconds` after the phase's n-th event, or after its end.

    Return whether it was killed.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    seen = 0
    with process.stdout as lines, process.stderr:
        for line in lines:
            event = json.loads(line)
            seen += event.get("phase") == phase
            if event.get("phase") == phase and (seen >= number or event["kind"] == "complete"):
                time.sleep(delay_seconds)
                process.kill()
                process.wait()
                return True
    process.wait()
    return False


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_killed_ten_times_ends_in_the_same_checkpoint_as_one_that_was_not(
    tiny_run: Path,
    tmp_path: Path,
    start_forge: Start,
    forge: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    """Faults 1 and 17: within phases, in gates, and between phases.

    Parent and worker die at once, as in a power cut.
    """
    settings = [
        "experiment=tiny", f"run_dir={tmp_path / 'run'}", f"data.cache={tmp_path / 'cache'}",
        "runtime.threads=1", "runtime.save_every_seconds=0.2",
    ]  # fmt: skip
    generator = random.Random(SEED)
    plan = moments(tiny_run, SEED)
    assert len(plan) == 10
    assert {phase for phase, _ in plan} == set(phases())
    for phase, number in plan:
        process = start_forge("run-all", *settings, "--json")
        delay = 0.0 if number == 10**9 else generator.uniform(0.0, 0.5)
        assert kill_at(process, phase, number, delay), (
            f"the run ended before it could be killed in {phase}"
        )
    ended = forge("run-all", *settings, "--json")
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["id"] == checkpoint.open(tiny_run / "8-compress").id
    ids = [phase["checkpoint_id"] for phase in result["phases"]]
    never_killed = [
        json.loads(line) for line in forge("report", str(tiny_run), "--json").stdout.splitlines()
    ]
    assert ids == [phase["checkpoint_id"] for phase in never_killed]
    assert not list((tmp_path / "run").rglob(".tmp-*"))
    assert not list((tmp_path / "run" / ".forge").rglob("state"))
