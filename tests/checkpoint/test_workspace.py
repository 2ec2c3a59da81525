"""A workspace computes once, also across restarts, and stops where everything is saved."""

import os
import signal
from pathlib import Path

import pytest
import torch

from agent_forge import checkpoint
from agent_forge.checkpoint import Workspace
from agent_forge.core.errors import Interrupted


def workspace(path: Path, parents=()) -> Workspace:
    return Workspace(path, phase="test", seed=0, config={}, parents=parents)


def test_results_are_remembered_across_restarts(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict:
        calls.append(1)
        return {"best": [1, 0.1]}

    first = workspace(tmp_path / "out").remember("search", compute)
    again = workspace(tmp_path / "out").remember("search", compute)
    assert first == again == {"best": [1, 0.1]}
    assert len(calls) == 1


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    value = {"a": torch.randn(3, 4).t(), "b": torch.tensor([1.5], dtype=torch.bfloat16)}
    workspace(tmp_path / "out").remember_tensors("t", lambda: value)
    tensors = workspace(tmp_path / "out").remember_tensors(
        "t", lambda: pytest.fail("computed again")
    )
    assert all(
        torch.equal(tensors[name], value[name]) and tensors[name].dtype == value[name].dtype
        for name in value
    )


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_results_are_named_and_computed_again(tmp_path: Path, damage: str) -> None:
    value = {"a": torch.arange(6.0)}
    workspace(tmp_path / "out").remember("x", lambda: {"best": 12})
    workspace(tmp_path / "out").remember_tensors("t", lambda: value)
    again = workspace(tmp_path / "out")
    files = sorted(again.state.iterdir())
    assert len(files) == 2
    for file in files:
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes({"flip": content, "cut": content[:-3], "empty": b""}[damage])
    warnings: list[str] = []
    again.warn = warnings.append
    assert again.remember("x", lambda: {"best": 13}) == {"best": 13}
    assert torch.equal(again.remember_tensors("t", lambda: value)["a"], value["a"])
    assert [
        str(file) in line
        for file, line in zip(
            sorted(files, key=lambda f: f.name != "x.json"), warnings, strict=True
        )
    ]
    assert again.remember("x", lambda: pytest.fail("computed again")) == {"best": 13}


def test_a_failed_computation_is_not_remembered(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        workspace(tmp_path / "out").remember("x", lambda: 1 / 0)
    assert workspace(tmp_path / "out").remember("x", lambda: 2) == 2


def test_state_is_removed_when_the_phase_has_succeeded(tmp_path: Path) -> None:
    out = workspace(tmp_path / "out")
    out.remember("x", lambda: 1)
    out.clear_state()
    assert not out.state.exists()


def test_agent_settings_are_laid_over_the_parents(tmp_path: Path) -> None:
    def save(directory: Path) -> None:
        (directory / "config.json").write_text("{}")

    parent = workspace(tmp_path / "parent").write(
        save, agent={"tools": ["calculator"], "system": "a"}
    )
    child = workspace(tmp_path / "child", [parent]).write(save, agent={"system": "b"})
    assert checkpoint.open(child.path).manifest.agent == {"tools": ["calculator"], "system": "b"}


def test_a_named_checkpoint_lies_inside_the_workspace_and_another_is_the_workspace(
    tmp_path: Path,
) -> None:
    def save(directory: Path) -> None:
        (directory / "config.json").write_text("{}")

    out = workspace(tmp_path / "run")
    assert out.write(save, name="trunk").path == tmp_path / "run" / "trunk"
    assert [one.name for one in checkpoint.expand([tmp_path / "run"])] == ["trunk"]
    alone = workspace(tmp_path / "alone")
    assert alone.write(save).path == tmp_path / "alone"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_is_noticed_at_the_next_check(tmp_path: Path, number: int, code: int) -> None:
    previous = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    out = workspace(tmp_path / "out")
    try:
        out.listen_for_signals()
        out.check_stop()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted) as caught:
            out.check_stop()
    finally:
        for n, handler in previous.items():
            signal.signal(n, handler)
    assert caught.value.exit_code == code


def test_every_process_keeps_its_own_state_and_finds_that_of_a_stage_in_one_place(
    tmp_path: Path,
) -> None:
    first, second = (
        Workspace(tmp_path / "out", phase="test", seed=0, config={}, rank=rank) for rank in (0, 1)
    )
    assert first.resume_dir("stage") == second.resume_dir("stage") == first.state / "stage"
    assert second.state == first.state / "rank-1"
