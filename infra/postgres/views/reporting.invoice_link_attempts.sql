CREATE OR REPLACE VIEW reporting.invoice_link_attempts AS
  SELECT link_id, position, account_id, outcome, at AS attempted_at FROM read.invoice_link_attempts;
COMMENT ON VIEW reporting.invoice_link_attempts IS 'Each attempt to use an invoice link.';
GRANT SELECT ON reporting.invoice_link_attempts TO trunkline_reader, trunkline_auditor;
