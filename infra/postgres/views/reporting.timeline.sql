CREATE OR REPLACE VIEW reporting.timeline AS
  SELECT position, account_id, recorded_at, topic, stream, version, event_id, actor, correlation_id, causation_id
    FROM read.timeline;
COMMENT ON VIEW reporting.timeline IS 'What happened in each account, who caused it, and what it followed from.';
GRANT SELECT ON reporting.timeline TO trunkline_reader, trunkline_auditor;
