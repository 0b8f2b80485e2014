CREATE OR REPLACE VIEW reporting.projections AS
  SELECT p.name, p.position, h.position - p.position AS lag, k.position AS halted_before, k.error, k.parked_at,
         (SELECT count(*) FROM projection.skipped AS s WHERE s.name = p.name) AS skipped
    FROM read.positions AS p CROSS JOIN log.head AS h LEFT JOIN projection.parked AS k ON k.name = p.name
   WHERE p.name NOT LIKE '%.%';
COMMENT ON VIEW reporting.projections IS 'Positions of read models and relay, and the events that they halt before.';
GRANT SELECT ON reporting.projections TO trunkline_reader, trunkline_auditor;
