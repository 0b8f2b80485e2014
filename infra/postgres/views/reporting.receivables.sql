CREATE OR REPLACE VIEW reporting.receivables AS
  SELECT order_id, account_id, currency, amount_minor, pi_number, owed_since, expires_at,
         extract(day FROM now() - owed_since)::int AS days_owed
    FROM read.receivables WHERE owed;
COMMENT ON VIEW reporting.receivables IS 'Amounts currently owed for offline orders.';
GRANT SELECT ON reporting.receivables TO trunkline_reader, trunkline_auditor;
