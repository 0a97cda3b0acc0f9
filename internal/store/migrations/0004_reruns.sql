-- +goose Up

-- Jobs that a GPU failed and that are to be run again on their forge. asked is the
-- run's attempt that was the latest when the forge was asked last; 0: it was not,
-- or said no.
CREATE TABLE reruns (
  job     INTEGER PRIMARY KEY,
  state   TEXT    NOT NULL,
  asked   INTEGER NOT NULL,
  tries   INTEGER NOT NULL,
  since   INTEGER NOT NULL,
  next_at INTEGER NOT NULL
);
CREATE INDEX reruns_waiting ON reruns (job) WHERE state = 'waiting';

-- +goose Down
DROP TABLE reruns;
