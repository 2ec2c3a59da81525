"""Encrypt and decrypt single files in the age format, and find the keys to do so.

Reads a key ("identity") from FORGE_AGE_IDENTITY, else from a file that only its owner can read
(agent-forge/age.key under XDG_CONFIG_HOME, or FORGE_AGE_IDENTITY_FILE), else from the system's
keyring; never from the command line. Files are streamed. What is decrypted goes into a temporary
file of mode 0600, which takes its name only when every chunk was authentic and the last one was
there: a cut or changed file leaves no plaintext. Format: age-encryption.org/v1, by pyrage, so the
`age` tool reads ours and we read its.
"""

import contextlib
import importlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from agent_forge.checkpoint.atomic import TEMPORARY, fsync_path, storage_error
from agent_forge.core.errors import CheckpointError, ConfigError

SUFFIX = ".age"
IDENTITY = "FORGE_AGE_IDENTITY"
IDENTITY_FILE = "FORGE_AGE_IDENTITY_FILE"
SERVICE, ACCOUNT = "agent-forge", "age-identity"  # the keyring's entry for the key
_SECRET = "AGE-SECRET-KEY-1"


def key_file() -> Path:
    """Return the file of the key: FORGE_AGE_IDENTITY_FILE, else the one in the user's settings."""
    settings = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    named = os.environ.get(IDENTITY_FILE)
    return Path(named) if named else Path(settings) / "agent-forge" / "age.key"


def identities() -> list[Any]:
    """Return the keys within reach, the newest first.

    Raises ConfigError with the places that were looked at where there is none, or where others can
    read the file.
    """
    for read in (_from_environment, _from_file, _from_keyring):
        keys = read()
        if keys:
            return keys
    raise ConfigError(
        f"no age key within reach: set {IDENTITY}, or write one to {key_file()} "
        "(`forge encrypt --new-key` makes it), or store it in the keyring as "
        f"{SERVICE} / {ACCOUNT}"
    )


def _from_environment() -> list[Any]:
    return _parsed(os.environ.get(IDENTITY, ""), IDENTITY)


def _from_file() -> list[Any]:
    file = key_file()
    if not file.exists():
        if os.environ.get(IDENTITY_FILE):
            raise ConfigError(f"{IDENTITY_FILE}={file}: there is no such file")
        return []
    if file.stat().st_mode & 0o077:
        raise ConfigError(f"others can read the key file {file}; run chmod 600 on it")
    return _parsed(file.read_text(encoding="utf-8", errors="replace"), str(file))


def _from_keyring() -> list[Any]:
    """Return the key in the system's keyring; without the package or a keyring there is none."""
    try:
        keyring = importlib.import_module("keyring")
        errors = importlib.import_module("keyring.errors")
    except ImportError:
        return []
    try:
        text = keyring.get_password(SERVICE, ACCOUNT)
    except errors.KeyringError:
        return []
    return _parsed(text or "", "the keyring")


def _parsed(text: str, where: str) -> list[Any]:
    """Return the keys in a text as age-keygen writes it: comments and one key per line."""
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if text.strip() and not keys:
        raise ConfigError(f"{where} holds no age key ({_SECRET}…)")
    pyrage = _pyrage()
    try:
        return [pyrage.x25519.Identity.from_str(key) for key in keys]
    except pyrage.IdentityError:
        # The text is never repeated: most of it may be a real key.
        raise ConfigError(f"{where} does not hold an age key ({_SECRET}…)") from None


def recipients(texts: Sequence[str] = ()) -> list[Any]:
    """Return public keys: those given (age1…), else the newest key within reach.

    Raises ConfigError for a text that is not a public key.
    """
    pyrage = _pyrage()
    if not texts:
        return [identities()[0].to_public()]
    keys = []
    for text in texts:
        if text.upper().startswith(_SECRET):
            raise ConfigError(
                "a recipient is a public key (age1…); what was given is a secret key, which is "
                f"never read from the command line: put it into {key_file()}, and make another "
                "where others saw this one"
            )
        try:
            keys.append(pyrage.x25519.Recipient.from_str(text))
        except pyrage.RecipientError:
            raise ConfigError(f"'{text}' is not an age recipient (age1…)") from None
    return keys


def new_identity() -> str:
    """Make a key, put it in front of those in the key file (0600), and return its public part.

    Older keys stay in the file, so that what they encrypted can still be read.
    """
    identity = _pyrage().x25519.Identity.generate()
    public = str(identity.to_public())
    file = key_file()
    older = ""
    if file.exists():
        _from_file()  # refuses a file that is readable by others, or not of keys
        older = file.read_text(encoding="utf-8")
    with private_file(file) as out:
        out.write(f"# public key: {public}\n{identity}\n{older}".encode())
    return public


@contextlib.contextmanager
def private_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file of mode 0600 that takes its name only where the block succeeds.

    Raises StorageError.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_path(path.parent)
    except OSError as error:
        raise storage_error(error, path, 0) from error


def encrypt_file(source: Path, target: Path, keys: Sequence[Any]) -> None:
    """Write `source` to `target` for the recipients `keys`. Raises StorageError, CheckpointError."""
    pyrage = _pyrage()
    with _opened(source) as content, private_file(target) as out:
        try:
            pyrage.encrypt_io(content, out, list(keys))
        except pyrage.EncryptError as error:
            raise CheckpointError(f"{source} could not be encrypted: {error}") from None


def decrypt_file(source: Path, target: Path, keys: Sequence[Any]) -> None:
    """Write what `source` holds to `target`; nothing is left of a file that is not whole.

    Raises CheckpointError for a file that is damaged, cut or for other keys.
    """
    with private_file(target) as out:
        decrypt_into(source, out, keys)


def decrypt_into(source: Path, out: IO[bytes], keys: Sequence[Any]) -> None:
    """Decrypt into an open file, which holds part of the plaintext where this raises.

    Raises CheckpointError for a file that is damaged, cut or for other keys.
    """
    pyrage = _pyrage()
    with _opened(source) as content:
        try:
            pyrage.decrypt_io(content, out, list(keys))
        except pyrage.DecryptError as error:
            reason = "it was encrypted for other keys" if "No matching" in str(error) else error
            raise CheckpointError(f"{source} cannot be decrypted: {reason}") from None
        except OSError as error:
            if error.errno is not None:  # the disk's, not the format's
                raise
            raise CheckpointError(
                f"{source} is damaged or cut ({error}); restore it from a copy"
            ) from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        content = path.open("rb")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    with content:
        yield content


def transcrypt(source: Path, target: Path, old: Sequence[Any], new: Sequence[Any]) -> None:
    """Encrypt a file for other recipients; its plaintext stays in memory that has no name.

    Raises CheckpointError as `decrypt_file`.
    """
    pyrage = _pyrage()
    with nameless() as plain:
        decrypt_into(source, plain, old)
        plain.seek(0)
        with private_file(target) as out:
            pyrage.encrypt_io(plain, out, list(new))


def nameless() -> IO[bytes]:
    """Return an open file without a name: in memory where the system can, else a deleted one."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("agent-forge"), "w+b")
    import tempfile

    return tempfile.TemporaryFile()


def _pyrage() -> Any:
    """Return the library. Raises ConfigError that names the extra."""
    try:
        return importlib.import_module("pyrage")
    except ImportError:
        raise ConfigError(
            "encryption needs the pyrage package; pip install 'agent-forge[crypto]'"
        ) from None
