CREATE OR REPLACE VIEW reporting.orders AS
  SELECT order_id, account_id, package_id, state, method, pi_number, currency, net_minor, tax_minor, total_minor,
         refunded_minor, receiver_id, capture_id, attention, invoice_id, invoice_number, requested_at, expires_at,
         placed_at, paid_at, fulfilled_at
    FROM read.orders;
COMMENT ON VIEW reporting.orders IS 'Each order, with its current state.';
GRANT SELECT ON reporting.orders TO trunkline_reader, trunkline_auditor;
