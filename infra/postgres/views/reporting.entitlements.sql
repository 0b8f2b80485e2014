CREATE OR REPLACE VIEW reporting.entitlements AS
  SELECT account_id, package_id, service, flat AS is_flat, total, allocated,
         greatest(0, total - allocated) AS available, over_allocated, valid_until
    FROM read.entitlements
  UNION ALL
  SELECT e.account_id, e.package_id, 'enterprise_plan', false, e.total - coalesce(u.total, 0),
         e.allocated - coalesce(u.allocated, 0),
         greatest(0, (e.total - coalesce(u.total, 0)) - (e.allocated - coalesce(u.allocated, 0))),
         greatest(0, (e.allocated - coalesce(u.allocated, 0)) - (e.total - coalesce(u.total, 0))), e.valid_until
    FROM read.entitlements AS e
    LEFT JOIN read.entitlements AS u ON u.package_id = e.package_id AND u.service = 'ultimate_plan'
   WHERE e.service = 'extensions';
COMMENT ON VIEW reporting.entitlements IS 'What packages have of each service, how much PBXs hold, and until when.';
GRANT SELECT ON reporting.entitlements TO trunkline_reader, trunkline_auditor;
