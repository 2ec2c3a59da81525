"""API keys: 256 random bits each, shown once, kept as SHA-256 in a file of mode 0600.

The keys are a small JSON file beside the database and not a table of it, so that `forge keys` can
create and revoke them while the server runs and the database keeps its only writer. A server looks
at the file's time on every request and reads it again when it has changed.
"""

import hashlib
import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hmac import compare_digest
from pathlib import Path

from filelock import FileLock

from agent_forge.checkpoint import atomic
from agent_forge.core.errors import ConfigError, StorageError, did_you_mean

FILE = "keys.json"
FIRST_KEY = "first-key"
SECRET_BYTES = 32
TOKEN = re.compile(r"forge_([0-9a-f]{8})_[\w-]{43}", re.ASCII)
# What a key may be allowed to do; "admin" stands for all of them.
SCOPES = {
    "read": "look at jobs, events, checkpoints and settings",
    "run": "start, pause, cancel and reorder jobs and pipelines",
    "models": "create and download models",
    "chat": "talk to models",
    "mcp": "use the tools of the MCP endpoint",
    "admin": "everything",
}
NO_DIGEST = "0" * 64  # compared with where no key has the id, so that both ways cost the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What is kept of a key. expires, revoked: seconds since the epoch; 0 means never."""

    id: str
    name: str
    sha256: str
    scopes: tuple[str, ...]
    created: float
    expires: float = 0.0
    revoked: float = 0.0

    def valid(self) -> bool:
        """Return whether the key is neither revoked nor expired."""
        return not self.revoked and (not self.expires or time.time() < self.expires)

    def allows(self, scope: str) -> bool:
        """Return whether the key has a scope."""
        return "admin" in self.scopes or scope in self.scopes


class KeyRing:
    """The keys of one server's state directory."""

    def __init__(self, state: Path) -> None:
        self.path = state / FILE
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}

    def create(
        self, name: str, scopes: Sequence[str], expires_days: float = 0.0
    ) -> tuple[Key, str]:
        """Make a key and return it with its token, which is kept nowhere.

        expires_days: 0 means never. Raises ConfigError for an unknown scope or an empty name.
        """
        if not name.strip() or len(name) > 100:
            raise ConfigError("a key needs a name of at most 100 characters, such as 'laptop'")
        if not scopes:
            raise ConfigError(f"a key needs a scope; known: {', '.join(SCOPES)}")
        for scope in scopes:
            if scope not in SCOPES:
                hint = did_you_mean(scope, SCOPES)
                raise ConfigError(f"no scope '{scope}'{hint}; known: {', '.join(SCOPES)}")
        with self._lock():
            known = self._read()
            identity = secrets.token_hex(4)
            while identity in known:
                identity = secrets.token_hex(4)
            token = f"forge_{identity}_{secrets.token_urlsafe(SECRET_BYTES)}"
            now = time.time()
            key = Key(
                id=identity, name=name, sha256=_digest(token), scopes=tuple(dict.fromkeys(scopes)),
                created=now, expires=now + expires_days * 86400 if expires_days else 0.0,
            )  # fmt: skip
            self._write({**known, identity: key})
        return key, token

    def list(self) -> list[Key]:
        """Return all keys, oldest first, the revoked ones too."""
        self._refresh()
        return sorted(self._keys.values(), key=lambda key: key.created)

    def revoke(self, identity: str) -> Key:
        """Revoke a key at once, and return it. Raises ConfigError for an unknown id."""
        with self._lock():
            known = self._read()
            if identity not in known:
                hint = did_you_mean(identity, known)
                raise ConfigError(f"no key '{identity}'{hint}; `forge keys list` shows their ids")
            values = asdict(known[identity])
            values["revoked"] = values["revoked"] or time.time()
            known[identity] = Key(**values)
            self._write(known)
        return known[identity]

    def verify(self, token: str) -> Key | None:
        """Return the valid key of a token, or None."""
        self._refresh()
        match = TOKEN.fullmatch(token)
        key = self._keys.get(match[1]) if match else None
        same = compare_digest(_digest(token), key.sha256 if key else NO_DIGEST)
        return key if key is not None and same and key.valid() else None

    def current(self, identity: str) -> Key | None:
        """Return the key of an id while it is valid: long answers look again whether it still is.

        A key may be revoked while a stream is open.
        """
        self._refresh()
        key = self._keys.get(identity)
        return key if key is not None and key.valid() else None

    def _refresh(self) -> None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._seen, self._keys = None, {}
            return
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        if seen != self._seen:
            self._keys, self._seen = self._read(), seen

    def _read(self) -> dict[str, Key]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            keys = [Key(**{**one, "scopes": tuple(one["scopes"])}) for one in content["keys"]]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StorageError(
                f"{self.path} cannot be read, or is damaged ({error}); restore it, or remove it and "
                "create new keys"
            ) from None
        return {key.id: key for key in keys}

    def _write(self, keys: dict[str, Key]) -> None:
        content = {"version": 1, "keys": [asdict(key) for key in keys.values()]}
        atomic.write_bytes(self.path, (json.dumps(content, indent=2) + "\n").encode(), 0o600)

    def _lock(self) -> FileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return FileLock(self.path.with_name(f".{FILE}.lock"))


def first_key(ring: KeyRing, *, terminal: bool) -> str:
    """Make the first key of a server without any; return a line about it, or "".

    terminal: whether a person reads that line, which then holds the key; otherwise the key is
    written to a file that only its owner may read.
    """
    if ring.list():
        return ""
    _, token = ring.create("first", ("admin",))
    if terminal:
        return f"the first key, shown this once: {token}"
    place = ring.path.with_name(FIRST_KEY)
    atomic.write_bytes(place, f"{token}\n".encode(), 0o600)
    return f"the first key is in {place} (mode 0600); move it where you keep secrets"


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
