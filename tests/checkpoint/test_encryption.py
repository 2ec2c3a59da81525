"""Encrypted checkpoints: equal to the age tool's, refused when cut or changed, opened by the key."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent_forge import checkpoint, models
from agent_forge.checkpoint import Checkpoint, age, encryption, lending
from agent_forge.core.errors import CheckpointError, ConfigError, StorageError

pyrage = pytest.importorskip("pyrage", reason="encryption needs agent-forge[crypto]")

CHUNK, TAG = 64 * 1024, 16


@pytest.fixture(autouse=True)
def _own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a settings folder without a key, and forget what was lent before."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    for name in (age.IDENTITY, age.IDENTITY_FILE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(age, "_from_keyring", list)
    monkeypatch.setattr(lending, "_lent", {})


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a key that is within reach."""
    identity = pyrage.x25519.Identity.generate()
    monkeypatch.setenv(age.IDENTITY, str(identity))
    return identity


@pytest.fixture
def model(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """Return a copy of the tiny checkpoint that a test may change."""
    return Path(shutil.copytree(tiny_checkpoint.stored, tmp_path / "model"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_encrypting_and_decrypting_in_place_gives_every_byte_back(model: Path, key: Any) -> None:
    before = files(model)
    written = encryption.encrypt(model, model)
    after = files(model)
    assert set(after) == {"forge.json", *(f"{name}.age" for name in before if name != "forge.json")}
    assert all(after[n].startswith(b"age-encryption.org/v1\n") for n in after if n != "forge.json")
    assert written.manifest.encryption is not None
    assert written.manifest.encryption["recipients"] == [str(key.to_public())]
    assert written.id == encryption.decrypt(model, model).id
    assert files(model) == before


def test_an_encrypted_checkpoint_opens_and_loads_with_the_key_and_leaves_no_plaintext(
    model: Path, key: Any, tiny_checkpoint: Checkpoint
) -> None:
    del key
    plain = models.load(tiny_checkpoint).state_dict()
    encryption.encrypt(model, model)
    opened = checkpoint.open(model)
    assert opened.stored == model
    for source in (opened, model, opened.path):
        loaded = models.load(source).state_dict()
        assert all((loaded[name] == value).all() for name, value in plain.items())
    assert models.load_tokenizer(model).get_vocab()
    lent = opened.path
    assert stat.S_IMODE(lent.stat().st_mode) == 0o700
    assert checkpoint.open(lent).id == opened.id
    links = [path for path in lent.iterdir() if path.name != "forge.json"]
    assert all(os.readlink(link).startswith("/proc/") for link in links)
    assert not list(model.glob("*.safetensors"))


def test_plaintext_is_gone_when_the_process_that_read_it_was_killed(model: Path, key: Any) -> None:
    encryption.encrypt(model, model)
    code = (
        "import sys, os, signal; from agent_forge import checkpoint\n"
        "print(checkpoint.open(sys.argv[1]).path, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, age.IDENTITY: str(key)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=False,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    lent = Path(done.stdout.strip())
    assert lent.is_dir()
    assert {path.name for path in lent.iterdir() if path.exists()} == {"forge.json"}
    shutil.rmtree(lent)


def test_without_memory_files_a_private_folder_is_lent(
    model: Path, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    del key
    encryption.encrypt(model, model)
    monkeypatch.delattr(os, "memfd_create")
    lent = checkpoint.open(model).path
    assert checkpoint.open(lent)
    for path in lent.iterdir():
        if path.name != "forge.json":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lending._remove(lent, os.getpid() + 1)
    assert lent.exists()
    lending._remove(lent, os.getpid())
    assert not lent.exists()


def test_without_the_key_it_is_checked_and_listed_but_not_read(
    model: Path, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    del key
    encryption.encrypt(model, model)
    monkeypatch.delenv(age.IDENTITY)
    opened = checkpoint.open(model)
    with pytest.raises(ConfigError, match=r"is encrypted: no age key within reach.*--new-key"):
        _ = opened.path
    with pytest.raises(ConfigError, match="is encrypted"):
        models.load(model)
    monkeypatch.setenv(age.IDENTITY, str(pyrage.x25519.Identity.generate()))
    with pytest.raises(CheckpointError, match="encrypted for other keys"):
        models.load(model)


def test_children_name_the_place_where_a_parent_lies_not_the_lent_folder(
    model: Path, key: Any, tmp_path: Path
) -> None:
    del key
    parent = encryption.encrypt(model, model)
    child = checkpoint.write(
        tmp_path / "child", lambda d: shutil.copy(parent.path / "config.json", d),
        phase="import", seed=0, config={}, parents=[parent],
    )  # fmt: skip
    assert child.manifest.parents[0]["path"] == str(model)
    assert child.manifest.encryption is None


def sealed(folder: Path, key: Any, size: int = 3 * CHUNK) -> tuple[Path, bytes]:
    """Return an encrypted file of whole chunks, and what it holds."""
    content = os.urandom(size)
    (folder / "plain").write_bytes(content)
    age.encrypt_file(folder / "plain", folder / "file.age", [key.to_public()])
    return folder / "file.age", content


def body(content: bytes) -> int:
    """Return where the chunks of an age file begin: after the line `--- MAC` and the nonce."""
    return content.index(b"\n", content.index(b"\n---") + 1) + 1 + 16


def refused(source: Path, key: Any) -> str:
    """Return why a file is refused; nothing may be left of it."""
    target = source.with_name("opened")
    with pytest.raises(CheckpointError) as caught:
        age.decrypt_file(source, target, [key])
    assert {p.name for p in source.parent.iterdir()} - {"settings"} == {"plain", "file.age"}
    return str(caught.value)


@pytest.mark.parametrize("chunks", [0, 1, 2, 3])
def test_a_file_that_is_cut_at_a_chunk_border_leaves_no_plaintext(
    chunks: int, key: Any, tmp_path: Path
) -> None:
    source, _ = sealed(tmp_path, key)
    content = source.read_bytes()
    borders = body(content) + chunks * (CHUNK + TAG)
    assert borders < len(content) or chunks == 3
    source.write_bytes(content[: min(borders, len(content) - TAG - CHUNK)])
    assert "damaged or cut" in refused(source, key)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.999, 1.0])
def test_a_file_that_is_cut_or_flipped_anywhere_leaves_no_plaintext(
    share: float, key: Any, tmp_path: Path
) -> None:
    source, _ = sealed(tmp_path, key, 2 * CHUNK + 100)
    content = source.read_bytes()
    place = min(int(share * len(content)), len(content) - 1)
    source.write_bytes(content[:place])
    refused(source, key)
    for bit in (1, 128):
        flipped = bytearray(content)
        flipped[place] ^= bit
        source.write_bytes(flipped)
        refused(source, key)
    source.write_bytes(content + b"\0")
    assert "damaged or cut" in refused(source, key)


def test_chunks_in_another_order_are_refused(key: Any, tmp_path: Path) -> None:
    source, _ = sealed(tmp_path, key)
    content = source.read_bytes()
    start, size = body(content), CHUNK + TAG
    one, two, rest = (content[start + i * size :][: size if i < 2 else None] for i in range(3))
    source.write_bytes(content[:start] + two + one + rest)
    assert "damaged or cut" in refused(source, key)


def test_a_cut_file_of_a_checkpoint_leaves_the_directory_as_it_was(model: Path, key: Any) -> None:
    del key
    encryption.encrypt(model, model)
    weights = model / "model.safetensors.age"
    weights.write_bytes(weights.read_bytes()[:-70000])
    before = files(model)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.age is damaged"):
        checkpoint.open(model)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.age is damaged"):
        models.load(model)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.age is damaged"):
        encryption.decrypt(model, model)
    assert files(model) == before


def test_a_file_put_in_the_place_of_another_is_refused(model: Path, key: Any) -> None:
    """age does not say who encrypted: whoever has the public key can; the content's hash decides."""
    encryption.encrypt(model, model)
    age.encrypt_file(model / "forge.json", model / "config.json.age", [key.to_public()])
    manifest = json.loads((model / "forge.json").read_text())
    entry = manifest["extra"]["encryption"]["files"]["config.json.age"]
    entry["bytes"] = (model / "config.json.age").stat().st_size
    entry["sha256"] = checkpoint.atomic.sha256_file(model / "config.json.age")
    manifest["sha256"] = ""
    (model / "forge.json").write_text(json.dumps(manifest))
    assert checkpoint.open(model)
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        models.load(model)


def test_rotation_takes_the_old_key_out_and_keeps_the_content(
    model: Path, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = encryption.encrypt(model, model)
    new = pyrage.x25519.Identity.generate()
    rotated = encryption.rotate(model, model, [str(new.to_public())])
    assert rotated.id == before.id
    with pytest.raises(CheckpointError, match="other keys"):
        models.load(model)
    monkeypatch.setenv(age.IDENTITY, f"{key}\n{new}")
    assert models.load(model)
    with pytest.raises(CheckpointError, match="encrypted already"):
        encryption.encrypt(model, model)
    encryption.decrypt(model, model)
    with pytest.raises(CheckpointError, match="is not encrypted"):
        encryption.rotate(model, model)


# Where keys come from.


def test_a_key_file_is_private_and_a_new_key_stands_before_older_ones(tmp_path: Path) -> None:
    first = age.new_identity()
    second = age.new_identity()
    file = tmp_path / "settings" / "agent-forge" / "age.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [str(key.to_public()) for key in age.identities()] == [second, first]
    assert [str(key) for key in age.recipients()] == [second]
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="others can read the key file"):
        age.identities()
    with pytest.raises(ConfigError, match="others can read the key file"):
        age.new_identity()


def test_the_environment_comes_before_the_file_and_the_file_before_the_keyring(
    key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = pyrage.x25519.Identity.generate()
    monkeypatch.setattr(age, "_from_keyring", lambda: [ring])
    in_file = age.new_identity()
    assert str(age.identities()[0]) == str(key)
    monkeypatch.delenv(age.IDENTITY)
    assert str(age.identities()[0].to_public()) == in_file
    age.key_file().unlink()
    assert str(age.identities()[0]) == str(ring)


def test_the_keyring_is_asked_by_name_and_its_absence_is_not_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    key = pyrage.x25519.Identity.generate()
    asked_for: list[tuple[str, str]] = []

    class LockedError(Exception):
        pass

    def password(service: str, account: str) -> str:
        asked_for.append((service, account))
        if len(asked_for) > 1:
            raise LockedError
        return str(key)

    modules = {
        "keyring": SimpleNamespace(get_password=password),
        "keyring.errors": SimpleNamespace(KeyringError=LockedError),
    }
    real = age.importlib.import_module
    monkeypatch.setattr(
        age.importlib, "import_module", lambda name: modules.get(name) or real(name)
    )
    assert [str(one) for one in age._from_keyring()] == [str(key)]
    assert age._from_keyring() == []
    assert asked_for[0] == ("agent-forge", "age-identity")


@pytest.mark.parametrize("text", ["AGE-SECRET-KEY-1NONSENSE", "hello", "age1abc"])
def test_what_is_not_a_key_is_refused_without_being_repeated(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(age.IDENTITY, text)
    with pytest.raises(ConfigError) as caught:
        age.identities()
    assert text not in str(caught.value)
    assert age.IDENTITY in str(caught.value)


def test_a_secret_key_on_the_command_line_is_refused(key: Any) -> None:
    with pytest.raises(ConfigError, match="never read from the command line") as caught:
        age.recipients([str(key)])
    assert str(key) not in str(caught.value)
    with pytest.raises(ConfigError, match="not an age recipient"):
        age.recipients(["age1xyz"])


def test_a_full_disk_is_one_line(key: Any, small_disk: Path, tmp_path: Path) -> None:
    source, _ = sealed(tmp_path, key, 5 * 2**20)
    with pytest.raises(StorageError, match="disk full"):
        age.decrypt_file(source, small_disk / "opened", [key])
    assert list(small_disk.iterdir()) == []


# The age tool itself.


@pytest.fixture
def tool() -> Callable[..., "subprocess.CompletedProcess[bytes]"]:
    """Return a function that runs `age`; FORGE_AGE names it where it is not on the PATH."""
    program = os.environ.get("FORGE_AGE") or shutil.which("age")
    if not program:
        pytest.skip("the age tool is not installed here (FORGE_AGE may name it)")
    return lambda *arguments: subprocess.run(
        [program, *map(str, arguments)], capture_output=True, check=True
    )


def test_age_decrypts_ours_and_we_decrypt_its(
    tool: Callable[..., Any], model: Path, key: Any, tmp_path: Path
) -> None:
    original = (model / "config.json").read_bytes()
    encryption.encrypt(model, model)
    (tmp_path / "key.txt").write_text(f"# a comment, as age-keygen writes one\n{key}\n")
    done = tool("-d", "-i", tmp_path / "key.txt", model / "config.json.age")
    assert done.stdout == original
    for extra in ([], ["-a"]):  # binary, and text that is fit for mail
        tool(*extra, "-r", key.to_public(), "-o", tmp_path / "its.age", model / "forge.json")
        age.decrypt_file(tmp_path / "its.age", tmp_path / "its", [key])
        assert (tmp_path / "its").read_bytes() == (model / "forge.json").read_bytes()
        (tmp_path / "its.age").unlink()


# The commands.


def test_the_commands_encrypt_show_rotate_and_decrypt(
    model: Path, tmp_path: Path, forge: Callable
) -> None:
    settings = {"XDG_CONFIG_HOME": str(tmp_path / "settings")}
    before = files(model)
    missing = forge("encrypt", str(model), **settings)
    assert missing.returncode == 2
    assert "no age key within reach" in missing.stderr
    encrypted = forge("encrypt", str(model), "--new-key", "--json", **settings)
    assert encrypted.returncode == 0, encrypted.stderr
    (public,) = json.loads(encrypted.stdout)["recipients"]
    assert "AGE-SECRET" not in encrypted.stdout + encrypted.stderr
    shown = forge("inspect", str(model), **settings).stdout
    assert f"encrypted (age-encryption.org/v1) for {public}" in shown
    listed = forge("list", str(tmp_path), "--json", **settings).stdout
    assert [json.loads(line)["encrypted"] for line in listed.splitlines()] == [True]
    assert "import, encrypted" in forge("list", str(tmp_path), **settings).stdout
    assert forge("verify", str(model), XDG_CONFIG_HOME=str(tmp_path / "none")).returncode == 0
    rotated = forge("encrypt", str(model), "--rotate", "--new-key", "--json", **settings)
    assert json.loads(rotated.stdout)["recipients"] != [public]
    plain = forge("decrypt", str(model), "--out", str(tmp_path / "plain"), **settings)
    assert plain.returncode == 0, plain.stderr
    assert files(tmp_path / "plain") == before
