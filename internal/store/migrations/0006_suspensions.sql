-- +goose Up

-- Flavors of which a cloud found no host for one VM after another, though the ledger
-- had room. suspended_at 0: it is only counted so far. probe is the VM that was made
-- last to see whether the cloud has room again; 0: none.
CREATE TABLE suspensions (
  cloud        TEXT    NOT NULL,
  flavor       TEXT    NOT NULL,
  failures     INTEGER NOT NULL,
  first_at     INTEGER NOT NULL,
  last_at      INTEGER NOT NULL,
  reason       TEXT    NOT NULL,
  suspended_at INTEGER NOT NULL,
  until        INTEGER NOT NULL,
  probe        INTEGER NOT NULL,
  PRIMARY KEY (cloud, flavor)
);

-- +goose Down
DROP TABLE suspensions;
