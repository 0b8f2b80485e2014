CREATE OR REPLACE VIEW reporting.order_lines AS
  SELECT o.order_id, o.account_id, line.number::int AS line, line.item ->> 'service' AS service,
         line.item ->> 'title' AS title, (line.item ->> 'quantity')::bigint AS quantity,
         (line.item ->> 'unit_price_minor')::bigint AS unit_price_minor,
         (line.item ->> 'amount_minor')::bigint AS amount_minor, o.currency,
         (line.item ->> 'tax_rate_bp')::bigint AS tax_rate_bp
    FROM read.orders AS o, jsonb_array_elements(o.lines) WITH ORDINALITY AS line (item, number);
COMMENT ON VIEW reporting.order_lines IS 'The lines of each order, with the figures of their price.';
GRANT SELECT ON reporting.order_lines TO trunkline_reader, trunkline_auditor;
