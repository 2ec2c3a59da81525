"""An audit log that shows when it was changed: one JSON line per action, chained by HMAC-SHA256.

Reads and writes `audit.jsonl`, its rotated segments `audit.<last number>.jsonl`, the key
`audit.key` (0600) and the newest head `audit.head` in one folder. Every record holds the MAC of
the record before it, so an edit, a deletion, an insertion or a swap breaks the chain. What the
chain alone cannot show, a cut end, shows against a head: the number and MAC of the newest record.
Heads can be copied where the audited user cannot write (`FileHeads`, `CommandHeads`, or
`forge audit head` from another account); one who holds the key can write a new chain, but not one
that has an old head in it. Source of the chain: Schneier, Kelsey 1998 (simplified: one key).
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from agent_forge.checkpoint.atomic import fsync_path, storage_error
from agent_forge.core.errors import ConfigError, StorageError

KEY_VARIABLE = "FORGE_AUDIT_KEY"
KEY_BYTES = 32
ROTATE_BYTES = 64 * 2**20
DETAIL_BYTES = 16 * 2**10  # the JSON of one `detail`; an audit log is not a place for bodies
COMMAND_SECONDS = 30.0
GENESIS = "0" * 64  # what the first record has in the place of a MAC before it
HEAD_READS = 3  # a reader without the lock may meet a head that is just being written
_TAIL_BYTES = 1 << 16


class AuditError(StorageError):
    """The audit log was changed from outside, or its key is missing."""


@dataclass(frozen=True, slots=True)
class Head:
    """The newest record of a log: its number (0 where there is none) and its MAC."""

    seq: int
    mac: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.mac}"

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Read `NUMBER:MAC` or the JSON of a head. Raises ConfigError."""
        try:
            if text.lstrip().startswith("{"):
                content = json.loads(text)
                number, mac = content["seq"], content["mac"]
            else:
                number, _, mac = text.strip().partition(":")
            if len(bytes.fromhex(mac)) != hashlib.sha256().digest_size:
                raise ValueError("a MAC has 64 hexadecimal digits")
            return cls(int(number), mac)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"'{text[:80]}' is not a head of an audit log ({error}); one is NUMBER:MAC, "
                "as `forge audit head` prints it"
            ) from None


EMPTY = Head(0, GENESIS)
HeadSink = Callable[[Head], None]


class FileHeads:
    """Append every head to a file, for instance one on another disk that only grows."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __call__(self, head: Head) -> None:
        """Append one head and flush it to the disk. Raises StorageError."""
        try:
            with self.path.open("ab") as file:
                file.write(f"{head}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(error, self.path, 0) from error


class CommandHeads:
    """Give every head to a command on its standard input, for instance `logger` or `ssh`."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)

    def __call__(self, head: Head) -> None:
        """Run the command once. Raises StorageError where it fails."""
        try:
            subprocess.run(
                self.command, input=f"{head}\n".encode(), check=True, capture_output=True,
                timeout=COMMAND_SECONDS,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise StorageError(
                f"the head of the audit log could not be given to {self.command[0]}: {error}"
            ) from error


class AuditLog:
    """Append records to the log at `path`; any number of threads and processes may do so at once.

    key: 32 bytes or more; by default the environment's FORGE_AUDIT_KEY (hexadecimal), else
    `audit.key` beside the log, which is written (0600) with the log's first record.
    heads: where every new head is copied.
    Raises AuditError where a log has no key, or is shorter than its head says.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        key: bytes | None = None,
        heads: Sequence[HeadSink] = (),
        rotate_bytes: int = ROTATE_BYTES,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.path = Path(path)
        self.heads = list(heads)
        self.rotate_bytes = rotate_bytes
        self.clock = clock
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise storage_error(error, self.path, 0) from error
        self._threads = threading.Lock()
        self._processes = FileLock(self.path.with_suffix(".lock"), mode=0o600)
        self.key = key if key is not None else read_key(self.path, create=True)

    def append(
        self, actor: str, action: str, target: str = "", detail: Mapping[str, Any] | None = None
    ) -> Head:
        """Write one record to the disk and return it as the new head.

        actor: who acts (the id of a key, never a key). detail: JSON values, at most 16 KiB.
        The record is on the disk when this returns. Raises StorageError where it could not be
        written, ConfigError where `detail` is too long.
        """
        with self._locked():
            last = self._recovered()
            head = self._write(last, actor, action, target, dict(detail or {}))
            for copy in self.heads:
                copy(head)
            return head

    def head(self) -> Head:
        """Return the newest record's number and MAC."""
        with self._locked():
            return self._recovered()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the log against other threads, then against other processes."""
        try:
            with self._threads, self._processes.acquire(poll_interval=0.005):
                yield
        except OSError as error:
            raise storage_error(error, self.path, 0) from error

    def _recovered(self) -> Head:
        """Return the newest whole record, after a look at what a killed writer left.

        A record without its line end was never acknowledged: its bytes are replaced by a record
        that says so. A log that lacks what `audit.head` names was cut, and is not written to.
        """
        last, torn = _tail(self.path)
        stored = stored_head(self.path)
        if stored is not None and stored.seq > last.seq:
            raise AuditError(
                f"{self.path} ends at record {last.seq}, its head names record {stored.seq}: it "
                f"was cut; look with `forge audit verify {self.path}`, then begin another log"
            )
        if not torn:
            return last
        with self.path.open("rb+") as file:
            file.truncate(self.path.stat().st_size - len(torn))
            os.fsync(file.fileno())
        detail = {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
        return self._write(last, "audit", "audit.recovered", self.path.name, detail)

    def _write(
        self, last: Head, actor: str, action: str, target: str, detail: dict[str, Any]
    ) -> Head:
        if len(_canonical(detail)) > DETAIL_BYTES:
            raise ConfigError(f"the detail of an audit record is longer than {DETAIL_BYTES} bytes")
        self._rotate(last)
        when = self.clock().astimezone(UTC).isoformat(timespec="microseconds")
        record: dict[str, Any] = {
            "seq": last.seq + 1, "time": when, "actor": actor, "action": action,
            "target": target, "detail": detail, "previous": last.mac,
        }  # fmt: skip
        record["mac"] = _mac(self.key, record)
        is_new = not self.path.exists()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            line = _canonical(record) + b"\n"
            if os.write(descriptor, line) != len(line):
                raise StorageError(f"disk full while writing {self.path}; free some space")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            fsync_path(self.path.parent)
        head = Head(record["seq"], record["mac"])
        _store_head(self.path, head)
        return head

    def _rotate(self, last: Head) -> None:
        """Move a full file aside, named by its last record; the chain goes on in the next."""
        if not self.path.exists() or self.path.stat().st_size < self.rotate_bytes:
            return
        self.path.rename(self.path.with_suffix(f".{last.seq:012}{self.path.suffix}"))
        fsync_path(self.path.parent)


@dataclass(slots=True)
class Verification:
    """What a check of a log showed. problems: one line each, in the order of the log."""

    records: int = 0
    head: Head = EMPTY
    problems: list[str] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        """Return whether nothing is wrong."""
        return not self.problems


def verify(
    path: Path | str, *, key: bytes | None = None, heads: Sequence[Head] = (), start: Head = EMPTY
) -> Verification:
    """Check every record of a log and its segments against the chain and against `heads`.

    The head beside the log is always checked. start: the head of older segments that were moved
    elsewhere. Raises AuditError where there is no log or no key.
    """
    path = Path(path)
    key = read_key(path) if key is None and segments(path) else key
    while True:
        files = segments(path)
        if not files or key is None:
            raise AuditError(f"no audit log at {path}; name its file (audit.jsonl)")
        result = Verification(head=start)
        # The head is read first: a writer may add records meanwhile, never take some away.
        known = [*heads, *_stored_heads(path, result)]
        macs = {start.seq: start.mac}
        for file in files:
            _check_file(file, key, result, macs)
        if segments(path) == files:  # else a writer rotated the log meanwhile
            break
    for head in known:
        if head.seq < start.seq or macs.get(head.seq) == head.mac:
            continue
        what = "another MAC there" if head.seq in macs else f"records up to {result.head.seq}"
        result.problems.append(f"head {head.seq}:{head.mac[:12]}…: the log has {what}")
    return result


def _stored_heads(path: Path, result: Verification) -> list[Head]:
    """Return the head beside the log; where there is none, or a broken one, that is a problem."""
    try:
        stored = stored_head(path)
    except AuditError as error:
        result.problems.append(str(error))
        return []
    if stored is None:
        result.problems.append(f"{path.with_suffix('.head').name} is missing")
    return [] if stored is None else [stored]


def _check_file(file: Path, key: bytes, result: Verification, macs: dict[int, str]) -> None:
    *lines, rest = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        _check(line, f"{file.name}:{number}", key, result)
        macs[result.head.seq] = result.head.mac
    if rest:
        result.problems.append(
            f"{file.name}: ends with {len(rest)} bytes that are not a whole record (a writer that "
            "was killed leaves such an end; the next record replaces it)"
        )


def _check(line: bytes, where: str, key: bytes, result: Verification) -> None:
    """Check one line against the record before it; what is wrong is added to the result."""
    try:
        record = json.loads(line)
        mac, expected = record["mac"], result.head
        number = int(record["seq"])
        is_canonical = _canonical(record) == line
        computed = _mac(key, {name: value for name, value in record.items() if name != "mac"})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        result.problems.append(f"{where}: not a record")
        return
    result.records += 1
    if not (is_canonical and isinstance(mac, str) and _same(mac, computed)):
        result.problems.append(f"{where}: record {number} was changed: its MAC does not fit")
    if number != expected.seq + 1 or record.get("previous") != expected.mac:
        result.problems.append(
            f"{where}: record {number} does not follow record {expected.seq}: "
            "something was deleted, inserted, swapped or changed before it"
        )
    result.head = Head(number, str(mac))


def _same(one: str, two: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), two.encode())


def segments(path: Path) -> list[Path]:
    """Return the files of a log, oldest first, the one that is written last."""
    rotated = path.parent.glob(f"{path.stem}.{'[0-9]' * 12}{path.suffix}")
    return [*sorted(rotated), *([path] if path.exists() else [])]


def newest(path: Path) -> Head | None:
    """Return the newest whole record of a log without a lock or key; None where there is no log.

    Raises AuditError where the log does not end with a record.
    """
    return _tail(path)[0] if segments(path) else None


def read_heads(text: str) -> list[Head]:
    """Return the heads in a file's text, one per line. Raises ConfigError."""
    return [Head.parse(line) for line in text.splitlines() if line.strip()]


def stored_head(path: Path) -> Head | None:
    """Return the head in `audit.head`, None without the file. Raises AuditError for a broken one."""
    for _ in range(HEAD_READS):
        try:
            content = path.with_suffix(".head").read_bytes()
            head = Head.parse(content.decode("ascii"))
        except FileNotFoundError:
            return None
        except (ConfigError, UnicodeDecodeError):
            continue
        # Exactly as it was written: a space more would mean the same, and is an edit all the same.
        if content == _head_line(head):
            return head
    raise AuditError(f"{path.with_suffix('.head').name} is damaged: not a head")


def read_key(path: Path, *, create: bool = False) -> bytes:
    """Return the key of the log at `path`: from FORGE_AUDIT_KEY, else from `audit.key` beside it.

    Raises AuditError without a key, and ConfigError for one that is too short.
    """
    file = path.with_suffix(".key")
    text = os.environ.get(KEY_VARIABLE)
    where = KEY_VARIABLE
    if text is None:
        where = str(file)
        if not file.exists():
            if not create or segments(path):
                raise AuditError(
                    f"the audit log {path} has no key: set {KEY_VARIABLE} or restore {file}"
                )
            _create_key(file)
        if file.stat().st_mode & 0o077:
            raise AuditError(f"others can read {file}; run chmod 600 on it, and think it known")
        text = file.read_text(encoding="ascii", errors="replace")
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) < KEY_BYTES:
        raise ConfigError(f"{where} must hold {KEY_BYTES} bytes or more as hexadecimal digits")
    return key


def _create_key(file: Path) -> None:
    """Write a new key unless another process does so first."""
    with contextlib.suppress(FileExistsError):
        try:
            temporary = file.with_name(f".{file.name}-{secrets.token_hex(4)}")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                out.write(secrets.token_hex(KEY_BYTES).encode() + b"\n")
                out.flush()
                os.fsync(out.fileno())
            try:
                os.link(temporary, file)  # unlike a rename, a link never replaces another's key
            finally:
                temporary.unlink()
            fsync_path(file.parent)
        except FileExistsError:
            raise
        except OSError as error:
            raise storage_error(error, file, 0) from error


def _tail(path: Path) -> tuple[Head, bytes]:
    """Return the newest whole record's head, and the bytes after its line end."""
    torn = b""
    for file in reversed(segments(path)):
        content = _last_lines(file)
        whole, _, rest = content.rpartition(b"\n")
        if file == path:
            torn = rest
        line = whole.rpartition(b"\n")[2]
        if line:
            try:
                record = json.loads(line)
                return Head(int(record["seq"]), str(record["mac"])), torn
            except (ValueError, KeyError, TypeError):
                raise AuditError(
                    f"{file} does not end with a record; look with `forge audit verify {path}`"
                ) from None
    return EMPTY, torn


def _last_lines(file: Path) -> bytes:
    """Return the end of a file, at least its last whole line and what follows it."""
    with file.open("rb") as content:
        size = content.seek(0, os.SEEK_END)
        length = _TAIL_BYTES
        while True:
            content.seek(max(0, size - length))
            text = content.read()
            if length >= size or text.count(b"\n") > 1:
                return text
            length *= 4


def _store_head(path: Path, head: Head) -> None:
    """Write the head over the last one, which is never longer: numbers only grow.

    In place, because a file that is replaced costs each audited request milliseconds. A line is
    shorter than what a disk writes at once, so after a power cut it is the old one or the new one;
    one that is older than the log is right too. Raises StorageError.
    """
    file, line = path.with_suffix(".head"), _head_line(head)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if os.pwrite(descriptor, line, 0) != len(line):
                raise StorageError(f"disk full while writing {file}; free some space")
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error(error, file, len(line)) from error


def _head_line(head: Head) -> bytes:
    return f"{head}\n".encode()


def _canonical(value: Any) -> bytes:
    """Return the one JSON form of a value that is stored: ASCII, without spaces, in its order."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _mac(key: bytes, record: Mapping[str, Any]) -> str:
    return hmac.new(key, _canonical(record), hashlib.sha256).hexdigest()
