-- PostgreSQL would plan the statements of log.append anew for each small group, since it thinks that it can do better for
-- arrays whose length it knows. The plan is the same each time, and to make it took a sixth of an append. (One that was
-- made while the inbox was empty reads all of it, until autovacuum has seen it grow: a minute later.)
ALTER FUNCTION log.append SET plan_cache_mode = force_generic_plan;
