-- The keys of personal data, one a person. Who erases a person destroys the key, and leaves the log as it is.

CREATE TABLE log.person_keys (
  person    text        PRIMARY KEY,
  wrapped   bytea,
  made_at   timestamptz NOT NULL DEFAULT now(),
  erased_at timestamptz,
  CHECK ((wrapped IS NULL) = (erased_at IS NOT NULL))
);
COMMENT ON TABLE  log.person_keys IS 'The key of each person of whom the log holds personal data.';
COMMENT ON COLUMN log.person_keys.person IS 'Account, slash, billing receiver.';
COMMENT ON COLUMN log.person_keys.wrapped IS
  'Nonce (12 bytes), then the key (32 bytes) under AES-256-GCM with the master key and the person; null once erased.';
COMMENT ON COLUMN log.person_keys.erased_at IS 'Since then no key of this person is made any more.';

-- Destroys a person's key. True where there was one; a person who has none yet is never given one after this.
CREATE FUNCTION log.destroy_key(whose text) RETURNS bool
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  stood bool;
BEGIN
  INSERT INTO log.person_keys AS k (person, erased_at) VALUES (whose, now())
    ON CONFLICT ON CONSTRAINT person_keys_pkey DO UPDATE SET wrapped = NULL, erased_at = now()
    WHERE k.wrapped IS NOT NULL
    RETURNING old.wrapped IS NOT NULL INTO stood;
  RETURN coalesce(stood, false);
END $$;

-- The event and the end of the key are one commit, whoever appends the event: neither is ever there without the other.
CREATE FUNCTION log.destroy_key_of_erased() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  erased jsonb := convert_from(NEW.state, 'UTF8')::jsonb;
BEGIN
  PERFORM log.destroy_key(concat(erased->>'account_id', '/', erased->>'receiver_id'));
  RETURN NULL;
END $$;
CREATE TRIGGER key_goes_with_the_event AFTER INSERT ON log.events FOR EACH ROW
  WHEN (NEW.topic = 'account.BillingReceiverErased.v1') EXECUTE FUNCTION log.destroy_key_of_erased();

REVOKE ALL ON FUNCTION log.destroy_key, log.destroy_key_of_erased FROM PUBLIC;
GRANT EXECUTE ON FUNCTION log.destroy_key TO trunkline_writer;
GRANT SELECT, INSERT ON log.person_keys TO trunkline_writer;
