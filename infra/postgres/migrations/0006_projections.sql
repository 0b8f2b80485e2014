-- The upkeep of read models: events that a projection could not handle, events that it skips, and rebuilds.

CREATE SCHEMA projection;
COMMENT ON SCHEMA projection IS 'How the read models are kept current and rebuilt.';
CREATE SCHEMA shadow;
COMMENT ON SCHEMA shadow IS 'Read models that are being rebuilt, until they replace the live ones.';
CREATE SCHEMA scratch;
COMMENT ON SCHEMA scratch IS 'Read models that were replayed to be compared with the live ones.';

CREATE TABLE projection.parked (
  name      text        PRIMARY KEY,
  position  bigint      NOT NULL,
  stream    text        NOT NULL,
  version   bigint      NOT NULL,
  topic     text        NOT NULL,
  error     text        NOT NULL,
  traceback text        NOT NULL,
  attempts  bigint      NOT NULL DEFAULT 1,
  parked_at timestamptz NOT NULL DEFAULT now(),
  retry     bool        NOT NULL DEFAULT false
);
COMMENT ON TABLE  projection.parked IS 'The event that a projection cannot handle, and halts before.';
COMMENT ON COLUMN projection.parked.retry IS 'Another attempt was requested, and not made yet.';

CREATE TABLE projection.skipped (
  name       text        NOT NULL,
  position   bigint      NOT NULL,
  topic      text        NOT NULL,
  error      text        NOT NULL,
  actor      text        NOT NULL,
  reason     text        NOT NULL CHECK (reason <> ''),
  skipped_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (name, position)
);
COMMENT ON TABLE projection.skipped IS 'Events that a projection skips for good: who decided so, and why. Append-only.';

CREATE TABLE projection.rebuilds (
  place       text        NOT NULL CHECK (place IN ('shadow', 'scratch')),
  name        text        NOT NULL,
  upto        bigint      NOT NULL,
  fingerprint text        NOT NULL,
  begun_at    timestamptz NOT NULL DEFAULT now(),
  indexed     bool        NOT NULL DEFAULT false,
  PRIMARY KEY (place, name)
);
COMMENT ON TABLE  projection.rebuilds IS 'Rebuilds in progress: by account up to a position, and event by event after it.';
COMMENT ON COLUMN projection.rebuilds.fingerprint IS 'Of the code that rebuilds it: other code has to start again.';

CREATE TABLE projection.rebuild_parts (
  place         text   NOT NULL,
  name          text   NOT NULL,
  number        bigint NOT NULL,
  first_account text,
  last_account  text,
  events        bigint NOT NULL,
  done          bool   NOT NULL DEFAULT false,
  PRIMARY KEY (place, name, number),
  FOREIGN KEY (place, name) REFERENCES projection.rebuilds ON DELETE CASCADE
);
COMMENT ON TABLE projection.rebuild_parts IS 'Accounts that are rebuilt together; without accounts: what belongs to none.';

GRANT USAGE ON SCHEMA projection TO trunkline_projector, trunkline_auditor;
GRANT USAGE ON SCHEMA shadow, scratch TO trunkline_projector;
GRANT SELECT, INSERT, UPDATE, DELETE ON projection.parked, projection.rebuilds, projection.rebuild_parts
  TO trunkline_projector;
GRANT SELECT, INSERT ON projection.skipped TO trunkline_projector;
GRANT SELECT ON ALL TABLES IN SCHEMA projection TO trunkline_auditor;
