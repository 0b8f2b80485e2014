CREATE OR REPLACE VIEW reporting.events AS
  SELECT position, recorded_at, topic, stream, version, account_id, event_id, correlation_id, causation_id, actor,
         CASE WHEN pg_input_is_valid(convert_from(state, 'UTF8'), 'jsonb')
              THEN convert_from(state, 'UTF8')::jsonb END AS state,
         encode(hash, 'hex') AS hash
    FROM log.events;
COMMENT ON VIEW reporting.events IS 'The log itself, decoded. Personal fields are shown as stored.';
GRANT SELECT ON reporting.events TO trunkline_reader, trunkline_auditor;
