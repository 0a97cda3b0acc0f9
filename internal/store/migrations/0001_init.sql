-- +goose Up

-- Times are Unix nanoseconds, UTC; 0 is "never". JSON columns hold lists and
-- small values that no query looks into.

CREATE TABLE settings (
  key   TEXT PRIMARY KEY,
  value TEXT NOT NULL
);

CREATE TABLE deliveries (
  id          INTEGER PRIMARY KEY,
  forge       TEXT    NOT NULL,
  guid        TEXT    NOT NULL,
  name        TEXT    NOT NULL,
  outcome     TEXT    NOT NULL,
  job         INTEGER NOT NULL DEFAULT 0,
  received_at INTEGER NOT NULL,
  body        BLOB,
  UNIQUE (forge, guid)
);
CREATE INDEX deliveries_bodies ON deliveries (id) WHERE body IS NOT NULL;

CREATE TABLE jobs (
  id              INTEGER PRIMARY KEY AUTOINCREMENT,
  forge           TEXT    NOT NULL,
  forge_id        INTEGER NOT NULL,
  repo            TEXT    NOT NULL,
  repo_id         INTEGER NOT NULL,
  installation_id INTEGER NOT NULL,
  run_id          INTEGER NOT NULL,
  run_attempt     INTEGER NOT NULL,
  name            TEXT    NOT NULL,
  workflow        TEXT    NOT NULL,
  labels          TEXT    NOT NULL,
  head_sha        TEXT    NOT NULL,
  head_branch     TEXT    NOT NULL,
  url             TEXT    NOT NULL,
  actor           TEXT    NOT NULL,
  forge_state     TEXT    NOT NULL,
  conclusion      TEXT    NOT NULL,
  runner_name     TEXT    NOT NULL,
  state           TEXT    NOT NULL,
  reason          TEXT    NOT NULL,
  resource        TEXT    NOT NULL,
  entries         TEXT    NOT NULL,
  command         TEXT    NOT NULL,
  tries           INTEGER NOT NULL,
  vm              INTEGER NOT NULL,
  created_at      INTEGER NOT NULL,
  queued_at       INTEGER NOT NULL,
  decided_at      INTEGER NOT NULL,
  started_at      INTEGER NOT NULL,
  ended_at        INTEGER NOT NULL,
  next_try_at     INTEGER NOT NULL,
  updated_at      INTEGER NOT NULL,
  UNIQUE (forge, forge_id)
);
CREATE INDEX jobs_unfinished ON jobs (state, queued_at) WHERE state NOT IN ('done', 'failed', 'refused');
CREATE INDEX jobs_run ON jobs (forge, repo, run_id);
CREATE INDEX jobs_ended ON jobs (ended_at);

CREATE TABLE vms (
  id             INTEGER PRIMARY KEY AUTOINCREMENT,
  name           TEXT    NOT NULL UNIQUE,
  cloud          TEXT    NOT NULL,
  host           TEXT    NOT NULL,
  flavor         TEXT    NOT NULL,
  image          TEXT    NOT NULL,
  state          TEXT    NOT NULL,
  reason         TEXT    NOT NULL,
  made_for       INTEGER NOT NULL,
  assigned       INTEGER NOT NULL,
  cloud_id       TEXT    NOT NULL,
  resource       TEXT    NOT NULL,
  entry          TEXT    NOT NULL,
  forge          TEXT    NOT NULL,
  runner_name    TEXT    NOT NULL,
  runner_id      INTEGER NOT NULL,
  runner_attempt INTEGER NOT NULL,
  runner_state   TEXT    NOT NULL,
  runner_scope   TEXT    NOT NULL,
  runner_labels  TEXT    NOT NULL,
  token_hash     TEXT    NOT NULL,
  guest          TEXT    NOT NULL,
  tries          INTEGER NOT NULL,
  created_at     INTEGER NOT NULL,
  state_at       INTEGER NOT NULL,
  boot_deadline  INTEGER NOT NULL,
  job_deadline   INTEGER NOT NULL,
  heartbeat_at   INTEGER NOT NULL,
  next_try_at    INTEGER NOT NULL,
  interrupted_at INTEGER NOT NULL
);
CREATE INDEX vms_alive ON vms (state) WHERE state <> 'gone';
CREATE INDEX vms_runner ON vms (runner_name) WHERE runner_name <> '';
CREATE INDEX vms_token ON vms (token_hash) WHERE token_hash <> '';
CREATE INDEX vms_made_for ON vms (made_for);

CREATE TABLE leases (
  vm          INTEGER PRIMARY KEY REFERENCES vms (id),
  cloud       TEXT    NOT NULL,
  host        TEXT    NOT NULL,
  vcpus       INTEGER NOT NULL,
  memory_mib  INTEGER NOT NULL,
  disk_gib    INTEGER NOT NULL,
  taken_at    INTEGER NOT NULL,
  released_at INTEGER NOT NULL
);
CREATE INDEX leases_held ON leases (cloud, host) WHERE released_at = 0;

CREATE TABLE events (
  id   INTEGER PRIMARY KEY,
  at   INTEGER NOT NULL,
  job  INTEGER NOT NULL,
  vm   INTEGER NOT NULL,
  kind TEXT    NOT NULL,
  text TEXT    NOT NULL
);
CREATE INDEX events_job ON events (job, id) WHERE job <> 0;
CREATE INDEX events_vm ON events (vm, id) WHERE vm <> 0;
CREATE INDEX events_at ON events (at);

-- What the forge's page shows of a job: one check run, rewritten sparingly.
CREATE TABLE checks (
  job        INTEGER PRIMARY KEY,
  check_id   INTEGER NOT NULL,
  class      TEXT    NOT NULL,
  text       TEXT    NOT NULL,
  concluded  INTEGER NOT NULL,
  written_at INTEGER NOT NULL
);

-- Runners that ended without a job, in a row, by image; held at a bound.
CREATE TABLE images (
  name     TEXT PRIMARY KEY,
  failures INTEGER NOT NULL,
  held_at  INTEGER NOT NULL,
  reason   TEXT NOT NULL
);

-- Last good copies of what was read from elsewhere, by a key of the reader's.
CREATE TABLE copies (
  key        TEXT PRIMARY KEY,
  etag       TEXT NOT NULL,
  body       BLOB NOT NULL,
  fetched_at INTEGER NOT NULL
);

-- Repositories that sent a job of ours, for the reconciler.
CREATE TABLE repos (
  forge           TEXT    NOT NULL,
  name            TEXT    NOT NULL,
  repo_id         INTEGER NOT NULL,
  installation_id INTEGER NOT NULL,
  seen_at         INTEGER NOT NULL,
  PRIMARY KEY (forge, name)
);

-- +goose Down
DROP TABLE repos;
DROP TABLE copies;
DROP TABLE images;
DROP TABLE checks;
DROP TABLE events;
DROP TABLE leases;
DROP TABLE vms;
DROP TABLE jobs;
DROP TABLE deliveries;
DROP TABLE settings;
