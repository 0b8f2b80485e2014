-- The event log: its tables, and the types in which log.append takes what it adds.

CREATE SCHEMA log;
COMMENT ON SCHEMA log IS 'What happened. Append-only.';

CREATE TABLE log.events (
  position       bigint      PRIMARY KEY,
  stream         text        NOT NULL,
  version        bigint      NOT NULL CHECK (version >= 0),
  topic          text        NOT NULL,
  state          bytea       NOT NULL,
  recorded_at    timestamptz NOT NULL,
  account_id     text,
  event_id       uuid        NOT NULL,
  correlation_id text        NOT NULL,
  causation_id   text,
  actor          text        NOT NULL,
  hash           bytea       NOT NULL CHECK (octet_length(hash) = 32),
  UNIQUE (stream, version)
);
CREATE INDEX events_of_an_account ON log.events (account_id, position);
CREATE INDEX events_by_time ON log.events USING brin (recorded_at);
COMMENT ON TABLE  log.events IS 'Every event, in one total order.';
COMMENT ON COLUMN log.events.position IS 'The position in the log: from 1, in commit order, without gaps.';
COMMENT ON COLUMN log.events.stream IS 'Kind of aggregate, hyphen, its id.';
COMMENT ON COLUMN log.events.version IS 'The position in the stream: from 1, without gaps.';
COMMENT ON COLUMN log.events.topic IS 'The pinned name of the event: aggregate, event, version of its schema.';
COMMENT ON COLUMN log.events.state IS 'The event as UTF-8 JSON; personal fields are ciphertext.';
COMMENT ON COLUMN log.events.hash IS 'sha256(hash of the position before, every other column of this row).';

-- One row. Each append locks it, so positions are assigned in commit order.
CREATE TABLE log.head (
  one      bool   PRIMARY KEY DEFAULT true CHECK (one),
  position bigint NOT NULL,
  hash     bytea  NOT NULL
) WITH (fillfactor = 20);
INSERT INTO log.head (position, hash) VALUES (0, decode(repeat('00', 32), 'hex'));
COMMENT ON TABLE log.head IS 'The end of the log: the last position, and its hash.';

CREATE TABLE log.inbox (
  message_id     text        PRIMARY KEY,
  body_sha256    bytea       NOT NULL,
  first_position bigint      NOT NULL,
  last_position  bigint      NOT NULL,
  received_at    timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE log.inbox IS 'Messages that were handled, and the events that they caused (none: last < first).';

-- Documents are PDFs, which are compressed already: EXTERNAL keeps PostgreSQL from trying again.
CREATE TABLE log.documents (
  sha256     text        PRIMARY KEY,
  media_type text        NOT NULL,
  content    bytea       STORAGE EXTERNAL NOT NULL,
  kept_at    timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE log.documents IS 'The bytes of invoices and credit notes; the event of their issue holds their SHA-256.';

CREATE TABLE log.tracking (
  application_name text   PRIMARY KEY,
  notification_id  bigint NOT NULL
);
COMMENT ON TABLE log.tracking IS 'How far a process application of the eventsourcing library has read another one.';

-- The arguments of log.append. The fixed-length fields of an event come first: its caller packs them in one step.
CREATE TYPE log.new_event AS (
  version        bigint,
  recorded_at    timestamptz,
  event_id       uuid,
  stream         text,
  topic          text,
  state          bytea,
  account_id     text,
  correlation_id text,
  causation_id   text,
  actor          text
);
CREATE TYPE log.expected_version AS (stream text, version bigint, command int);
CREATE TYPE log.new_message AS (message_id text, body_sha256 bytea, command int);
CREATE TYPE log.new_tracking AS (application_name text, notification_id bigint, command int);
CREATE TYPE log.new_document AS (sha256 text, media_type text, content bytea, command int);

-- No role may insert: log.append does, as its owner, and leaves no row without its link in the chain.
GRANT USAGE ON SCHEMA log TO trunkline_writer, trunkline_projector, trunkline_auditor;
GRANT SELECT ON log.events, log.head TO trunkline_writer, trunkline_projector, trunkline_auditor;
GRANT SELECT ON log.inbox, log.documents, log.tracking TO trunkline_writer;
