CREATE OR REPLACE VIEW reporting.payments AS
  SELECT order_id, capture_id, account_id, method, currency, amount_minor, refunded_minor, captured_at,
         set_aside AS set_aside_reason, explanation
    FROM read.payments;
COMMENT ON VIEW reporting.payments IS 'Payments received; with a reason if set aside for a person to resolve.';
GRANT SELECT ON reporting.payments TO trunkline_reader, trunkline_auditor;
