-- A key that was destroyed stands in the table's file until that is vacuumed: so it is, a minute after, and not only once
-- there are fifty of them.
ALTER TABLE log.person_keys SET (autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0);
