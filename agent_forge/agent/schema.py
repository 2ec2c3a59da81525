"""The tables of a store, and the steps that bring files of earlier versions up to date.

Reads and writes one SQLite file; `PRAGMA user_version` holds the version of its tables.
"""

import sqlite3

from agent_forge.core.errors import StorageError

VERSION = 2

_TABLES = """
CREATE TABLE IF NOT EXISTS episodes(
    id INTEGER PRIMARY KEY, session TEXT NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL,
    time REAL NOT NULL);
CREATE TABLE IF NOT EXISTS facts(
    id INTEGER PRIMARY KEY, about TEXT NOT NULL, content TEXT NOT NULL, time REAL NOT NULL,
    superseded_by INTEGER, forgotten INTEGER NOT NULL DEFAULT 0, vector BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS facts_about ON facts(about);
CREATE TABLE IF NOT EXISTS passages(
    id INTEGER PRIMARY KEY, document TEXT NOT NULL, content TEXT NOT NULL, vector BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS passages_document ON passages(document);
CREATE VIRTUAL TABLE IF NOT EXISTS episodes_text USING fts5(content);
CREATE VIRTUAL TABLE IF NOT EXISTS facts_text USING fts5(content);
CREATE VIRTUAL TABLE IF NOT EXISTS passages_text USING fts5(content);
"""

# Where a fact came from (session and message), where a passage stands in its document (-1: that is
# not known), the files of an index with their passages `first` to `first + passages - 1`, and a
# count of changes per table of vectors.
_SECOND = """
CREATE INDEX IF NOT EXISTS episodes_session ON episodes(session);
CREATE TABLE sources(
    fact INTEGER NOT NULL, session TEXT NOT NULL, episode INTEGER, time REAL NOT NULL);
CREATE INDEX sources_fact ON sources(fact);
ALTER TABLE passages ADD COLUMN start INTEGER NOT NULL DEFAULT -1;
CREATE TABLE files(
    path TEXT PRIMARY KEY, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, settings TEXT NOT NULL,
    first INTEGER NOT NULL, passages INTEGER NOT NULL, time REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE revisions(name TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO revisions VALUES ('facts', 0), ('passages', 0);
"""
_COUNTED = [
    f"CREATE TRIGGER {table}_{event} AFTER {event} ON {table} BEGIN "
    f"UPDATE revisions SET number = number + 1 WHERE name = '{table}'; END;"
    for table in ("facts", "passages")
    for event in ("INSERT", "UPDATE", "DELETE")
]
_STEPS = {1: _TABLES, 2: "\n".join([_SECOND, *_COUNTED])}


def upgrade(connection: sqlite3.Connection, path: str, *, write: bool = True) -> None:
    """Bring the tables of a file to VERSION.

    Raises StorageError for a file that a newer version wrote, that is not one of ours, or that is
    older and may not be written.
    """
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    if version > VERSION:
        raise StorageError(
            f"{path} has tables of version {version}, this forge reads up to {VERSION}; upgrade"
        )
    if version == VERSION:
        return
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if names and "episodes" not in names:
        raise StorageError(f"{path} is another program's database; name another file")
    if not write:
        raise StorageError(f"{path} is not an index that this forge wrote; run `forge index` first")
    connection.execute("BEGIN IMMEDIATE")
    try:
        ((version,),) = connection.execute("PRAGMA user_version").fetchall()
        for step in range(version + 1, VERSION + 1):
            for statement in _statements(_STEPS[step]):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    """Split a script at the ends of its statements; `executescript` would commit before each."""
    statements, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return statements
