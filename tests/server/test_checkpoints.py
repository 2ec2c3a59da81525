"""Checkpoints by id: copies, damage, loss, and a thousand of them."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent_forge import checkpoint
from agent_forge.core.errors import CheckpointError
from agent_forge.server.checkpoints import Registry
from agent_forge.server.database import Database

MANY = 1000


@pytest.fixture
def registry(database: Database, tmp_path: Path) -> Registry:
    return Registry(database, [tmp_path / "models"])


def write(place: Path, content: str, name: str = "m") -> checkpoint.Checkpoint:
    def save(directory: Path) -> None:
        (directory / "model.safetensors").write_text(content)

    return checkpoint.write(place, save, phase="train", seed=1, config={}, name=name)


def test_copies_share_an_id_and_are_one_entry(registry: Registry, tmp_path: Path) -> None:
    one = write(tmp_path / "models" / "one", "x")
    shutil.copytree(one.path, tmp_path / "models" / "deep" / "copy")
    other = write(tmp_path / "models" / "other", "y")
    assert registry.scan() == 3
    assert [entry.id for entry in registry.list()] == [one.id, other.id]
    assert registry.get(one.id).copies == 2
    assert registry.scan() == 0
    shutil.rmtree(one.path)
    assert registry.path_of(one.id) == tmp_path / "models" / "deep" / "copy"
    registry.scan()
    assert registry.get(one.id).copies == 1


def test_a_checkpoint_is_encrypted_when_every_copy_is(registry: Registry, tmp_path: Path) -> None:
    pyrage = pytest.importorskip("pyrage")
    from agent_forge.checkpoint import encryption

    one = write(tmp_path / "models" / "one", "x")
    public = str(pyrage.x25519.Identity.generate().to_public())
    encryption.encrypt(one.path, tmp_path / "models" / "sealed", [public])
    registry.scan()
    entry = registry.get(one.id)
    assert (entry.copies, entry.status, entry.encrypted) == (2, "ok", False)
    shutil.rmtree(one.path)
    registry.scan()
    entry = registry.get(one.id)
    assert (entry.copies, entry.status, entry.encrypted) == (1, "ok", True)


def test_a_checkpoint_that_was_removed_is_missing_and_may_come_back(
    registry: Registry, tmp_path: Path
) -> None:
    one = write(tmp_path / "models" / "one", "x")
    registry.scan()
    one.path.rename(tmp_path / "aside")
    registry.scan()
    assert registry.get(one.id).status == "missing"
    with pytest.raises(CheckpointError, match="is gone"):
        registry.path_of(one.id)
    (tmp_path / "aside").rename(one.path)
    registry.scan()
    assert registry.get(one.id).status == "ok"


def test_another_checkpoint_in_the_same_place_has_its_own_id(
    registry: Registry, tmp_path: Path
) -> None:
    one = write(tmp_path / "models" / "one", "x")
    registry.scan()
    two = write(tmp_path / "models" / "one", "other")
    registry.scan()
    assert registry.get(two.id).locations == [two.path]
    with pytest.raises(CheckpointError):
        registry.path_of(one.id)


def test_damage_is_named_without_paths(registry: Registry, tmp_path: Path) -> None:
    one = write(tmp_path / "models" / "one", "x")
    two = write(tmp_path / "models" / "two", "same length")
    (one.path / "model.safetensors").write_text("longer than it was")
    (two.path / "model.safetensors").write_text("some length")
    three = tmp_path / "models" / "three"
    three.mkdir()
    (three / "forge.json").write_text("{")
    registry.scan()
    assert registry.get(one.id).status == "damaged"
    assert registry.get(two.id).status == "ok"  # no size has changed
    assert registry.verify(two.id).status == "damaged"
    damaged = [entry for entry in registry.list() if entry.status == "damaged"]
    assert len(damaged) == 3
    assert all(entry.error and str(tmp_path) not in entry.error for entry in damaged)


def test_an_unknown_id_suggests_the_nearest(registry: Registry, tmp_path: Path) -> None:
    one = write(tmp_path / "models" / "one", "x")
    registry.scan()
    with pytest.raises(CheckpointError, match=f"did you mean '{one.id}'"):
        registry.get(one.id[:-1] + "~")


def test_links_and_hidden_directories_are_passed_over(registry: Registry, tmp_path: Path) -> None:
    outside = write(tmp_path / "outside" / "secret", "x")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link").symlink_to(outside.path)
    write(tmp_path / "models" / ".tmp-half", "y")
    assert registry.scan() == 0


def test_a_thousand_checkpoints_are_listed_from_the_index(
    registry: Registry, tmp_path: Path
) -> None:
    one = write(tmp_path / "models" / "n0", "0")
    for number in range(1, MANY):
        place = tmp_path / "models" / f"n{number}"
        place.mkdir()
        manifest = replace(one.manifest, id=f"{number:016x}", files={}, time=float(number))
        content = {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}
        (place / "forge.json").write_text(json.dumps(content))
    began = time.process_time()
    registry.scan()
    first_scan = time.process_time() - began
    began = time.process_time()
    assert len(registry.list()) == MANY
    listing = time.process_time() - began
    print(f"scan {first_scan * 1e3:.0f} ms, list {listing * 1e3:.1f} ms of processor time")
    assert listing < min(first_scan / 3, 0.05)
    began = time.process_time()
    assert registry.scan() == 0
    assert time.process_time() - began < first_scan / 2
