-- +goose Up

-- The slots (IOMMU groups) that a lease takes, each whole. The index is what
-- makes two VMs on one group impossible to write down.
CREATE TABLE claims (
  vm          INTEGER NOT NULL REFERENCES vms (id),
  cloud       TEXT    NOT NULL,
  host        TEXT    NOT NULL,
  slot        INTEGER NOT NULL,
  cards       TEXT    NOT NULL,
  released_at INTEGER NOT NULL,
  PRIMARY KEY (vm, slot)
);
CREATE UNIQUE INDEX claims_held ON claims (cloud, host, slot) WHERE released_at = 0;

-- +goose Down
DROP TABLE claims;
