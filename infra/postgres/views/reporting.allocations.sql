CREATE OR REPLACE VIEW reporting.allocations AS
  SELECT account_id, package_id, pbx_id, pbx_name, plan, service, assigned, drawn FROM read.allocations;
COMMENT ON VIEW reporting.allocations IS 'What each PBX holds of each service.';
GRANT SELECT ON reporting.allocations TO trunkline_reader, trunkline_auditor;
