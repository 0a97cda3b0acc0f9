-- +goose Up

-- What a cloud calls the cards of a kept VM that it holds back in the VM's place; '':
-- the VM itself holds them.
ALTER TABLE vms ADD COLUMN reserved TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE vms DROP COLUMN reserved;
