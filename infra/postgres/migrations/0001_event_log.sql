-- The event log: who may do what with it, its table, and the one function that adds to it.

-- Roles belong to the whole server: another of its databases may have made them, or be making them at this moment.
DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['trunkline_writer', 'trunkline_projector', 'trunkline_auditor'] LOOP
    BEGIN
      EXECUTE format('CREATE ROLE %I NOLOGIN', name);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
      NULL;
    END;
  END LOOP;
END $$;

CREATE SCHEMA log;
COMMENT ON SCHEMA log IS 'What happened. Only ever added to.';

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
COMMENT ON TABLE  log.events IS 'Every event, in the one order of all events.';
COMMENT ON COLUMN log.events.position IS 'The place in the log: from 1, in commit order, without a gap.';
COMMENT ON COLUMN log.events.stream IS 'Kind of aggregate, hyphen, its id.';
COMMENT ON COLUMN log.events.version IS 'The place in the stream, from 1, without a gap.';
COMMENT ON COLUMN log.events.topic IS 'The pinned name of what happened: aggregate, event, version of its shape.';
COMMENT ON COLUMN log.events.state IS 'The event as UTF-8 JSON; personal fields are ciphertext.';
COMMENT ON COLUMN log.events.hash IS 'sha256(hash of the position before, every other column of this row).';

-- One row. Whoever adds to the log locks it, so positions are given in the order of the commits.
CREATE TABLE log.head (
  one      bool   PRIMARY KEY DEFAULT true CHECK (one),
  position bigint NOT NULL,
  hash     bytea  NOT NULL
) WITH (fillfactor = 20);
INSERT INTO log.head (position, hash) VALUES (0, decode(repeat('00', 32), 'hex'));
COMMENT ON TABLE log.head IS 'Where the log ends: the last position, and its hash.';

CREATE TABLE log.inbox (
  message_id     text        PRIMARY KEY,
  body_sha256    bytea       NOT NULL,
  first_position bigint      NOT NULL,
  last_position  bigint      NOT NULL,
  received_at    timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE log.inbox IS 'Messages that were dealt with, and the events that they led to (none: last < first).';

CREATE TABLE log.documents (
  sha256     text        PRIMARY KEY,
  media_type text        NOT NULL,
  content    bytea       NOT NULL,
  kept_at    timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE log.documents IS 'The bytes of invoices and credit notes; their SHA-256 stands in the event of their issue.';

CREATE TABLE log.tracking (
  application_name text   PRIMARY KEY,
  notification_id  bigint NOT NULL
);
COMMENT ON TABLE log.tracking IS 'How far a process application of the eventsourcing library has read another one.';

CREATE VIEW log.history AS
  SELECT position, stream, version, topic, recorded_at, account_id, event_id, correlation_id, causation_id, actor,
         convert_from(state, 'UTF8')::jsonb AS state
    FROM log.events;
COMMENT ON VIEW log.history IS 'The log with its JSON decoded, for people.';

-- A text as the chain sees it: its length in bytes, then the bytes; -1 where there is none.
CREATE FUNCTION log.canonical(value text) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(int4send(octet_length(value)) || convert_to(value, 'UTF8'), int4send(-1));

-- Adds a group of commands to the log, in one commit: each command's events are all there, or none of them.
--
-- The arrays come in four sets. One element a command: its record, and its message where it has one. One a stream that
-- a command writes to: the version that it expects there. One an event, command by command. One a document to be kept.
-- No two commands of a group may write to one stream, or bear one message id: the caller parts them.
--
-- outcomes, one a command: 'appended'; 'stale', a stream is not at the version that the command expects; 'known', the
-- message was dealt with before, and firsts and lasts are the positions of then; 'reused', it was, with another body;
-- 'tracked', the library's process application has come further than that. The events of the commands that were
-- appended stand behind the position "before", in their order.
CREATE FUNCTION log.append(
  recorded_at timestamptz[], account_id text[], correlation_id text[], causation_id text[], actor text[],
  message_id text[], body_sha256 bytea[], application_name text[], notification_id bigint[],
  on_command int[], on_stream text[], on_version bigint[],
  of_command int[], stream text[], version bigint[], topic text[], state bytea[], event_id uuid[],
  kept_command int[], kept_sha256 text[], kept_media_type text[], kept_content bytea[],
  OUT before bigint, OUT outcomes text[], OUT firsts bigint[], OUT lasts bigint[]
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
  commands int := cardinality(recorded_at);
  link     bytea;
  hashes   bytea[];
  found    record;
  c        int;
BEGIN
  SELECT h.position, h.hash INTO STRICT before, link FROM log.head AS h FOR UPDATE;
  outcomes := array_fill('appended'::text, ARRAY[commands]);

  FOR found IN
    SELECT expected.command
      FROM unnest(on_command, on_stream, on_version) AS expected (command, stream, version)
     WHERE expected.version IS DISTINCT FROM
           coalesce((SELECT max(e.version) FROM log.events AS e WHERE e.stream = expected.stream),
                    least(expected.version, 0))
  LOOP
    outcomes[found.command] := 'stale';
  END LOOP;

  IF num_nonnulls(VARIADIC application_name) > 0 THEN
    FOR found IN
      SELECT asked.command::int
        FROM unnest(application_name, notification_id) WITH ORDINALITY AS asked (name, id, command)
        JOIN log.tracking AS t ON t.application_name = asked.name AND t.notification_id >= asked.id
    LOOP
      outcomes[found.command] := 'tracked';
    END LOOP;
  END IF;

  IF num_nonnulls(VARIADIC message_id) > 0 THEN
    -- After the versions, so that a message that is known is never called stale.
    firsts := array_fill(0::bigint, ARRAY[commands]);
    lasts := array_fill(-1::bigint, ARRAY[commands]);
    FOR found IN
      SELECT asked.command::int, i.body_sha256 = asked.body AS same, i.first_position, i.last_position
        FROM unnest(message_id, body_sha256) WITH ORDINALITY AS asked (id, body, command)
        JOIN log.inbox AS i ON i.message_id = asked.id
    LOOP
      outcomes[found.command] := CASE WHEN found.same THEN 'known' ELSE 'reused' END;
      firsts[found.command] := found.first_position;
      lasts[found.command] := found.last_position;
    END LOOP;
  END IF;

  IF outcomes <> array_fill('appended'::text, ARRAY[commands]) THEN  -- from here on, what is not appended is not there
    SELECT coalesce(array_agg(e.command ORDER BY e.place), '{}'), coalesce(array_agg(e.stream ORDER BY e.place), '{}'),
           coalesce(array_agg(e.version ORDER BY e.place), '{}'), coalesce(array_agg(e.topic ORDER BY e.place), '{}'),
           coalesce(array_agg(e.state ORDER BY e.place), '{}'), coalesce(array_agg(e.id ORDER BY e.place), '{}')
      INTO of_command, stream, version, topic, state, event_id
      FROM unnest(of_command, stream, version, topic, state, event_id) WITH ORDINALITY
        AS e (command, stream, version, topic, state, id, place)
     WHERE outcomes[e.command] = 'appended';
  END IF;

  IF cardinality(of_command) > 0 THEN
    FOR n IN 1 .. cardinality(of_command) LOOP
      c := of_command[n];
      link := sha256(link || int8send(before + n)
                          || log.canonical(stream[n]) || int8send(version[n]) || log.canonical(topic[n])
                          || int4send(octet_length(state[n])) || state[n]
                          || timestamptz_send(recorded_at[c]) || log.canonical(account_id[c]) || uuid_send(event_id[n])
                          || log.canonical(correlation_id[c]) || log.canonical(causation_id[c])
                          || log.canonical(actor[c]));
      hashes[n] := link;
    END LOOP;
    INSERT INTO log.events
      SELECT before + e.place, e.stream, e.version, e.topic, e.state, recorded_at[e.command], account_id[e.command],
             e.id, correlation_id[e.command], causation_id[e.command], actor[e.command], e.hash
        FROM unnest(of_command, stream, version, topic, state, event_id, hashes) WITH ORDINALITY
          AS e (command, stream, version, topic, state, id, hash, place);
    UPDATE log.head AS h SET position = before + cardinality(of_command), hash = link;
    PERFORM pg_notify('events', '');
  END IF;

  IF num_nonnulls(VARIADIC message_id) > 0 THEN
    INSERT INTO log.inbox (message_id, body_sha256, first_position, last_position)
      SELECT m.id, m.body, coalesce(e.first, 0), coalesce(e.last, -1)
        FROM unnest(message_id, body_sha256, outcomes) WITH ORDINALITY AS m (id, body, outcome, command)
        LEFT JOIN (SELECT e.command, before + min(e.place) AS first, before + max(e.place) AS last
                     FROM unnest(of_command) WITH ORDINALITY AS e (command, place) GROUP BY e.command) AS e
          USING (command)
       WHERE m.id IS NOT NULL AND m.outcome = 'appended';
  END IF;
  IF num_nonnulls(VARIADIC application_name) > 0 THEN
    INSERT INTO log.tracking AS t (application_name, notification_id)
      SELECT a.name, a.id
        FROM unnest(application_name, notification_id, outcomes) AS a (name, id, outcome)
       WHERE a.name IS NOT NULL AND a.outcome = 'appended'
      ON CONFLICT ON CONSTRAINT tracking_pkey DO UPDATE SET notification_id = excluded.notification_id;
  END IF;
  IF cardinality(kept_command) > 0 THEN
    INSERT INTO log.documents (sha256, media_type, content)
      SELECT k.sha256, k.media_type, k.content
        FROM unnest(kept_command, kept_sha256, kept_media_type, kept_content) AS k (command, sha256, media_type, content)
       WHERE outcomes[k.command] = 'appended'
      ON CONFLICT ON CONSTRAINT documents_pkey DO NOTHING;
  END IF;
END $$;

CREATE FUNCTION log.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '%.% is only ever added to: % is refused', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP
    USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON log.events
  FOR EACH STATEMENT EXECUTE FUNCTION log.refuse_change();
CREATE TRIGGER only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON log.documents
  FOR EACH STATEMENT EXECUTE FUNCTION log.refuse_change();

-- Nobody inserts into the log: the function does, as its owner, and leaves no row without its link in the chain.
REVOKE ALL ON FUNCTION log.append FROM PUBLIC;
GRANT USAGE ON SCHEMA log TO trunkline_writer, trunkline_projector, trunkline_auditor;
GRANT EXECUTE ON FUNCTION log.append TO trunkline_writer;
GRANT SELECT ON log.events, log.head TO trunkline_writer, trunkline_projector, trunkline_auditor;
GRANT SELECT ON log.history TO trunkline_projector, trunkline_auditor;
GRANT SELECT ON log.inbox, log.documents, log.tracking TO trunkline_writer;
