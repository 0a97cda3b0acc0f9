-- +goose Up

-- Most writes to a job are before it ended.
DROP INDEX jobs_ended;
CREATE INDEX jobs_ended ON jobs (ended_at) WHERE ended_at <> 0;

-- +goose Down
DROP INDEX jobs_ended;
CREATE INDEX jobs_ended ON jobs (ended_at);
