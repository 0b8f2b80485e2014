-- Gives a rebuilt table the keys, indexes and policies of the live one, under the same names.
CREATE OR REPLACE FUNCTION projection.index_table(place text, model text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  live  regclass := format('read.%I', model)::regclass;
  found record;
BEGIN
  IF place NOT IN ('shadow', 'scratch') THEN
    RAISE EXCEPTION '% is not a schema for rebuilt tables', place;
  END IF;
  FOR found IN
    SELECT conname, pg_get_constraintdef(oid) AS definition FROM pg_constraint
     WHERE conrelid = live AND contype IN ('p', 'u')
  LOOP
    EXECUTE format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s', place, model, found.conname, found.definition);
  END LOOP;
  FOR found IN
    SELECT pg_get_indexdef(i.indexrelid) AS definition FROM pg_index AS i
     WHERE i.indrelid = live AND NOT EXISTS (SELECT FROM pg_constraint AS c WHERE c.conindid = i.indexrelid)
  LOOP
    EXECUTE regexp_replace(found.definition, ' ON \S+ USING ', format(' ON %I.%I USING ', place, model));
  END LOOP;
  FOR found IN
    SELECT p.polname, p.polpermissive, p.polcmd,
           coalesce((SELECT string_agg(CASE WHEN r = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r)) END, ', ')
                       FROM unnest(p.polroles) AS r), 'PUBLIC') AS who,
           pg_get_expr(p.polqual, p.polrelid) AS reads, pg_get_expr(p.polwithcheck, p.polrelid) AS writes
      FROM pg_policy AS p WHERE p.polrelid = live
  LOOP
    EXECUTE format('CREATE POLICY %I ON %I.%I AS %s FOR %s TO %s', found.polname, place, model,
                   CASE WHEN found.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
                   CASE found.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
                                     WHEN 'd' THEN 'DELETE' ELSE 'ALL' END, found.who)
            || coalesce(' USING (' || found.reads || ')', '') || coalesce(' WITH CHECK (' || found.writes || ')', '');
  END LOOP;
  FOR found IN SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = live LOOP
    IF found.relrowsecurity THEN
      EXECUTE format('ALTER TABLE %I.%I ENABLE ROW LEVEL SECURITY', place, model);
    END IF;
    IF found.relforcerowsecurity THEN
      EXECUTE format('ALTER TABLE %I.%I FORCE ROW LEVEL SECURITY', place, model);
    END IF;
  END LOOP;
  EXECUTE format('ANALYZE %I.%I', place, model);
END $$;

REVOKE ALL ON FUNCTION projection.index_table FROM PUBLIC;
GRANT EXECUTE ON FUNCTION projection.index_table TO trunkline_projector;
