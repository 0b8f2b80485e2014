CREATE OR REPLACE VIEW reporting.billing_documents AS
  SELECT document_id, kind, number, corrects, order_id, account_id, currency, net_minor, tax_minor, total_minor,
         issued_at, sha256
    FROM read.billing_documents;
COMMENT ON VIEW reporting.billing_documents IS 'Invoices, and credit notes with negative amounts.';
GRANT SELECT ON reporting.billing_documents TO trunkline_reader, trunkline_auditor;
