-- The roles of the program and of its readers. None can log in: logins are granted them.

-- Roles belong to the whole server, so another of its databases may have created them, or may be doing so right now.
DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['trunkline_writer', 'trunkline_projector', 'trunkline_auditor', 'trunkline_reader'] LOOP
    BEGIN
      EXECUTE format('CREATE ROLE %I NOLOGIN', name);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
      NULL;
    END;
  END LOOP;
END $$;
