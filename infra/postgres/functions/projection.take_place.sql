-- Swaps rebuilt tables in for the live ones, and redefines the views over them. Everything happens in the transaction of
-- the caller, which also moves the position.
CREATE OR REPLACE FUNCTION projection.take_place(models text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  model text;
  views text[];
  one   text;
BEGIN
  FOREACH model IN ARRAY models LOOP
    EXECUTE format('LOCK TABLE read.%I IN ACCESS EXCLUSIVE MODE', model);
  END LOOP;
  -- A view refers to its tables by oid, so it is defined again, by their names.
  SELECT coalesce(array_agg(format('CREATE OR REPLACE VIEW %I.%I %s AS %s', v.nspname, v.relname,
                                   'WITH (' || v.options || ')', pg_get_viewdef(v.oid))), '{}')
    INTO views
    FROM (SELECT DISTINCT c.oid, n.nspname, c.relname, array_to_string(c.reloptions, ', ') AS options
            FROM pg_depend AS d
            JOIN pg_rewrite AS r ON r.oid = d.objid AND d.classid = 'pg_rewrite'::regclass
            JOIN pg_class AS c ON c.oid = r.ev_class AND c.relkind = 'v'
            JOIN pg_namespace AS n ON n.oid = c.relnamespace
           WHERE d.refclassid = 'pg_class'::regclass
             AND d.refobjid IN (SELECT format('read.%I', m)::regclass FROM unnest(models) AS m)) AS v;
  FOREACH model IN ARRAY models LOOP
    EXECUTE format('ALTER TABLE read.%I RENAME TO %I', model, model || ' before');
    EXECUTE format('ALTER TABLE read.%I SET SCHEMA scratch', model || ' before');
    EXECUTE format('ALTER TABLE shadow.%I SET SCHEMA read', model);
  END LOOP;
  FOREACH one IN ARRAY views LOOP
    EXECUTE one;
  END LOOP;
  FOREACH model IN ARRAY models LOOP
    EXECUTE format('DROP TABLE scratch.%I', model || ' before');
  END LOOP;
END $$;

REVOKE ALL ON FUNCTION projection.take_place FROM PUBLIC;
GRANT EXECUTE ON FUNCTION projection.take_place TO trunkline_projector;
