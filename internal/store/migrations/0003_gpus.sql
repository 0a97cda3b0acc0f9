-- +goose Up

-- Cards that we ever met. Two rows are never at one place; a card whose place is
-- not known (its cloud does not tell, or another card is there now) has none.
CREATE TABLE gpus (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  cloud      TEXT    NOT NULL,
  host       TEXT    NOT NULL,
  address    TEXT    NOT NULL,
  model      TEXT    NOT NULL,
  vendor_id  TEXT    NOT NULL,
  device_id  TEXT    NOT NULL,
  uuid       TEXT    NOT NULL,
  serial     TEXT    NOT NULL,
  state      TEXT    NOT NULL,
  reason     TEXT    NOT NULL,
  strikes    REAL    NOT NULL,
  struck_at  INTEGER NOT NULL,
  rest_until INTEGER NOT NULL,
  link_width INTEGER NOT NULL,
  first_seen INTEGER NOT NULL,
  last_seen  INTEGER NOT NULL,
  state_at   INTEGER NOT NULL
);
CREATE UNIQUE INDEX gpus_place ON gpus (cloud, host, address) WHERE address <> '';
CREATE UNIQUE INDEX gpus_uuid ON gpus (uuid) WHERE uuid <> '';

CREATE TABLE gpu_events (
  id     INTEGER PRIMARY KEY,
  at     INTEGER NOT NULL,
  gpu    INTEGER NOT NULL,
  vm     INTEGER NOT NULL,
  job    INTEGER NOT NULL,
  kind   TEXT    NOT NULL,
  text   TEXT    NOT NULL,
  points REAL    NOT NULL
);
CREATE INDEX gpu_events_gpu ON gpu_events (gpu, id);
CREATE INDEX gpu_events_at ON gpu_events (at);

-- Which cards a VM had: every job's record names its cards.
CREATE TABLE vm_gpus (
  vm  INTEGER NOT NULL,
  gpu INTEGER NOT NULL,
  PRIMARY KEY (vm, gpu)
);
CREATE INDEX vm_gpus_gpu ON vm_gpus (gpu);
CREATE INDEX vms_assigned ON vms (assigned) WHERE assigned <> 0;

-- +goose Down
DROP INDEX vms_assigned;
DROP TABLE vm_gpus;
DROP TABLE gpu_events;
DROP TABLE gpus;
