-- How read models are kept: what a projection could not deal with, what was skipped, and how they are made anew.

CREATE SCHEMA projection;
COMMENT ON SCHEMA projection IS 'How the read models are kept current, and made anew.';
CREATE SCHEMA shadow;
COMMENT ON SCHEMA shadow IS 'Read models that are being made anew, until they take the place of those that are live.';
CREATE SCHEMA scratch;
COMMENT ON SCHEMA scratch IS 'Read models that were made anew to be compared with those that are live.';

CREATE TABLE projection.parked (
  name      text        PRIMARY KEY,
  position  bigint      NOT NULL,
  stream    text        NOT NULL,
  version   bigint      NOT NULL,
  topic     text        NOT NULL,
  error     text        NOT NULL,
  traceback text        NOT NULL,
  attempts  bigint      NOT NULL DEFAULT 1,
  parked_at timestamptz NOT NULL DEFAULT now(),
  retry     bool        NOT NULL DEFAULT false
);
COMMENT ON TABLE  projection.parked IS 'The event that a projection cannot deal with, and halts before.';
COMMENT ON COLUMN projection.parked.retry IS 'Somebody asked for another attempt, and there was none yet.';

CREATE TABLE projection.skipped (
  name       text        NOT NULL,
  position   bigint      NOT NULL,
  topic      text        NOT NULL,
  error      text        NOT NULL,
  actor      text        NOT NULL,
  reason     text        NOT NULL CHECK (reason <> ''),
  skipped_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (name, position)
);
COMMENT ON TABLE projection.skipped IS 'Events that a projection leaves out for good: who decided so, and why. Only ever added to.';

CREATE TABLE projection.rebuilds (
  place       text        NOT NULL CHECK (place IN ('shadow', 'scratch')),
  name        text        NOT NULL,
  upto        bigint      NOT NULL,
  fingerprint text        NOT NULL,
  begun_at    timestamptz NOT NULL DEFAULT now(),
  indexed     bool        NOT NULL DEFAULT false,
  PRIMARY KEY (place, name)
);
COMMENT ON TABLE  projection.rebuilds IS 'What is being made anew: by account up to a position, and event by event from there.';
COMMENT ON COLUMN projection.rebuilds.fingerprint IS 'Of the code that makes it: another code has to begin anew.';

CREATE TABLE projection.rebuild_parts (
  place         text   NOT NULL,
  name          text   NOT NULL,
  number        bigint NOT NULL,
  first_account text,
  last_account  text,
  events        bigint NOT NULL,
  done          bool   NOT NULL DEFAULT false,
  PRIMARY KEY (place, name, number),
  FOREIGN KEY (place, name) REFERENCES projection.rebuilds ON DELETE CASCADE
);
COMMENT ON TABLE projection.rebuild_parts IS 'Accounts that are made anew together; without accounts: what belongs to none.';

-- An empty table of a read model's shape, without its indexes: these come when it is full (projection.index_table).
-- Whoever may read or write the live one may do so here, under the same policies.
CREATE FUNCTION projection.make_table(place text, model text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  live  regclass := format('read.%I', model)::regclass;
  found record;
BEGIN
  IF place NOT IN ('shadow', 'scratch') THEN
    RAISE EXCEPTION '% is no place for a table that is made anew', place;
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
END $$;

-- The keys and indexes of the live table, under the same names.
CREATE FUNCTION projection.index_table(place text, model text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  live  regclass := format('read.%I', model)::regclass;
  found record;
BEGIN
  IF place NOT IN ('shadow', 'scratch') THEN
    RAISE EXCEPTION '% is no place for a table that is made anew', place;
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
  EXECUTE format('ANALYZE %I.%I', place, model);
END $$;

-- Tables that were made anew take the place of the live ones, and the views that stand on these stand on them from then
-- on. All at once: in the transaction of whoever calls it, who also moves the position.
CREATE FUNCTION projection.take_place(models text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  model text;
  views text[];
  one   text;
BEGIN
  FOREACH model IN ARRAY models LOOP
    EXECUTE format('LOCK TABLE read.%I IN ACCESS EXCLUSIVE MODE', model);
  END LOOP;
  -- A view knows its tables by identity, so it is defined once more, by their names.
  SELECT coalesce(array_agg(format('CREATE OR REPLACE VIEW %I.%I WITH (security_barrier = %s) AS %s', v.nspname, v.relname,
                                   v.barrier, pg_get_viewdef(v.oid))), '{}')
    INTO views
    FROM (SELECT DISTINCT c.oid, n.nspname, c.relname,
                 coalesce('security_barrier=true' = ANY (c.reloptions), false) AS barrier
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

CREATE FUNCTION projection.drop_table(place text, model text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF place NOT IN ('shadow', 'scratch') THEN
    RAISE EXCEPTION '% is no place for a table that is made anew', place;
  END IF;
  EXECUTE format('DROP TABLE IF EXISTS %I.%I', place, model);
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA projection FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA projection TO trunkline_projector;
GRANT USAGE ON SCHEMA projection TO trunkline_projector, trunkline_auditor;
GRANT USAGE ON SCHEMA shadow, scratch TO trunkline_projector;
GRANT SELECT, INSERT, UPDATE, DELETE ON projection.parked, projection.rebuilds, projection.rebuild_parts
  TO trunkline_projector;
GRANT SELECT, INSERT ON projection.skipped TO trunkline_projector;
GRANT SELECT ON ALL TABLES IN SCHEMA projection TO trunkline_auditor;
