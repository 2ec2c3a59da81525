"""The database of the service: one writer, batches, migrations, backups, and full disks."""

import sqlite3
import threading
from concurrent.futures import wait
from pathlib import Path

import pytest

from agent_forge.core.errors import ConfigError, LockedError, StorageError
from agent_forge.server import database as database_module
from agent_forge.server.database import Database, Readers
from agent_forge.server.schema import MIGRATIONS
from agent_forge.server.store import set_setting, setting


def count(database: Readers) -> int:
    with database.read() as connection:
        return int(connection.execute("SELECT count(*) FROM setting").fetchone()[0])


def test_all_changes_run_on_one_thread_and_share_commits(database: Database) -> None:
    threads: set[str] = set()
    gate = threading.Event()
    database.write(lambda _: gate.wait(10))
    commits: list[str] = []

    def work(connection: sqlite3.Connection, name: str) -> None:
        threads.add(threading.current_thread().name)
        if not commits:
            connection.set_trace_callback(
                lambda text: commits.append(text) if text.startswith("COMMIT") else None
            )
        set_setting(connection, name, 1)

    changes = [
        database.write(lambda c, name=f"n{i}": work(c, name)) for i in range(100)
    ]  # fmt: skip
    gate.set()
    wait(changes)
    assert count(database) == 100
    assert threads == {"database"}
    assert len(commits) < 20


def test_a_change_that_fails_leaves_nothing_and_its_neighbours_stand(database: Database) -> None:
    def fails(connection: sqlite3.Connection) -> None:
        set_setting(connection, "half", 1)
        raise ValueError("no")

    good = database.write(lambda c: set_setting(c, "before", 1))
    bad = database.write(fails)
    database.write(lambda c: set_setting(c, "after", 1)).result()
    good.result()
    with pytest.raises(ValueError, match="no"):
        bad.result()
    assert count(database) == 2


def test_readers_see_one_state_and_cannot_write(database: Database) -> None:
    with database.read() as connection:
        assert setting(connection, "x", None) is None
        database.write(lambda c: set_setting(c, "x", 1)).result()
        assert setting(connection, "x", None) is None
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM setting")
    assert count(database) == 1


def test_a_second_server_is_kept_out(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "LOCK_WAIT_SECONDS", 0.05)
    with pytest.raises(LockedError, match="belongs to a server that runs"):
        Database(database.path)
    Readers(database.path).close_readers()


def test_a_backup_is_a_whole_database(database: Database, tmp_path: Path) -> None:
    database.write(lambda c: set_setting(c, "x", [1, 2])).result()
    database.backup(tmp_path / "copy.sqlite")
    copy = Readers(tmp_path / "copy.sqlite")
    with copy.read() as connection:
        assert setting(connection, "x", None) == [1, 2]
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    copy.close_readers()
    assert (tmp_path / "copy.sqlite").stat().st_mode & 0o077 == 0


def test_an_older_file_is_brought_up_to_date_after_a_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "forge.sqlite"
    first = Database(path)
    first.write(lambda c: set_setting(c, "x", 1)).result()
    first.close()
    steps = (*MIGRATIONS, "ALTER TABLE setting ADD COLUMN note TEXT")
    monkeypatch.setattr(database_module, "MIGRATIONS", steps)
    second = Database(path)
    with second.read() as connection:
        assert connection.execute("SELECT value, note FROM setting").fetchone()[:] == ("1", None)
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(steps)
    second.close()
    assert (tmp_path / f"forge.sqlite.version-{len(MIGRATIONS)}").exists()
    monkeypatch.setattr(database_module, "MIGRATIONS", MIGRATIONS)
    with pytest.raises(ConfigError, match="upgrade forge"):
        Database(path)


def test_the_tables_are_those_that_are_used(database: Database) -> None:
    with database.read() as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    assert {row["name"] for row in rows} == {
        "job", "attempt", "event", "checkpoint", "idempotency", "setting", "sqlite_sequence",
    }  # fmt: skip


def test_a_step_that_fails_leaves_the_older_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "forge.sqlite"
    Database(path).close()
    broken = (*MIGRATIONS, "CREATE TABLE extra (x); SELECT x FROM nowhere")
    monkeypatch.setattr(database_module, "MIGRATIONS", broken)
    with pytest.raises(StorageError, match="nowhere"):
        Database(path)
    monkeypatch.setattr(database_module, "MIGRATIONS", MIGRATIONS)
    again = Database(path)
    with again.read() as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'extra'")
        assert tables.fetchone() is None
    again.close()


def test_a_full_disk_refuses_changes_and_reads_go_on(small_disk: Path) -> None:
    database = Database(small_disk / "forge.sqlite")
    database.write(lambda c: set_setting(c, "x", 1)).result()
    with pytest.raises(StorageError, match="free"):
        database.check_space()  # the disk is smaller than the reserve
    (small_disk / "filler").write_bytes(b"\0" * 1_500_000)
    changes = [
        database.write(lambda c, n=number: set_setting(c, f"n{n}", f"{n}" * 20_000))
        for number in range(100)
    ]
    errors = [change.exception() for change in changes]
    assert any(isinstance(error, StorageError) for error in errors)
    assert all("full" in str(error) for error in errors if error is not None)
    with database.read() as connection:
        assert setting(connection, "x", None) == 1
    (small_disk / "filler").unlink()
    database.write(lambda c: set_setting(c, "y", 1)).result()
    database.close()


def test_a_closed_database_refuses_changes(tmp_path: Path) -> None:
    database = Database(tmp_path / "forge.sqlite")
    last = database.write(lambda c: set_setting(c, "x", 1))
    database.close()
    assert last.done()
    with pytest.raises(StorageError, match="is closed"):
        database.write(lambda _: None)
