CREATE OR REPLACE VIEW log.history AS
  SELECT position, stream, version, topic, recorded_at, account_id, event_id, correlation_id, causation_id, actor,
         convert_from(state, 'UTF8')::jsonb AS state
    FROM log.events;
COMMENT ON VIEW log.history IS 'The log with its JSON decoded, for people.';
GRANT SELECT ON log.history TO trunkline_projector, trunkline_auditor;
