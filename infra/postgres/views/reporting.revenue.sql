CREATE OR REPLACE VIEW reporting.revenue AS
  SELECT date_trunc('month', d.issued_at AT TIME ZONE 'UTC')::date AS month, d.account_id, line.key AS service,
         d.currency, sum(line.value::bigint)::bigint AS net_minor
    FROM read.billing_documents AS d, jsonb_each_text(d.by_service) AS line
   GROUP BY 1, 2, 3, 4;
COMMENT ON VIEW reporting.revenue IS 'Net revenue by month, account, service and currency, less credit notes.';
GRANT SELECT ON reporting.revenue TO trunkline_reader, trunkline_auditor;
