-- Which version a stream is expected to be at comes apart from the events, and for a stream that begins not at all: the
-- index finds out by itself. To look for what is not there took an eighth of the server's time for a new stream.

-- And the inbox is asked by its index from the beginning: OFFSET 0 leaves the planner no other way. A plan that was made
-- while it was empty read all of it, until autovacuum had seen it grow: for a minute, with every append.

DROP FUNCTION log.append;
DROP TYPE IF EXISTS log.expected_version;  -- where this file was applied under an earlier name
CREATE TYPE log.expected_version AS (stream text, version bigint, command int);
DROP TYPE log.new_event;
CREATE TYPE log.new_event AS (  -- what has a fixed length comes first: the caller packs that in one
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

-- A text as the chain sees it: its length in bytes, then the bytes; -1 where there is none. textsend gives UTF-8 where
-- that is the client's encoding, as it is within log.append; convert_to would look for the encoding by its name each time.
CREATE OR REPLACE FUNCTION log.canonical(value text) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(int4send(octet_length(value)) || textsend(value), int4send(-1));

-- Adds a group of commands to the log, in one commit: each command's events are all there, or none of them.
--
-- Its commands are numbered from 1. of_command says for each event which one it is of; they come in the order of the
-- commands. The expected versions, messages, trackings and documents say so themselves; where there are none, there is
-- no array. A stream that is to begin with version 1 is not expected to be at 0: should it have that version, or any
-- after it, the constraint events_stream_version_key is broken, nothing is appended, and the caller parts the group.
-- No two commands of a group may write to one stream, or bear one message id: the caller parts them.
--
-- outcomes: null where all were appended, else one a command: 'appended'; 'stale', a stream is not at the version that
-- the command expects; 'known', the message was dealt with before, and firsts and lasts are the positions of then;
-- 'reused', it was, with another body; 'tracked', the library's process application has come further than that. The
-- events of the commands that were appended stand behind the position "before", in their order.
CREATE FUNCTION log.append(
  commands int, of_command int[], events log.new_event[], expected log.expected_version[],
  messages log.new_message[], trackings log.new_tracking[], documents log.new_document[],
  OUT before bigint, OUT outcomes text[], OUT firsts bigint[], OUT lasts bigint[]
) LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp SET client_encoding = 'UTF8' SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_variable
DECLARE
  all_appended text[] := array_fill('appended'::text, ARRAY[commands]);
  link         bytea;
  hashes       bytea[];
  n            int := 0;
  event        log.new_event;
  found        record;
BEGIN
  SELECT h.position, h.hash INTO STRICT before, link FROM log.head AS h FOR UPDATE;
  outcomes := all_appended;

  IF cardinality(expected) > 0 THEN
    FOR found IN
      SELECT asked.command
        FROM unnest(expected) AS asked
       WHERE asked.version IS DISTINCT FROM
             coalesce((SELECT max(e.version) FROM log.events AS e WHERE e.stream = asked.stream), least(asked.version, 0))
    LOOP
      outcomes[found.command] := 'stale';
    END LOOP;
  END IF;

  IF cardinality(trackings) > 0 THEN
    FOR found IN
      SELECT asked.command
        FROM unnest(trackings) AS asked
        JOIN log.tracking AS t
          ON t.application_name = asked.application_name AND t.notification_id >= asked.notification_id
    LOOP
      outcomes[found.command] := 'tracked';
    END LOOP;
  END IF;

  IF cardinality(messages) > 0 THEN
    -- After the versions, so that a message that is known is never called stale.
    firsts := array_fill(0::bigint, ARRAY[commands]);
    lasts := array_fill(-1::bigint, ARRAY[commands]);
    FOR found IN
      SELECT asked.command, i.body_sha256 = asked.body_sha256 AS same, i.first_position, i.last_position
        FROM unnest(messages) AS asked
        JOIN LATERAL (SELECT * FROM log.inbox WHERE message_id = asked.message_id OFFSET 0) AS i ON true
    LOOP
      outcomes[found.command] := CASE WHEN found.same THEN 'known' ELSE 'reused' END;
      firsts[found.command] := found.first_position;
      lasts[found.command] := found.last_position;
    END LOOP;
  END IF;

  IF outcomes <> all_appended THEN  -- from here on, what is not appended is not there
    SELECT coalesce(array_agg(e.command ORDER BY e.place), '{}'),
           coalesce(array_agg(events[e.place] ORDER BY e.place), '{}')
      INTO of_command, events
      FROM unnest(of_command) WITH ORDINALITY AS e (command, place)
     WHERE outcomes[e.command] = 'appended';
  END IF;

  IF cardinality(events) > 0 THEN
    FOREACH event IN ARRAY events LOOP
      n := n + 1;
      link := sha256(link || int8send(before + n)
                          || log.canonical(event.stream) || int8send(event.version) || log.canonical(event.topic)
                          || int4send(octet_length(event.state)) || event.state
                          || timestamptz_send(event.recorded_at) || log.canonical(event.account_id)
                          || uuid_send(event.event_id) || log.canonical(event.correlation_id)
                          || log.canonical(event.causation_id) || log.canonical(event.actor));
      hashes[n] := link;
    END LOOP;
    INSERT INTO log.events
      SELECT before + new.place, new.stream, new.version, new.topic, new.state, new.recorded_at, new.account_id,
             new.event_id, new.correlation_id, new.causation_id, new.actor, hashes[new.place]
        FROM unnest(events) WITH ORDINALITY AS new (version, recorded_at, event_id, stream, topic, state, account_id,
                                                    correlation_id, causation_id, actor, place);
    UPDATE log.head AS h SET position = before + n, hash = link;
    PERFORM pg_notify('events', '');
  END IF;

  IF cardinality(messages) > 0 THEN
    INSERT INTO log.inbox (message_id, body_sha256, first_position, last_position)
      SELECT m.message_id, m.body_sha256, coalesce(e.first, 0), coalesce(e.last, -1)
        FROM unnest(messages) AS m
        LEFT JOIN (SELECT e.command, before + min(e.place) AS first, before + max(e.place) AS last
                     FROM unnest(of_command) WITH ORDINALITY AS e (command, place) GROUP BY e.command) AS e
          USING (command)
       WHERE outcomes[m.command] = 'appended';
  END IF;
  IF cardinality(trackings) > 0 THEN
    INSERT INTO log.tracking AS t (application_name, notification_id)
      SELECT a.application_name, a.notification_id FROM unnest(trackings) AS a WHERE outcomes[a.command] = 'appended'
      ON CONFLICT ON CONSTRAINT tracking_pkey DO UPDATE SET notification_id = excluded.notification_id;
  END IF;
  IF cardinality(documents) > 0 THEN
    INSERT INTO log.documents (sha256, media_type, content)
      SELECT d.sha256, d.media_type, d.content FROM unnest(documents) AS d WHERE outcomes[d.command] = 'appended'
      ON CONFLICT ON CONSTRAINT documents_pkey DO NOTHING;
  END IF;

  outcomes := nullif(outcomes, all_appended);
END $$;
REVOKE ALL ON FUNCTION log.append FROM PUBLIC;
GRANT EXECUTE ON FUNCTION log.append TO trunkline_writer;
