CREATE OR REPLACE VIEW reporting.invoice_links AS
  SELECT link_id, invoice_id, order_id, account_id, ordinal,
         CASE WHEN state = 'issued' AND expires_at <= now() THEN 'expired' ELSE state END AS state,
         issued_at, expires_at, emailed_at, consumed_at
    FROM read.invoice_links;
COMMENT ON VIEW reporting.invoice_links IS 'Each invoice link, with its current state.';
GRANT SELECT ON reporting.invoice_links TO trunkline_reader, trunkline_auditor;
