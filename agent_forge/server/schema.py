"""The tables of the service's database, as the steps by which a file gets there.

A step is never changed once it was released; another one is added. The number of steps is the
schema's version, which the file keeps as `user_version`.
"""

_FIRST = """
CREATE TABLE job (
    id TEXT PRIMARY KEY,
    command TEXT NOT NULL,            -- a phase, or run-all
    overrides TEXT NOT NULL,          -- JSON list, as the client gave them
    hidden_overrides TEXT NOT NULL,   -- JSON list of those that the server added, with its paths
    sources TEXT NOT NULL,            -- JSON list of checkpoint ids
    origin TEXT NOT NULL,             -- service, or terminal for a run that was found
    state TEXT NOT NULL,
    position REAL NOT NULL,           -- order in the queue
    progress REAL NOT NULL DEFAULT 0, -- percent
    message TEXT NOT NULL DEFAULT '',
    attempt INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,            -- seconds since the epoch, as all times here
    started REAL,
    ended REAL,
    out TEXT NOT NULL,
    record TEXT NOT NULL,
    results TEXT NOT NULL DEFAULT '{}',
    error_code INTEGER                -- exit code of forge; NULL while it is not known
);
CREATE INDEX job_by_state ON job (state, position);
CREATE INDEX job_by_time ON job (created);

CREATE TABLE attempt (
    id TEXT PRIMARY KEY,              -- FORGE_ATTEMPT of its processes
    job_id TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    launcher TEXT NOT NULL,
    handle TEXT,                      -- JSON; NULL until the launcher has answered
    gpus TEXT NOT NULL DEFAULT '[]',
    created REAL NOT NULL,
    ended REAL,
    exit_code INTEGER,
    stop_sent REAL,                   -- when it was asked to stop
    kill_sent REAL,
    positions TEXT NOT NULL DEFAULT '{}'  -- JSON: file of events -> how far it was read
);
CREATE INDEX attempt_by_job ON attempt (job_id, number);

CREATE TABLE event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again, so a client may count on it
    job_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    source TEXT NOT NULL,             -- record and attempt that wrote it; '' for the server's own
    source_seq INTEGER NOT NULL,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    phase TEXT NOT NULL,
    stage TEXT NOT NULL,
    step INTEGER NOT NULL,
    total INTEGER NOT NULL,
    percent REAL NOT NULL,            -- of the phase
    progress REAL NOT NULL,           -- percent of the job
    message TEXT NOT NULL,
    metrics TEXT NOT NULL
);
CREATE INDEX event_by_job ON event (job_id, seq);
CREATE UNIQUE INDEX event_once ON event (job_id, source, source_seq) WHERE source != '';

CREATE TABLE checkpoint (
    path TEXT PRIMARY KEY,
    id TEXT NOT NULL,
    mtime_ns INTEGER NOT NULL,
    size INTEGER NOT NULL,
    status TEXT NOT NULL,             -- ok, damaged or missing
    summary TEXT NOT NULL             -- JSON
);
CREATE INDEX checkpoint_by_id ON checkpoint (id);

CREATE TABLE key (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE,
    prefix TEXT NOT NULL,
    scopes TEXT NOT NULL,
    created REAL NOT NULL,
    expires REAL,
    revoked REAL
);

CREATE TABLE ticket (
    hash TEXT PRIMARY KEY,
    key_id TEXT NOT NULL REFERENCES key (id) ON DELETE CASCADE,
    expires REAL NOT NULL,
    used REAL
);

CREATE TABLE idempotency (
    key TEXT PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    digest TEXT NOT NULL,             -- of the request, so that a key names one request
    created REAL NOT NULL
);

CREATE TABLE setting (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL               -- JSON
);
"""

# Summaries say whether a checkpoint is encrypted: all manifests are read again.
_ENCRYPTED = "UPDATE checkpoint SET mtime_ns = 0"

# Keys are a file and tickets live in the memory of the part that made them (security/keys.py,
# security/tickets.py): `forge keys` and the parts of a split service would each be another writer.
_WITHOUT_KEYS = "DROP TABLE ticket; DROP TABLE key"

MIGRATIONS: tuple[str, ...] = (_FIRST, _ENCRYPTED, _WITHOUT_KEYS)
