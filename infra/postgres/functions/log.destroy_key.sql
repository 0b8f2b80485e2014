-- Destroys the key of a person. Returns whether there was one. No key is made for this person after that.
CREATE OR REPLACE FUNCTION log.destroy_key(whose text) RETURNS bool
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  existed bool;
BEGIN
  INSERT INTO log.person_keys AS k (person, erased_at) VALUES (whose, now())
    ON CONFLICT ON CONSTRAINT person_keys_pkey DO UPDATE SET wrapped = NULL, erased_at = now()
    WHERE k.wrapped IS NOT NULL
    RETURNING old.wrapped IS NOT NULL INTO existed;
  RETURN coalesce(existed, false);
END $$;

REVOKE ALL ON FUNCTION log.destroy_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION log.destroy_key TO trunkline_writer;
