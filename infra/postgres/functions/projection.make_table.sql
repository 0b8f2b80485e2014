-- Creates an empty table with the columns, comments and grants of a read model, without its indexes and policies. These
-- come once it is full (projection.index_table): COPY is slow with indexes and refused with policies.
CREATE OR REPLACE FUNCTION projection.make_table(place text, model text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  live  regclass := format('read.%I', model)::regclass;
  found record;
BEGIN
  IF place NOT IN ('shadow', 'scratch') THEN
    RAISE EXCEPTION '% is not a schema for rebuilt tables', place;
  END IF;
  EXECUTE format('DROP TABLE IF EXISTS %I.%I', place, model);
  EXECUTE format('CREATE TABLE %I.%I (LIKE %s INCLUDING ALL EXCLUDING INDEXES)', place, model, live);
  EXECUTE format('COMMENT ON TABLE %I.%I IS %L', place, model, obj_description(live, 'pg_class'));
  FOR found IN
    SELECT a.privilege_type, CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS who
      FROM pg_class AS c, aclexplode(c.relacl) AS a WHERE c.oid = live AND a.grantee <> c.relowner
  LOOP
    EXECUTE format('GRANT %s ON %I.%I TO %s', found.privilege_type, place, model, found.who);
  END LOOP;
END $$;

REVOKE ALL ON FUNCTION projection.make_table FROM PUBLIC;
GRANT EXECUTE ON FUNCTION projection.make_table TO trunkline_projector;
