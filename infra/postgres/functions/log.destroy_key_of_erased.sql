-- Destroys the key of a person in the commit of the erasure, whatever appends that event: there is never one without the
-- other.
CREATE OR REPLACE FUNCTION log.destroy_key_of_erased() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  erased jsonb := convert_from(NEW.state, 'UTF8')::jsonb;
BEGIN
  PERFORM log.destroy_key(concat(erased->>'account_id', '/', erased->>'receiver_id'));
  RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER key_goes_with_the_event AFTER INSERT ON log.events FOR EACH ROW
  WHEN (NEW.topic = 'account.BillingReceiverErased.v1') EXECUTE FUNCTION log.destroy_key_of_erased();

REVOKE ALL ON FUNCTION log.destroy_key_of_erased FROM PUBLIC;
