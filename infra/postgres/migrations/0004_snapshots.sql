-- Snapshots of long streams, so that loading one does not replay it from the beginning. They can be deleted at any time.

CREATE TABLE log.snapshots (
  stream     text        PRIMARY KEY,
  version    bigint      NOT NULL,
  account_id text,
  shape      text        NOT NULL,
  state      bytea       NOT NULL,
  taken_at   timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE log.snapshots IS 'The state of a stream at a version, as JSON; ignored if its shape is not the program''s.';
COMMENT ON COLUMN log.snapshots.shape IS 'SHA-256 of the schema of the state, and of the code that folds it.';
GRANT SELECT, INSERT, UPDATE ON log.snapshots TO trunkline_writer;
