CREATE OR REPLACE VIEW reporting.skipped_events AS
  SELECT name, position, topic, error, actor, reason, skipped_at FROM projection.skipped;
COMMENT ON VIEW reporting.skipped_events IS 'Events that a read model leaves out, who decided it, and why.';
GRANT SELECT ON reporting.skipped_events TO trunkline_reader, trunkline_auditor;
