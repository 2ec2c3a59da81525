"""run_phase: finished work stays, other settings are refused, impossible ones before any work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge import checkpoint, models
from agent_forge.checkpoint import Checkpoint, record_dir
from agent_forge.config import PhaseConfig
from agent_forge.core.errors import CheckpointError, ConfigError, StorageError
from agent_forge.pipeline import run_phase as controller
from agent_forge.pipeline.outcome import JOB, Outcome, read_outcome
from agent_forge.pipeline.run_phase import check_inputs, run_phase

Quick = Callable[..., PhaseConfig]


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make starting a worker a failure of the test."""
    monkeypatch.setattr(controller, "run_child", lambda *_: pytest.fail("a worker was started"))


@pytest.fixture
def again(finished: tuple[Path, Outcome], tmp_path: Path) -> tuple[Path, Outcome]:
    """Return (out, outcome) of a finished phase, copied to a place that may be changed."""
    out, _ = finished
    shutil.copytree(out.parent, tmp_path / "work")
    moved = tmp_path / "work" / out.name
    record = record_dir(moved)
    outcome = json.loads((record / "outcome.json").read_text())
    outcome["outputs"] = [str(moved)]
    (record / "outcome.json").write_text(json.dumps(outcome))
    outcome = read_outcome(record)
    assert outcome is not None
    return moved, outcome


@pytest.mark.usefixtures("no_child")
def test_a_finished_phase_is_found_done_without_any_work(
    again: tuple[Path, Outcome], quick: Quick
) -> None:
    out, outcome = again
    assert run_phase("bitnet", quick(out)) == outcome
    assert outcome.checkpoint_id == checkpoint.open(out).id
    assert outcome.verdict is not None
    assert outcome.verdict["passed"]
    assert not (record_dir(out) / "state").exists()


def test_another_thread_count_out_or_cache_is_no_other_setting(
    again: tuple[Path, Outcome], quick: Quick
) -> None:
    out, outcome = again
    assert (
        run_phase("bitnet", quick(out, "data.cache=elsewhere", "runtime.save_every_seconds=7"))
        == outcome
    )


@pytest.mark.usefixtures("no_child")
def test_other_settings_are_refused_with_the_difference(
    again: tuple[Path, Outcome], quick: Quick
) -> None:
    out, _ = again
    with pytest.raises(ConfigError) as caught:
        run_phase("bitnet", quick(out, "train.steps=5", "seed=1"))
    assert "(seed: 0 -> 1; train.steps: 3 -> 5)" in str(caught.value)
    assert "--no-resume" in str(caught.value)


@pytest.mark.usefixtures("no_child")
def test_other_text_is_refused_though_its_name_is_the_same(
    again: tuple[Path, Outcome], quick: Quick, text_folder: Path, tmp_path: Path
) -> None:
    out, _ = again
    job = record_dir(out) / JOB
    copied = tmp_path / "text"
    shutil.copytree(text_folder, copied)
    config = quick(out)
    config.data.text = [str(copied)]
    content = json.loads(job.read_text())
    content["config"]["data"]["text"] = [str(copied)]
    job.write_text(json.dumps(content))
    (copied / "000.txt").write_text("another document")
    with pytest.raises(ConfigError, match=r"the content of data\.text"):
        run_phase("bitnet", config)


@pytest.mark.usefixtures("no_child")
def test_another_source_is_refused(
    again: tuple[Path, Outcome], quick: Quick, llama_config: LlamaConfig,
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path,
) -> None:  # fmt: skip
    out, _ = again
    torch.manual_seed(9)
    model = LlamaForCausalLM(llama_config).eval()
    other = checkpoint.write(
        tmp_path / "other",
        lambda place: models.save(model, tiny_tokenizer, place),
        phase="import",
        seed=0,
        config={},
    )
    with pytest.raises(ConfigError, match="the content of its sources"):
        run_phase("bitnet", quick(out, source=other.path))


def test_no_resume_drops_what_is_there_and_damage_to_the_result_runs_the_phase_again(
    again: tuple[Path, Outcome], quick: Quick
) -> None:
    out, outcome = again
    other = run_phase("bitnet", quick(out, "train.steps=0", "gate.enabled=false"), resume=False)
    assert other.status == "done"
    assert other.checkpoint_id != outcome.checkpoint_id
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    repaired = run_phase("bitnet", quick(out, "train.steps=0", "gate.enabled=false"))
    assert checkpoint.open(out).id == repaired.checkpoint_id == other.checkpoint_id


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_in_any_file_of_a_source_is_named_before_any_work(
    tiny_checkpoint: Checkpoint, quick: Quick, tmp_path: Path, damage: str
) -> None:
    for name in [*tiny_checkpoint.manifest.files, "forge.json"]:
        source = tmp_path / f"{damage}-{name}"
        shutil.copytree(tiny_checkpoint.path, source)
        content = bytearray((source / name).read_bytes())
        if damage == "remove":
            (source / name).unlink()
        elif damage == "cut":
            (source / name).write_bytes(content[:-2])
        else:
            content[len(content) // 2] ^= 1
            (source / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            run_phase("bitnet", quick(tmp_path / "out" / "x", source=source))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_child")
def test_a_phase_never_writes_over_a_source(
    tiny_checkpoint: Checkpoint, quick: Quick, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint.path, tmp_path / "all" / "model")
    for out in (
        tmp_path / "all" / "model",
        tmp_path / "all",
        tmp_path / "all" / "model" / "inside",
    ):
        for resume in (True, False):
            with pytest.raises(ConfigError, match="never overwrites its parent"):
                run_phase("bitnet", quick(out, source=tmp_path / "all"), resume=resume)
    assert checkpoint.open(tmp_path / "all" / "model").id == tiny_checkpoint.id


@pytest.mark.usefixtures("no_child")
def test_a_directory_of_something_else_is_never_written_or_dropped(
    again: tuple[Path, Outcome], quick: Quick, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    job = record_dir(again[0]) / JOB
    job.write_text(json.dumps({**json.loads(job.read_text()), "phase": "train"}))
    for out, message in (
        (tmp_path / "mine", "not written by bitnet"),
        (tmp_path / "file", "is a file"),
        (again[0], "not written by bitnet"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_phase("bitnet", quick(out), resume=False)
    assert (tmp_path / "mine" / "thesis.tex").exists()
    assert (again[0] / "forge.json").exists()


@pytest.mark.usefixtures("no_child")
def test_a_read_only_disk_is_an_error_before_any_work(read_only_disk: Path, quick: Quick) -> None:
    for place in (read_only_disk, read_only_disk / "deeper"):
        with pytest.raises(
            StorageError,
            match=r"cannot write .*Read-only file system; name a directory that you may write",
        ) as caught:
            run_phase("bitnet", quick(place / "bitnet"))
        assert caught.value.exit_code == 74
        with pytest.raises(StorageError, match="name a directory that you may write"):
            check_inputs("bitnet", quick(place / "bitnet"), write_probe=False)


@pytest.mark.usefixtures("no_child")
def test_a_file_where_a_directory_must_be_is_an_error_before_any_work(
    quick: Quick, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write") as caught:
        run_phase("bitnet", quick(tmp_path / "file" / "bitnet"))
    assert caught.value.exit_code == 74


@pytest.mark.usefixtures("no_child")
def test_a_phase_without_a_source_and_a_gate_without_a_known_task_are_refused(
    quick: Quick, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"bitnet reads a checkpoint: give sources=\[DIR\]"):
        run_phase("bitnet", quick(tmp_path / "out", "sources=[]"))
    with pytest.raises(ConfigError, match="no task 'txt'; did you mean 'text'"):
        run_phase("bitnet", quick(tmp_path / "out", "gate.tasks.txt=0.9"))


def test_a_full_disk_ends_in_74_and_the_same_command_goes_on_when_there_is_space(
    small_disk: Path, quick: Quick, tiny_checkpoint: Checkpoint, finished: tuple[Path, Outcome]
) -> None:
    source = small_disk / "source"
    shutil.copytree(tiny_checkpoint.path, source)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - (1 << 20) - (1 << 15)))
    config = quick(small_disk / "runs" / "bitnet", "runtime.save_every_seconds=0", source=source)
    stopped = run_phase("bitnet", config)
    assert (stopped.status, stopped.exit_code) == ("failed", 74)
    assert "disk full while writing" in stopped.message
    assert "needs at least" in stopped.message
    assert "free " in stopped.message
    assert "\n" not in stopped.message
    assert not (small_disk / "runs" / "bitnet").exists()
    assert checkpoint.open(source).id == tiny_checkpoint.id
    filler.unlink()
    assert run_phase("bitnet", config).checkpoint_id == finished[1].checkpoint_id
    assert not list(small_disk.rglob(".tmp-*"))


def test_leftovers_of_a_killed_writer_are_removed_and_those_of_a_neighbour_stay(
    quick: Quick, tmp_path: Path
) -> None:
    mine, neighbour = tmp_path / ".tmp-bitnet-01234567", tmp_path / ".tmp-bitnet-2-01234567"
    for path in (mine, neighbour):
        path.mkdir()
    outcome = run_phase("bitnet", quick(tmp_path / "bitnet", "train.steps=0", "gate.enabled=false"))
    assert outcome.status == "done"
    assert not mine.exists()
    assert neighbour.exists()


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize("write_probe", [True, False])
def test_a_place_that_no_file_can_have_is_refused_in_one_line(
    quick: Quick, tmp_path: Path, write_probe: bool
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out, reason in (
        (tmp_path / "loop", "Too many levels of symbolic links"),
        (tmp_path / "loop" / "x", "Too many levels of symbolic links"),
        (tmp_path / ("x" * 300), "File name too long"),
        # This name fits, and the longer name of its temporary neighbour does not.
        (tmp_path / ("x" * 250), "File name too long"),
        (Path("x" * 5000), "File name too long"),
    ):
        with pytest.raises(StorageError, match=f"cannot write .*: {reason}"):
            check_inputs("bitnet", quick(out), write_probe=write_probe)
    with pytest.raises(CheckpointError, match=r"no checkpoint at \S*loop$"):
        checkpoint.open(tmp_path / "loop")
