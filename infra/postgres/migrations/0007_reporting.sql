-- The schema of the reporting views (views/reporting.*.sql): they stay the same while the tables behind them change.

CREATE SCHEMA reporting;
COMMENT ON SCHEMA reporting IS 'Stable views for reports: GRANT trunkline_reader TO the login that reads them.';
GRANT USAGE ON SCHEMA reporting TO trunkline_reader, trunkline_auditor;
