"""Power may fail between any two operations of a save: what was renamed into place must already be
on the disk.

The model of a crash: after a power cut a file has its content only if it was fsynced, and a
directory has an entry only if the directory was fsynced after the entry changed. So every file and
folder is flushed before the rename that shows it, and the folder that holds the name after the
rename, before the old version goes.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from agent_forge import checkpoint
from agent_forge.checkpoint import Checkpoint, DirectoryLock, atomic, manifest
from agent_forge.checkpoint.lock import LOCK_NAME
from agent_forge.core.errors import CheckpointError

Journal = list[tuple[str, str, frozenset[str]]]


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Journal:
    """Return the list into which fsyncs, renames, exchanges and removals go: (operation, path, what
    lay below it).
    """
    events: Journal = []

    def below(path: Path) -> frozenset[str]:
        return frozenset(str(p) for p in path.rglob("*")) if path.is_dir() else frozenset()

    def record(name: str, function: Callable) -> Callable:
        def recorded(first, *others, **settings):
            if name == "fsync":
                events.append((name, os.readlink(f"/proc/self/fd/{first}"), frozenset()))
            else:
                events.append((name, str(first), below(Path(first))))
            return function(first, *others, **settings)

        return recorded

    monkeypatch.setattr(os, "fsync", record("fsync", os.fsync))
    monkeypatch.setattr(Path, "rename", record("rename", Path.rename))
    monkeypatch.setattr(Path, "replace", record("rename", Path.replace))
    monkeypatch.setattr(atomic, "_exchange", record("rename", atomic._exchange))
    monkeypatch.setattr(shutil, "rmtree", record("remove", shutil.rmtree))
    return events


def flushed(journal: Journal, start: int, end: int | None = None) -> set[str]:
    return {path for operation, path, _ in journal[start:end] if operation == "fsync"}


def assert_survives_power_cuts(journal: Journal, parent: Path) -> None:
    shown = [i for i, (operation, _, _) in enumerate(journal) if operation == "rename"]
    assert len(shown) == 1
    _, new, contents = journal[shown[0]]
    assert {new, *contents} <= flushed(journal, 0, shown[0]), (
        "something is shown that is not on the disk"
    )
    removed = [i for i, (operation, _, _) in enumerate(journal) if operation == "remove"]
    assert str(parent) in flushed(journal, shown[0], removed[0] if removed else None), (
        "the new name can be lost"
    )


def save(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "inner").mkdir()
    (folder / "inner" / "config.json").write_text("{}")


def write(target: Path) -> Checkpoint:
    return checkpoint.write(target, save, phase="test", seed=0, config={})


def test_a_file_is_on_the_disk_before_it_is_shown(tmp_path: Path, journal: Journal) -> None:
    atomic.write_bytes(tmp_path / "state.json", b"{}")
    assert_survives_power_cuts(journal, tmp_path)


def test_a_new_checkpoint_is_on_the_disk_before_it_is_shown(
    tmp_path: Path, journal: Journal
) -> None:
    write(tmp_path / "model")
    assert_survives_power_cuts(journal, tmp_path)
    shown = next(contents for operation, _, contents in journal if operation == "rename")
    assert {Path(path).name for path in shown} == {
        "weights.safetensors",
        "inner",
        "config.json",
        "forge.json",
    }


def test_the_old_checkpoint_stays_until_the_new_name_is_on_the_disk(
    tmp_path: Path, journal: Journal
) -> None:
    write(tmp_path / "model")
    journal.clear()
    write(tmp_path / "model")
    assert [operation for operation, _, _ in journal].count("remove") == 1
    assert_survives_power_cuts(journal, tmp_path)


def test_an_id_that_does_not_fit_the_files_is_refused(tmp_path: Path) -> None:
    written = write(tmp_path / "model")
    written.manifest.id = "0" * 16
    written.manifest.sha256 = manifest.manifest_hash(written.manifest)
    (tmp_path / "model" / "forge.json").write_text(json.dumps(asdict(written.manifest)))
    with pytest.raises(CheckpointError, match="its id does not fit its file hashes"):
        checkpoint.open(tmp_path / "model")


def test_the_note_of_the_owner_goes_with_the_lock(tmp_path: Path) -> None:
    note = tmp_path / f"{LOCK_NAME}.owner"
    with DirectoryLock(tmp_path):
        assert json.loads(note.read_text())["pid"] == os.getpid()
    assert not note.exists()


def test_leftovers_of_other_writers_stay(tmp_path: Path) -> None:
    mine = [f"{atomic.TEMPORARY}model-{'0a' * 4}", f"{atomic.OLD}model"]
    others = [
        f"{atomic.TEMPORARY}model2-{'0a' * 4}",
        f"{atomic.TEMPORARY}model-x-{'0a' * 4}",
        f"{atomic.OLD}model2",
        f"{atomic.TEMPORARY}other-{'0a' * 4}",
    ]
    for name in [*mine, *others, "model"]:
        (tmp_path / name).mkdir()
    atomic.remove_leftovers(tmp_path, "model")
    assert {path.name for path in tmp_path.iterdir()} == {*others, "model"}
    atomic.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model2"}


def test_two_names_are_exchanged_in_one_step_also_by_relative_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The constants are Linux's: the current directory, and RENAME_EXCHANGE, which needs both
    names.
    """
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        Path(name).mkdir()
        (Path(name) / name).touch()
    if not atomic._exchange(Path("one").resolve(), Path("two").resolve()):
        pytest.skip("this file system cannot exchange two names")
    assert atomic._exchange(Path("one"), Path("two"))
    assert atomic._exchange(Path("one"), Path("two"))
    assert (Path("one") / "two").exists()
    assert (Path("two") / "one").exists()
    assert not atomic._exchange(Path("one"), Path("none"))
