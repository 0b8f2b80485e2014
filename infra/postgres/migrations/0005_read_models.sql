-- Read models: the tables of projections/*.py, with an index for each question, and the saved positions.

CREATE SCHEMA read;
COMMENT ON SCHEMA read IS 'Read models: folded from the log, and rebuilt from it at any time.';

CREATE TABLE read.positions (
  name     text   PRIMARY KEY,
  position bigint NOT NULL
);
COMMENT ON TABLE read.positions IS 'The last position of the log that a projection, or the relay, has handled.';

CREATE TABLE read.entitlements (
  package_id     text   NOT NULL,
  service        text   NOT NULL,
  account_id     text   NOT NULL,
  flat           bool   NOT NULL,
  total          bigint NOT NULL,
  allocated      bigint NOT NULL,
  valid_until    date   NOT NULL,
  over_allocated bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (package_id, service)
);
CREATE INDEX ON read.entitlements (account_id);
CREATE INDEX ON read.entitlements (account_id, package_id, service) WHERE over_allocated > 0;

CREATE TABLE read.allocations (
  package_id text   NOT NULL,
  pbx_id     text   NOT NULL,
  service    text   NOT NULL,
  account_id text   NOT NULL,
  pbx_name   text   NOT NULL,
  plan       text   NOT NULL,
  assigned   bigint NOT NULL,
  drawn      bigint NOT NULL,
  PRIMARY KEY (package_id, pbx_id, service)
);
CREATE INDEX ON read.allocations (account_id, pbx_id, service, package_id);

CREATE TABLE read.orders (
  order_id       text        PRIMARY KEY,
  account_id     text        NOT NULL,
  package_id     text        NOT NULL,
  state          text        NOT NULL,
  method         text,
  pi_number      text,
  currency       text        NOT NULL,
  net_minor      bigint      NOT NULL,
  tax_minor      bigint      NOT NULL,
  total_minor    bigint      NOT NULL,
  refunded_minor bigint      NOT NULL,
  lines          jsonb       NOT NULL,
  receiver_id    text,
  capture_id     text,
  attention      text,
  invoice_id     text,
  invoice_number text,
  requested_at   timestamptz NOT NULL,
  expires_at     timestamptz NOT NULL,
  placed_at      timestamptz,
  paid_at        timestamptz,
  fulfilled_at   timestamptz
);
COMMENT ON COLUMN read.orders.attention IS 'Why a person has to look at this order; null if nobody has to.';
CREATE INDEX ON read.orders (account_id, requested_at, order_id);
CREATE INDEX ON read.orders (state, requested_at, order_id);
CREATE INDEX ON read.orders (method, requested_at, order_id);
CREATE INDEX ON read.orders (requested_at, order_id);
CREATE INDEX ON read.orders (currency, total_minor);
CREATE INDEX ON read.orders (state, expires_at);
CREATE INDEX ON read.orders (pi_number) WHERE pi_number IS NOT NULL;

CREATE TABLE read.billing_documents (
  document_id text        PRIMARY KEY,
  order_id    text        NOT NULL,
  account_id  text        NOT NULL,
  kind        text        NOT NULL,
  number      text        NOT NULL,
  corrects    text,
  currency    text        NOT NULL,
  net_minor   bigint      NOT NULL,
  tax_minor   bigint      NOT NULL,
  total_minor bigint      NOT NULL,
  by_service  jsonb       NOT NULL,
  issued_at   timestamptz NOT NULL,
  sha256      text        NOT NULL
);
CREATE INDEX ON read.billing_documents (account_id, issued_at, document_id);
CREATE INDEX ON read.billing_documents (issued_at);
CREATE INDEX ON read.billing_documents (number);
CREATE INDEX ON read.billing_documents (order_id);

CREATE TABLE read.payments (
  order_id       text        NOT NULL,
  capture_id     text        NOT NULL,
  account_id     text        NOT NULL,
  method         text        NOT NULL,
  currency       text        NOT NULL,
  amount_minor   bigint      NOT NULL,
  refunded_minor bigint      NOT NULL,
  set_aside      text,
  explanation    text,
  captured_at    timestamptz NOT NULL,
  PRIMARY KEY (order_id, capture_id)
);
CREATE INDEX ON read.payments (account_id, captured_at);
CREATE INDEX ON read.payments (captured_at, order_id, capture_id) WHERE set_aside IS NOT NULL;

CREATE TABLE read.receivables (
  order_id     text        PRIMARY KEY,
  account_id   text        NOT NULL,
  currency     text        NOT NULL,
  amount_minor bigint      NOT NULL,
  owed         bool        NOT NULL,
  pi_number    text,
  owed_since   timestamptz,
  expires_at   timestamptz NOT NULL
);
CREATE INDEX ON read.receivables (account_id, owed_since, order_id) WHERE owed AND owed_since IS NOT NULL;
CREATE INDEX ON read.receivables (owed_since, order_id) WHERE owed AND owed_since IS NOT NULL;

CREATE TABLE read.invoice_links (
  link_id     text        PRIMARY KEY,
  invoice_id  text        NOT NULL,
  order_id    text        NOT NULL,
  account_id  text        NOT NULL,
  ordinal     bigint      NOT NULL,
  state       text        NOT NULL,
  issued_at   timestamptz NOT NULL,
  expires_at  timestamptz NOT NULL,
  emailed_at  timestamptz,
  consumed_at timestamptz
);
CREATE INDEX ON read.invoice_links (account_id, issued_at, link_id);

CREATE TABLE read.invoice_link_attempts (
  link_id    text        NOT NULL,
  position   bigint      NOT NULL,
  account_id text        NOT NULL,
  outcome    text        NOT NULL,
  at         timestamptz NOT NULL,
  PRIMARY KEY (link_id, position)
);
CREATE INDEX ON read.invoice_link_attempts (account_id, position, link_id);

CREATE TABLE read.timeline (
  position       bigint      PRIMARY KEY,
  account_id     text        NOT NULL,
  stream         text        NOT NULL,
  version        bigint      NOT NULL,
  topic          text        NOT NULL,
  event_id       uuid        NOT NULL,
  actor          text        NOT NULL,
  correlation_id text        NOT NULL,
  causation_id   text,
  recorded_at    timestamptz NOT NULL
);
CREATE INDEX ON read.timeline (account_id, position);

GRANT USAGE ON SCHEMA read TO trunkline_projector;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA read TO trunkline_projector;
GRANT USAGE ON SCHEMA read TO trunkline_auditor;
GRANT SELECT ON ALL TABLES IN SCHEMA read TO trunkline_auditor;
