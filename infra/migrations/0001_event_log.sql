-- The event log, in the table that the eventsourcing library's recorder writes, and the bytes of issued documents.

DO $$ BEGIN
  CREATE ROLE trunkline_app NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
  NULL;  -- roles belong to the whole server: another of its databases has made this one already
END $$;
DO $$ BEGIN
  EXECUTE format('GRANT trunkline_app TO %I', current_user);
EXCEPTION WHEN unique_violation THEN
  NULL;  -- another database is granting the same at this moment
END $$;

CREATE SCHEMA log;
COMMENT ON SCHEMA log IS 'What happened. Only ever added to.';

CREATE TABLE log.events (
  originator_id      text      NOT NULL,
  originator_version bigint    NOT NULL CHECK (originator_version > 0),
  topic              text      NOT NULL,
  state              bytea     NOT NULL,
  notification_id    bigserial NOT NULL UNIQUE,
  PRIMARY KEY (originator_id, originator_version)
);
COMMENT ON TABLE  log.events IS 'Every event, with the column names of the eventsourcing library.';
COMMENT ON COLUMN log.events.originator_id IS 'The stream: kind of aggregate, hyphen, its id.';
COMMENT ON COLUMN log.events.originator_version IS 'The place in the stream, from 1, without a gap.';
COMMENT ON COLUMN log.events.state IS 'UTF-8 JSON: the event, and who caused it, when and why.';
COMMENT ON COLUMN log.events.notification_id IS 'The position in the one order of all events.';

CREATE TYPE log.stored_event_text AS (originator_id text, originator_version bigint, topic text, state bytea);

CREATE VIEW log.history AS
  SELECT notification_id AS position, originator_id AS stream, originator_version AS version, topic,
         convert_from(state, 'UTF8')::jsonb AS state
    FROM log.events;
COMMENT ON VIEW log.history IS 'The log with its JSON decoded, for people.';

CREATE TABLE log.documents (
  sha256     text        PRIMARY KEY,
  media_type text        NOT NULL,
  content    bytea       NOT NULL,
  kept_at    timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE log.documents IS 'The bytes of invoices and credit notes; their SHA-256 stands in the event of their issue.';

CREATE FUNCTION log.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '%.% is only ever added to: % is refused', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP
    USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON log.events
  FOR EACH STATEMENT EXECUTE FUNCTION log.refuse_change();
CREATE TRIGGER only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON log.documents
  FOR EACH STATEMENT EXECUTE FUNCTION log.refuse_change();

-- MAINTAIN permits the lock that puts appends into one order; it changes no row.
GRANT USAGE ON SCHEMA log TO trunkline_app;
GRANT SELECT, INSERT, MAINTAIN ON log.events TO trunkline_app;
GRANT SELECT, INSERT ON log.documents TO trunkline_app;
GRANT SELECT ON log.history TO trunkline_app;
GRANT USAGE ON SEQUENCE log.events_notification_id_seq TO trunkline_app;
