-- The keys of personal data, one for each person. Erasing a person destroys the key, and the log stays as it is.

-- A destroyed key remains in the file of the table until vacuum, so vacuum runs a minute later rather than after fifty.
CREATE TABLE log.person_keys (
  person    text        PRIMARY KEY,
  wrapped   bytea,
  made_at   timestamptz NOT NULL DEFAULT now(),
  erased_at timestamptz,
  CHECK ((wrapped IS NULL) = (erased_at IS NOT NULL))
) WITH (autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE  log.person_keys IS 'The key of each person whose personal data is in the log.';
COMMENT ON COLUMN log.person_keys.person IS 'Account, slash, billing receiver.';
COMMENT ON COLUMN log.person_keys.wrapped IS
  'Nonce (12 bytes), then the key (32 bytes) under AES-256-GCM with the master key and the person; null once erased.';
COMMENT ON COLUMN log.person_keys.erased_at IS 'When the person was erased; no key is made for this person after that.';
GRANT SELECT, INSERT ON log.person_keys TO trunkline_writer;
