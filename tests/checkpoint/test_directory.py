"""The checkpoint directory: whole or absent, verified on read, same content same id."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent_forge import checkpoint
from agent_forge.checkpoint import Checkpoint, DirectoryLock, atomic
from agent_forge.core.errors import CheckpointError, LockedError, StorageError


def save_files(*contents: bytes):
    def save(directory: Path) -> None:
        for number, content in enumerate(contents):
            (directory / f"part-{number}.safetensors").write_bytes(content)
        (directory / "config.json").write_text("{}")

    return save


def write(target: Path, *contents: bytes, **settings) -> Checkpoint:
    return checkpoint.write(
        target, save_files(*contents), phase="test", seed=1, config={"a": 1}, **settings
    )


def test_a_written_checkpoint_opens_with_its_manifest(tmp_path: Path) -> None:
    parent = write(tmp_path / "parent", b"weights")
    child = write(
        tmp_path / "child",
        b"other",
        parents=[parent],
        metrics={"loss": 0.5},
        agent={"tools": ["calculator"]},
    )
    opened = checkpoint.open(tmp_path / "child")
    assert opened.manifest == child.manifest
    assert opened.manifest.parents == [
        {"path": str(tmp_path / "parent"), "id": parent.id, "phase": "test", "name": "test"}
    ]
    assert opened.metrics == {"loss": 0.5}
    assert opened.manifest.deployable_bytes == len(b"other")


def test_the_id_depends_on_content_alone(tmp_path: Path) -> None:
    assert (
        write(tmp_path / "a", b"x", b"y").id
        == write(tmp_path / "b", b"x", b"y", name="other", metrics={"m": 1}).id
    )
    assert write(tmp_path / "c", b"x", b"z").id != write(tmp_path / "d", b"x", b"y").id


def test_ids_and_the_format_version_are_as_checkpoints_out_there_have_them(tmp_path: Path) -> None:
    """Nobody can open an older checkpoint any more once either changes."""
    model = write(tmp_path / "model", b"x")
    lines = [
        f"config.json {hashlib.sha256(b'{}').hexdigest()}",
        f"part-0.safetensors {hashlib.sha256(b'x').hexdigest()}",
    ]
    assert model.id == hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    file = model.path / "forge.json"
    content = {**json.loads(file.read_text()), "sha256": ""}
    for version in (1, 2):
        file.write_text(json.dumps({**content, "format_version": version}))
        if version == 1:
            assert checkpoint.open(model.path).id == model.id
            # The oldest say neither when nor where they were made, nor with what.
            unsaid = {"extra", "versions", "host", "time", "sha256"}
            short = {key: value for key, value in content.items() if key not in unsaid}
            file.write_text(json.dumps(short))
            oldest = checkpoint.open(model.path).manifest
            assert (oldest.time, oldest.host, oldest.versions, oldest.extra) == (0, "", {}, {})
            file.write_text(json.dumps({**content, "format_version": version}))
    with pytest.raises(
        CheckpointError, match="has format version 2, this forge reads up to 1; upgrade"
    ):
        checkpoint.open(model.path)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("name", ["part-0.safetensors", "part-1.safetensors", "config.json"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str, name: str) -> None:
    write(tmp_path / "model", b"weights", b"more")
    file = tmp_path / "model" / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match=name):
        checkpoint.open(tmp_path / "model")


def test_a_damaged_or_missing_manifest_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model", b"weights")
    manifest = tmp_path / "model" / "forge.json"
    content = json.loads(manifest.read_text())
    content["files"]["part-0.safetensors"]["sha256"] = content["files"]["config.json"]["sha256"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(
        CheckpointError, match=r"forge\.json is damaged: it does not have its recorded hash"
    ):
        checkpoint.open(tmp_path / "model")
    # A manifest that was written before manifests had a hash.
    manifest.write_text(json.dumps({**content, "sha256": ""}))
    with pytest.raises(CheckpointError, match=r"part-0\.safetensors is damaged"):
        checkpoint.open(tmp_path / "model")
    manifest.write_text("{")
    with pytest.raises(CheckpointError, match=r"forge\.json is damaged"):
        checkpoint.open(tmp_path / "model")
    manifest.unlink()
    with pytest.raises(CheckpointError, match="forge import"):
        checkpoint.open(tmp_path / "model")


def test_a_flipped_bit_anywhere_in_the_manifest_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "model", b"weights", metrics={"loss": {"value": 0.5, "n": 12}})
    manifest = tmp_path / "model" / "forge.json"
    whole = manifest.read_bytes()
    for place in range(0, len(whole) - 1, 7):
        content = bytearray(whole)
        content[place] ^= 1 << (place % 7)
        manifest.write_bytes(content)
        if _same_json(content, whole):
            continue
        with pytest.raises(CheckpointError):
            checkpoint.open(tmp_path / "model")
    manifest.write_bytes(whole)
    checkpoint.open(tmp_path / "model")


def _same_json(one: bytes, two: bytes) -> bool:
    """Return whether a flip changed nothing but white space."""
    try:
        return json.loads(one) == json.loads(two)
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"files": 5}, "'files' is not of kind dict"),
        ({"files": {"config.json": 5}}, "no size and SHA-256 of config.json"),
        ({"files": {"config.json": {"bytes": "2"}}}, "no size and SHA-256 of config.json"),
        ({"files": {"../x": {"bytes": 2, "sha256": ""}}}, "../x, which lies outside"),
        ({"files": {"/etc/x": {"bytes": 2, "sha256": ""}}}, "/etc/x, which lies outside"),
        ({"parents": [{}]}, "without path, id, phase and name"),
        ({"parents": ["a"]}, "without path, id, phase and name"),
        ({"format_version": "1"}, "'format_version' is not of kind int"),
        ({"seed": True}, "'seed' is not of kind int"),
        ({"time": "now"}, "'time' is not of kind float"),
        ({"extra": {"encryption": {"format": "age"}}}, "no format, recipients and files"),
    ],
)
def test_entries_of_another_kind_in_a_manifest_are_named(
    tmp_path: Path, change: dict, said: str
) -> None:
    place = write(tmp_path / "model", b"weights").path
    content = json.loads((place / "forge.json").read_text(encoding="utf-8"))
    content |= {"time": 1, **change}  # a whole number of seconds is a time too
    (place / "forge.json").write_text(json.dumps(content), encoding="utf-8")
    for verify in (False, True):
        with pytest.raises(CheckpointError) as caught:
            checkpoint.open(place, verify=verify)
        assert f"{place / 'forge.json'} is damaged (" in str(caught.value)
        assert said in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "5", "null", "[" * 100_000])
def test_a_manifest_that_is_no_object_is_damaged(tmp_path: Path, content: str) -> None:
    place = write(tmp_path / "model", b"weights").path
    (place / "forge.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"forge.json is damaged \("):
        checkpoint.open(place)


def test_a_manifest_that_is_a_folder_or_a_link_to_nowhere_is_an_error(tmp_path: Path) -> None:
    place = write(tmp_path / "model", b"weights").path
    (place / "forge.json").unlink()
    (place / "forge.json").mkdir()
    with pytest.raises(CheckpointError, match=r"forge.json cannot be read: Is a directory"):
        checkpoint.open(place)
    (place / "forge.json").rmdir()
    (place / "forge.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"forge.json is missing"):
        checkpoint.open(place)


def test_a_missing_checkpoint_suggests_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path / "bitnet", b"weights")
    with pytest.raises(CheckpointError, match="did you mean 'bitnet'"):
        checkpoint.open(tmp_path / "bitnte")


def test_a_file_in_place_of_a_checkpoint_is_called_one(tmp_path: Path) -> None:
    for name, hint in (("rows.jsonl", ""), ("m.gguf", "; run `forge import` on it first")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(CheckpointError) as caught:
            checkpoint.open(tmp_path / name)
        assert str(caught.value) == (
            f"{tmp_path / name} is a file, and a checkpoint is a directory{hint}"
        )


def test_a_folder_stands_for_its_checkpoints_trunk_first(tmp_path: Path) -> None:
    write(tmp_path / "all" / "a", b"1", name="a", role="specialist")
    write(tmp_path / "all" / "z", b"2", name="z", role="trunk")
    (tmp_path / "all" / ".tmp-x").mkdir()
    assert [one.name for one in checkpoint.expand([tmp_path / "all"])] == ["z", "a"]
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match="holds none"):
        checkpoint.expand([tmp_path / "none"])


def test_a_kill_at_any_point_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    target = tmp_path / "model"
    old = write(tmp_path / "model", b"old weights" * 100, b"more")
    new_id = write(tmp_path / "other", b"new weights" * 100, b"more").id
    points, killed = 0, 1
    while killed:
        points += 1
        killed = _killed_at(points, target)
        atomic.remove_leftovers(tmp_path)
        assert checkpoint.open(target).id in (old.id, new_id)
        assert not list(tmp_path.glob(".tmp-*"))
    assert points > 15, "the hook saw too few operations to prove anything"
    assert checkpoint.open(target).id == new_id


def _killed_at(point: int, target: Path) -> int:
    """Write over `target` in a forked child that is killed at its `point`-th file operation; return
    the signal.
    """
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple) -> None:  # noqa: ARG001
            nonlocal seen
            if event in (
                "open",
                "os.mkdir",
                "os.rename",
                "os.remove",
                "os.rmdir",
                "os.listdir",
                "os.scandir",
                "ctypes.dlsym",
            ):
                seen += 1
                if seen == point:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        write(target, b"new weights" * 100, b"more")
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def test_a_moved_aside_directory_is_put_back(tmp_path: Path) -> None:
    old = write(tmp_path / "model", b"weights")
    (tmp_path / "model").rename(tmp_path / f"{atomic.OLD}model")
    atomic.remove_leftovers(tmp_path)
    assert checkpoint.open(tmp_path / "model").id == old.id


def test_a_full_disk_keeps_the_old_checkpoint_and_says_what_is_needed(tmp_path: Path) -> None:
    old = write(tmp_path / "model", b"weights")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))
        with pytest.raises(
            StorageError, match=r"disk full .* needs at least .* free [\d,]+ bytes"
        ) as caught:
            write(tmp_path / "model", b"x" * (1 << 16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert caught.value.exit_code == 74
    assert checkpoint.open(tmp_path / "model").id == old.id
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_disk_without_room_for_a_folder_names_no_number_of_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StorageError, match=r"disk full while writing \S+: free [\d,]+ bytes"):
        atomic.write_directory(tmp_path / "model", lambda _: None)


def test_a_save_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def save(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        checkpoint.write(tmp_path / "model", save, phase="test", seed=0, config={})
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys, pathlib; from agent_forge.checkpoint import DirectoryLock\n"
            "with DirectoryLock(pathlib.Path(sys.argv[1])):\n print('held', flush=True); "
            "sys.stdin.read()",
            str(tmp_path),
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(LockedError, match=rf"pid {holder.pid} on \S+") as caught,
            DirectoryLock(tmp_path),
        ):
            pass
        assert caught.value.exit_code == 73
    finally:
        holder.kill()
        holder.communicate()
    with DirectoryLock(tmp_path):
        pass
