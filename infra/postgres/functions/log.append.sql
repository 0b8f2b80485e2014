-- Appends a group of commands to the log in one commit: of each command all events, or none.
--
-- Commands are numbered from 1. of_command holds the command of each event, in ascending order; expected versions,
-- messages, trackings and documents name their command themselves. An argument without elements may be null.
-- No two commands of a group may write to the same stream or have the same message id: the caller splits such a group.
--
-- A stream that starts with version 1 has no expected version: looking for rows that are not there took an eighth of the
-- server's time. If it exists after all, the constraint events_stream_version_key is violated, nothing is appended, and
-- the caller splits the group.
--
-- outcomes is null if everything was appended, else one for each command: 'appended'; 'stale', a stream is not at its
-- expected version; 'known', the message was handled before, and firsts and lasts are the positions of its events;
-- 'reused', its id was used before with another body; 'tracked', the process application has read further than that.
-- The events that were appended follow the position "before", in their order.
--
-- plan_cache_mode: PostgreSQL would plan these statements again for each small group, expecting to do better for arrays of
-- known length. The plan is the same each time, and planning took a sixth of an append. OFFSET 0 keeps the inbox on its
-- index: a plan that was made while it was empty read all of it, for a minute, until autovacuum had seen it grow.
CREATE OR REPLACE FUNCTION log.append(
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
    -- After the versions, so that a known message is never reported as stale.
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

  IF outcomes <> all_appended THEN  -- drop what is not appended
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
