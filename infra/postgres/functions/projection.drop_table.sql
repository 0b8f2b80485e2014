-- Drops a table that was rebuilt or replayed.
CREATE OR REPLACE FUNCTION projection.drop_table(place text, model text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF place NOT IN ('shadow', 'scratch') THEN
    RAISE EXCEPTION '% is not a schema for rebuilt tables', place;
  END IF;
  EXECUTE format('DROP TABLE IF EXISTS %I.%I', place, model);
END $$;

REVOKE ALL ON FUNCTION projection.drop_table FROM PUBLIC;
GRANT EXECUTE ON FUNCTION projection.drop_table TO trunkline_projector;
