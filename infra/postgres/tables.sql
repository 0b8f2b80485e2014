-- Every type and table as it is today, by name. Written by "make structure" from a freshly migrated database; nothing
-- runs this file. Functions and views are in functions/ and views/, and how tables came to be in migrations/.

CREATE TYPE log.expected_version AS (
  stream text,
  version bigint,
  command integer
);

CREATE TYPE log.new_document AS (
  sha256 text,
  media_type text,
  content bytea,
  command integer
);

CREATE TYPE log.new_event AS (
  version bigint,
  recorded_at timestamp with time zone,
  event_id uuid,
  stream text,
  topic text,
  state bytea,
  account_id text,
  correlation_id text,
  causation_id text,
  actor text
);

CREATE TYPE log.new_message AS (
  message_id text,
  body_sha256 bytea,
  command integer
);

CREATE TYPE log.new_tracking AS (
  application_name text,
  notification_id bigint,
  command integer
);

-- The bytes of invoices and credit notes; the event of their issue holds their SHA-256.
CREATE TABLE log.documents (
  sha256 text NOT NULL,
  media_type text NOT NULL,
  content bytea STORAGE EXTERNAL NOT NULL,
  kept_at timestamp with time zone NOT NULL DEFAULT now(),
  PRIMARY KEY (sha256)
);
CREATE TRIGGER only_added_to BEFORE DELETE OR UPDATE OR TRUNCATE ON log.documents FOR EACH STATEMENT EXECUTE FUNCTION log.refuse_change();
GRANT SELECT ON log.documents TO trunkline_writer;

-- Every event, in one total order.
CREATE TABLE log.events (
  "position" bigint NOT NULL,
  stream text NOT NULL,
  version bigint NOT NULL,
  topic text NOT NULL,
  state bytea NOT NULL,
  recorded_at timestamp with time zone NOT NULL,
  account_id text,
  event_id uuid NOT NULL,
  correlation_id text NOT NULL,
  causation_id text,
  actor text NOT NULL,
  hash bytea NOT NULL,
  UNIQUE (stream, version),
  PRIMARY KEY ("position"),
  CHECK ((octet_length(hash) = 32)),
  CHECK ((version >= 0))
);
CREATE INDEX events_by_time ON log.events USING brin (recorded_at);
CREATE INDEX events_of_an_account ON log.events USING btree (account_id, "position");
CREATE TRIGGER key_goes_with_the_event AFTER INSERT ON log.events FOR EACH ROW WHEN ((new.topic = 'account.BillingReceiverErased.v1'::text)) EXECUTE FUNCTION log.destroy_key_of_erased();
CREATE TRIGGER only_added_to BEFORE DELETE OR UPDATE OR TRUNCATE ON log.events FOR EACH STATEMENT EXECUTE FUNCTION log.refuse_change();
GRANT SELECT ON log.events TO trunkline_auditor;
GRANT SELECT ON log.events TO trunkline_projector;
GRANT SELECT ON log.events TO trunkline_writer;

-- The end of the log: the last position, and its hash.
CREATE TABLE log.head (
  one boolean NOT NULL DEFAULT true,
  "position" bigint NOT NULL,
  hash bytea NOT NULL,
  PRIMARY KEY (one),
  CHECK (one)
) WITH (fillfactor=20);
GRANT SELECT ON log.head TO trunkline_auditor;
GRANT SELECT ON log.head TO trunkline_projector;
GRANT SELECT ON log.head TO trunkline_writer;

-- Messages that were handled, and the events that they caused (none: last < first).
CREATE TABLE log.inbox (
  message_id text NOT NULL,
  body_sha256 bytea NOT NULL,
  first_position bigint NOT NULL,
  last_position bigint NOT NULL,
  received_at timestamp with time zone NOT NULL DEFAULT now(),
  PRIMARY KEY (message_id)
);
GRANT SELECT ON log.inbox TO trunkline_writer;

-- The key of each person whose personal data is in the log.
CREATE TABLE log.person_keys (
  person text NOT NULL,
  wrapped bytea,
  made_at timestamp with time zone NOT NULL DEFAULT now(),
  erased_at timestamp with time zone,
  PRIMARY KEY (person),
  CHECK (((wrapped IS NULL) = (erased_at IS NOT NULL)))
) WITH (autovacuum_vacuum_threshold=0, autovacuum_vacuum_scale_factor=0);
GRANT INSERT, SELECT ON log.person_keys TO trunkline_writer;

-- The state of a stream at a version, as JSON; ignored if its shape is not the program's.
CREATE TABLE log.snapshots (
  stream text NOT NULL,
  version bigint NOT NULL,
  account_id text,
  shape text NOT NULL,
  state bytea NOT NULL,
  taken_at timestamp with time zone NOT NULL DEFAULT now(),
  PRIMARY KEY (stream)
);
GRANT INSERT, SELECT, UPDATE ON log.snapshots TO trunkline_writer;

-- How far a process application of the eventsourcing library has read another one.
CREATE TABLE log.tracking (
  application_name text NOT NULL,
  notification_id bigint NOT NULL,
  PRIMARY KEY (application_name)
);
GRANT SELECT ON log.tracking TO trunkline_writer;

-- The event that a projection cannot handle, and halts before.
CREATE TABLE projection.parked (
  name text NOT NULL,
  "position" bigint NOT NULL,
  stream text NOT NULL,
  version bigint NOT NULL,
  topic text NOT NULL,
  error text NOT NULL,
  traceback text NOT NULL,
  attempts bigint NOT NULL DEFAULT 1,
  parked_at timestamp with time zone NOT NULL DEFAULT now(),
  retry boolean NOT NULL DEFAULT false,
  PRIMARY KEY (name)
);
GRANT DELETE, INSERT, SELECT, UPDATE ON projection.parked TO trunkline_projector;
GRANT SELECT ON projection.parked TO trunkline_auditor;

-- Accounts that are rebuilt together; without accounts: what belongs to none.
CREATE TABLE projection.rebuild_parts (
  place text NOT NULL,
  name text NOT NULL,
  number bigint NOT NULL,
  first_account text,
  last_account text,
  events bigint NOT NULL,
  done boolean NOT NULL DEFAULT false,
  PRIMARY KEY (place, name, number),
  FOREIGN KEY (place, name) REFERENCES projection.rebuilds(place, name) ON DELETE CASCADE
);
GRANT DELETE, INSERT, SELECT, UPDATE ON projection.rebuild_parts TO trunkline_projector;
GRANT SELECT ON projection.rebuild_parts TO trunkline_auditor;

-- Rebuilds in progress: by account up to a position, and event by event after it.
CREATE TABLE projection.rebuilds (
  place text NOT NULL,
  name text NOT NULL,
  upto bigint NOT NULL,
  fingerprint text NOT NULL,
  begun_at timestamp with time zone NOT NULL DEFAULT now(),
  indexed boolean NOT NULL DEFAULT false,
  PRIMARY KEY (place, name),
  CHECK ((place = ANY (ARRAY['shadow'::text, 'scratch'::text])))
);
GRANT DELETE, INSERT, SELECT, UPDATE ON projection.rebuilds TO trunkline_projector;
GRANT SELECT ON projection.rebuilds TO trunkline_auditor;

-- Events that a projection skips for good: who decided so, and why. Append-only.
CREATE TABLE projection.skipped (
  name text NOT NULL,
  "position" bigint NOT NULL,
  topic text NOT NULL,
  error text NOT NULL,
  actor text NOT NULL,
  reason text NOT NULL,
  skipped_at timestamp with time zone NOT NULL DEFAULT now(),
  PRIMARY KEY (name, "position"),
  CHECK ((reason <> ''::text))
);
GRANT INSERT, SELECT ON projection.skipped TO trunkline_projector;
GRANT SELECT ON projection.skipped TO trunkline_auditor;

-- See projections/.
CREATE TABLE read.allocations (
  package_id text NOT NULL,
  pbx_id text NOT NULL,
  service text NOT NULL,
  account_id text NOT NULL,
  pbx_name text NOT NULL,
  plan text NOT NULL,
  assigned bigint NOT NULL,
  drawn bigint NOT NULL,
  PRIMARY KEY (package_id, pbx_id, service)
);
CREATE INDEX allocations_account_id_pbx_id_service_package_id_idx ON read.allocations USING btree (account_id, pbx_id, service, package_id);
GRANT DELETE, INSERT, SELECT, UPDATE ON read.allocations TO trunkline_projector;
GRANT SELECT ON read.allocations TO trunkline_auditor;

-- See projections/.
CREATE TABLE read.billing_documents (
  document_id text NOT NULL,
  order_id text NOT NULL,
  account_id text NOT NULL,
  kind text NOT NULL,
  number text NOT NULL,
  corrects text,
  currency text NOT NULL,
  net_minor bigint NOT NULL,
  tax_minor bigint NOT NULL,
  total_minor bigint NOT NULL,
  by_service jsonb NOT NULL,
  issued_at timestamp with time zone NOT NULL,
  sha256 text NOT NULL,
  PRIMARY KEY (document_id)
);
CREATE INDEX billing_documents_account_id_issued_at_document_id_idx ON read.billing_documents USING btree (account_id, issued_at, document_id);
CREATE INDEX billing_documents_issued_at_idx ON read.billing_documents USING btree (issued_at);
CREATE INDEX billing_documents_number_idx ON read.billing_documents USING btree (number);
CREATE INDEX billing_documents_order_id_idx ON read.billing_documents USING btree (order_id);
GRANT DELETE, INSERT, SELECT, UPDATE ON read.billing_documents TO trunkline_projector;
GRANT SELECT ON read.billing_documents TO trunkline_auditor;

-- See projections/.
CREATE TABLE read.entitlements (
  package_id text NOT NULL,
  service text NOT NULL,
  account_id text NOT NULL,
  flat boolean NOT NULL,
  total bigint NOT NULL,
  allocated bigint NOT NULL,
  valid_until date NOT NULL,
  over_allocated bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (package_id, service)
);
CREATE INDEX entitlements_account_id_idx ON read.entitlements USING btree (account_id);
CREATE INDEX entitlements_account_id_package_id_service_idx ON read.entitlements USING btree (account_id, package_id, service) WHERE (over_allocated > 0);
GRANT DELETE, INSERT, SELECT, UPDATE ON read.entitlements TO trunkline_projector;
GRANT SELECT ON read.entitlements TO trunkline_auditor;

-- See projections/.
CREATE TABLE read.invoice_link_attempts (
  link_id text NOT NULL,
  "position" bigint NOT NULL,
  account_id text NOT NULL,
  outcome text NOT NULL,
  at timestamp with time zone NOT NULL,
  PRIMARY KEY (link_id, "position")
);
CREATE INDEX invoice_link_attempts_account_id_position_link_id_idx ON read.invoice_link_attempts USING btree (account_id, "position", link_id);
GRANT DELETE, INSERT, SELECT, UPDATE ON read.invoice_link_attempts TO trunkline_projector;
GRANT SELECT ON read.invoice_link_attempts TO trunkline_auditor;

-- See projections/.
CREATE TABLE read.invoice_links (
  link_id text NOT NULL,
  invoice_id text NOT NULL,
  order_id text NOT NULL,
  account_id text NOT NULL,
  ordinal bigint NOT NULL,
  state text NOT NULL,
  issued_at timestamp with time zone NOT NULL,
  expires_at timestamp with time zone NOT NULL,
  emailed_at timestamp with time zone,
  consumed_at timestamp with time zone,
  PRIMARY KEY (link_id)
);
CREATE INDEX invoice_links_account_id_issued_at_link_id_idx ON read.invoice_links USING btree (account_id, issued_at, link_id);
GRANT DELETE, INSERT, SELECT, UPDATE ON read.invoice_links TO trunkline_projector;
GRANT SELECT ON read.invoice_links TO trunkline_auditor;

-- See projections/.
CREATE TABLE read.orders (
  order_id text NOT NULL,
  account_id text NOT NULL,
  package_id text NOT NULL,
  state text NOT NULL,
  method text,
  pi_number text,
  currency text NOT NULL,
  net_minor bigint NOT NULL,
  tax_minor bigint NOT NULL,
  total_minor bigint NOT NULL,
  refunded_minor bigint NOT NULL,
  lines jsonb NOT NULL,
  receiver_id text,
  capture_id text,
  attention text,
  invoice_id text,
  invoice_number text,
  requested_at timestamp with time zone NOT NULL,
  expires_at timestamp with time zone NOT NULL,
  placed_at timestamp with time zone,
  paid_at timestamp with time zone,
  fulfilled_at timestamp with time zone,
  PRIMARY KEY (order_id)
);
CREATE INDEX orders_account_id_requested_at_order_id_idx ON read.orders USING btree (account_id, requested_at, order_id);
CREATE INDEX orders_currency_total_minor_idx ON read.orders USING btree (currency, total_minor);
CREATE INDEX orders_method_requested_at_order_id_idx ON read.orders USING btree (method, requested_at, order_id);
CREATE INDEX orders_pi_number_idx ON read.orders USING btree (pi_number) WHERE (pi_number IS NOT NULL);
CREATE INDEX orders_requested_at_order_id_idx ON read.orders USING btree (requested_at, order_id);
CREATE INDEX orders_state_expires_at_idx ON read.orders USING btree (state, expires_at);
CREATE INDEX orders_state_requested_at_order_id_idx ON read.orders USING btree (state, requested_at, order_id);
GRANT DELETE, INSERT, SELECT, UPDATE ON read.orders TO trunkline_projector;
GRANT SELECT ON read.orders TO trunkline_auditor;

-- See projections/.
CREATE TABLE read.payments (
  order_id text NOT NULL,
  capture_id text NOT NULL,
  account_id text NOT NULL,
  method text NOT NULL,
  currency text NOT NULL,
  amount_minor bigint NOT NULL,
  refunded_minor bigint NOT NULL,
  set_aside text,
  explanation text,
  captured_at timestamp with time zone NOT NULL,
  PRIMARY KEY (order_id, capture_id)
);
CREATE INDEX payments_account_id_captured_at_idx ON read.payments USING btree (account_id, captured_at);
CREATE INDEX payments_captured_at_order_id_capture_id_idx ON read.payments USING btree (captured_at, order_id, capture_id) WHERE (set_aside IS NOT NULL);
GRANT DELETE, INSERT, SELECT, UPDATE ON read.payments TO trunkline_projector;
GRANT SELECT ON read.payments TO trunkline_auditor;

-- The last position of the log that a projection, or the relay, has handled.
CREATE TABLE read.positions (
  name text NOT NULL,
  "position" bigint NOT NULL,
  PRIMARY KEY (name)
);
GRANT DELETE, INSERT, SELECT, UPDATE ON read.positions TO trunkline_projector;
GRANT SELECT ON read.positions TO trunkline_auditor;

-- See projections/.
CREATE TABLE read.receivables (
  order_id text NOT NULL,
  account_id text NOT NULL,
  currency text NOT NULL,
  amount_minor bigint NOT NULL,
  owed boolean NOT NULL,
  pi_number text,
  owed_since timestamp with time zone,
  expires_at timestamp with time zone NOT NULL,
  PRIMARY KEY (order_id)
);
CREATE INDEX receivables_account_id_owed_since_order_id_idx ON read.receivables USING btree (account_id, owed_since, order_id) WHERE (owed AND (owed_since IS NOT NULL));
CREATE INDEX receivables_owed_since_order_id_idx ON read.receivables USING btree (owed_since, order_id) WHERE (owed AND (owed_since IS NOT NULL));
GRANT DELETE, INSERT, SELECT, UPDATE ON read.receivables TO trunkline_projector;
GRANT SELECT ON read.receivables TO trunkline_auditor;

-- See projections/.
CREATE TABLE read.timeline (
  "position" bigint NOT NULL,
  account_id text NOT NULL,
  stream text NOT NULL,
  version bigint NOT NULL,
  topic text NOT NULL,
  event_id uuid NOT NULL,
  actor text NOT NULL,
  correlation_id text NOT NULL,
  causation_id text,
  recorded_at timestamp with time zone NOT NULL,
  PRIMARY KEY ("position")
);
CREATE INDEX timeline_account_id_position_idx ON read.timeline USING btree (account_id, "position");
GRANT DELETE, INSERT, SELECT, UPDATE ON read.timeline TO trunkline_projector;
GRANT SELECT ON read.timeline TO trunkline_auditor;
