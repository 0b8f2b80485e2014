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

-- An empty table of a read model's shape and grants, without its indexes and policies: these come when it is full
-- (projection.index_table), for COPY is slow under the ones and refused under the others.
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
END $$;

-- The keys, indexes and policies of the live table, under the same names.
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

-- What read models lacked: over-allocation as a column that can be found, and an index for each question.

ALTER TABLE read.entitlements ADD COLUMN over_allocated bigint NOT NULL DEFAULT 0;
UPDATE read.entitlements AS e SET over_allocated = greatest(0, e.allocated - e.total, CASE e.service WHEN 'extensions' THEN
  (SELECT (e.allocated - u.allocated) - (e.total - u.total) FROM read.entitlements AS u
    WHERE u.package_id = e.package_id AND u.service = 'ultimate_plan') END);
CREATE INDEX ON read.entitlements (account_id, package_id, service) WHERE over_allocated > 0;

DROP INDEX read.allocations_account_id_idx;
CREATE INDEX ON read.allocations (account_id, pbx_id, service, package_id);

DROP INDEX read.orders_account_id_requested_at_idx;
CREATE INDEX ON read.orders (account_id, requested_at, order_id);
CREATE INDEX ON read.orders (state, requested_at, order_id);
CREATE INDEX ON read.orders (method, requested_at, order_id);
CREATE INDEX ON read.orders (requested_at, order_id);
CREATE INDEX ON read.orders (currency, total_minor);

DROP INDEX read.billing_documents_account_id_issued_at_idx;
CREATE INDEX ON read.billing_documents (account_id, issued_at, document_id);
CREATE INDEX ON read.billing_documents (issued_at);
CREATE INDEX ON read.billing_documents (number);
CREATE INDEX ON read.payments (captured_at, order_id, capture_id) WHERE set_aside IS NOT NULL;
DROP INDEX read.receivables_account_id_idx;
CREATE INDEX ON read.receivables (account_id, owed_since, order_id) WHERE owed AND owed_since IS NOT NULL;
CREATE INDEX ON read.receivables (owed_since, order_id) WHERE owed AND owed_since IS NOT NULL;

DROP INDEX read.invoice_links_account_id_idx;
CREATE INDEX ON read.invoice_links (account_id, issued_at, link_id);
DROP INDEX read.invoice_link_attempts_account_id_idx;
CREATE INDEX ON read.invoice_link_attempts (account_id, position, link_id);

-- For admins and their tools: views that stay as they are while the tables behind them change.

DO $$
BEGIN
  CREATE ROLE trunkline_reader NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
  NULL;
END $$;

CREATE SCHEMA reporting;
COMMENT ON SCHEMA reporting IS 'Stable views for reports: GRANT trunkline_reader TO the login of whoever reads them.';

CREATE VIEW reporting.entitlements AS
  SELECT account_id, package_id, service, flat AS is_flat, total, allocated,
         greatest(0, total - allocated) AS available, over_allocated, valid_until
    FROM read.entitlements
  UNION ALL
  SELECT e.account_id, e.package_id, 'enterprise_plan', false, e.total - coalesce(u.total, 0),
         e.allocated - coalesce(u.allocated, 0),
         greatest(0, (e.total - coalesce(u.total, 0)) - (e.allocated - coalesce(u.allocated, 0))),
         greatest(0, (e.allocated - coalesce(u.allocated, 0)) - (e.total - coalesce(u.total, 0))), e.valid_until
    FROM read.entitlements AS e
    LEFT JOIN read.entitlements AS u ON u.package_id = e.package_id AND u.service = 'ultimate_plan'
   WHERE e.service = 'extensions';
COMMENT ON VIEW reporting.entitlements IS 'What a package has of each service, how much of it PBXs hold, and until when.';

CREATE VIEW reporting.allocations AS
  SELECT account_id, package_id, pbx_id, pbx_name, plan, service, assigned, drawn FROM read.allocations;
COMMENT ON VIEW reporting.allocations IS 'What each PBX holds of each service.';

CREATE VIEW reporting.orders AS
  SELECT order_id, account_id, package_id, state, method, pi_number, currency, net_minor, tax_minor, total_minor,
         refunded_minor, receiver_id, capture_id, attention, invoice_id, invoice_number, requested_at, expires_at,
         placed_at, paid_at, fulfilled_at
    FROM read.orders;
COMMENT ON VIEW reporting.orders IS 'Every order, as it stands.';

CREATE VIEW reporting.order_lines AS
  SELECT o.order_id, o.account_id, line.number::int AS line, line.item ->> 'service' AS service,
         line.item ->> 'title' AS title, (line.item ->> 'quantity')::bigint AS quantity,
         (line.item ->> 'unit_price_minor')::bigint AS unit_price_minor,
         (line.item ->> 'amount_minor')::bigint AS amount_minor, o.currency,
         (line.item ->> 'tax_rate_bp')::bigint AS tax_rate_bp
    FROM read.orders AS o, jsonb_array_elements(o.lines) WITH ORDINALITY AS line (item, number);
COMMENT ON VIEW reporting.order_lines IS 'The lines of every order, with what they were priced by.';

CREATE VIEW reporting.billing_documents AS
  SELECT document_id, kind, number, corrects, order_id, account_id, currency, net_minor, tax_minor, total_minor,
         issued_at, sha256
    FROM read.billing_documents;
COMMENT ON VIEW reporting.billing_documents IS 'Invoices, and credit notes with negative amounts.';

CREATE VIEW reporting.revenue AS
  SELECT date_trunc('month', d.issued_at AT TIME ZONE 'UTC')::date AS month, d.account_id, line.key AS service,
         d.currency, sum(line.value::bigint)::bigint AS net_minor
    FROM read.billing_documents AS d, jsonb_each_text(d.by_service) AS line
   GROUP BY 1, 2, 3, 4;
COMMENT ON VIEW reporting.revenue IS 'Net revenue by month, account, service and currency; credit notes taken off.';

CREATE VIEW reporting.payments AS
  SELECT order_id, capture_id, account_id, method, currency, amount_minor, refunded_minor, captured_at,
         set_aside AS set_aside_reason, explanation
    FROM read.payments;
COMMENT ON VIEW reporting.payments IS 'Money that arrived; with a reason where it fulfils nothing and waits for a person.';

CREATE VIEW reporting.receivables AS
  SELECT order_id, account_id, currency, amount_minor, pi_number, owed_since, expires_at,
         extract(day FROM now() - owed_since)::int AS days_owed
    FROM read.receivables WHERE owed;
COMMENT ON VIEW reporting.receivables IS 'What is owed offline at this moment.';

CREATE VIEW reporting.invoice_links AS
  SELECT link_id, invoice_id, order_id, account_id, ordinal,
         CASE WHEN state = 'issued' AND expires_at <= now() THEN 'expired' ELSE state END AS state,
         issued_at, expires_at, emailed_at, consumed_at
    FROM read.invoice_links;
COMMENT ON VIEW reporting.invoice_links IS 'Each link to an invoice, as it stands at this moment.';

CREATE VIEW reporting.invoice_link_attempts AS
  SELECT link_id, position, account_id, outcome, at AS attempted_at FROM read.invoice_link_attempts;
COMMENT ON VIEW reporting.invoice_link_attempts IS 'Each attempt to use a link.';

CREATE VIEW reporting.timeline AS
  SELECT position, account_id, recorded_at, topic, stream, version, event_id, actor, correlation_id, causation_id
    FROM read.timeline;
COMMENT ON VIEW reporting.timeline IS 'What happened in each account, who caused it, and what it followed from.';

CREATE VIEW reporting.events AS
  SELECT position, recorded_at, topic, stream, version, account_id, event_id, correlation_id, causation_id, actor,
         CASE WHEN pg_input_is_valid(convert_from(state, 'UTF8'), 'jsonb')
              THEN convert_from(state, 'UTF8')::jsonb END AS state,
         encode(hash, 'hex') AS hash
    FROM log.events;
COMMENT ON VIEW reporting.events IS 'The log itself, decoded. Personal fields are as they are stored.';

CREATE VIEW reporting.projections AS
  SELECT p.name, p.position, h.position - p.position AS lag, k.position AS halted_before, k.error, k.parked_at,
         (SELECT count(*) FROM projection.skipped AS s WHERE s.name = p.name) AS skipped
    FROM read.positions AS p CROSS JOIN log.head AS h LEFT JOIN projection.parked AS k ON k.name = p.name
   WHERE p.name NOT LIKE '%.%';
COMMENT ON VIEW reporting.projections IS 'How far each read model, and the relay, has come, and what it halts before.';

CREATE VIEW reporting.skipped_events AS
  SELECT name, position, topic, error, actor, reason, skipped_at FROM projection.skipped;
COMMENT ON VIEW reporting.skipped_events IS 'Events that a read model leaves out: who decided so, and why.';

DO $$
DECLARE
  known CONSTANT jsonb := '{
    "account_id": "The partner account.",
    "actor": "Who caused it: role and name.",
    "allocated": "How much of it PBXs hold.",
    "amount_minor": "In minor units of the currency.",
    "assigned": "What the PBX has.",
    "attempted_at": "When somebody came with the link.",
    "attention": "Why a person has to look at it; null where nobody has to.",
    "available": "How much of it PBXs can still be given.",
    "capture_id": "The payment, as the provider or whoever collected it names it.",
    "captured_at": "When the money arrived.",
    "causation_id": "The event or message that led to this one directly.",
    "consumed_at": "When the invoice was given out for it.",
    "correlation_id": "The same for all that follows from one wish.",
    "corrects": "The number of the invoice that a credit note corrects.",
    "currency": "ISO 4217.",
    "days_owed": "Whole days since the order was placed.",
    "document_id": "The invoice or credit note.",
    "drawn": "What of it came out of the pool; the rest is free with every PBX.",
    "emailed_at": "When the mail with the link went out.",
    "error": "What went wrong.",
    "event_id": "The id of the event.",
    "expires_at": "Until when.",
    "explanation": "Why, in words.",
    "fulfilled_at": "When the package had what was paid for.",
    "halted_before": "The position of the event that it cannot deal with; null where it works.",
    "hash": "Of this row and the one before it, SHA-256.",
    "invoice_id": "The invoice.",
    "invoice_number": "The number that is printed on the invoice.",
    "is_flat": "Whether the service is on (1) or off (0), and not counted.",
    "issued_at": "When it was issued.",
    "kind": "invoice or credit_note.",
    "lag": "How many positions the log is ahead.",
    "line": "The place in the order, from 1.",
    "link_id": "The link.",
    "method": "paypal, card or offline.",
    "month": "The first day of the month, UTC.",
    "name": "The read model.",
    "net_minor": "Without tax, in minor units.",
    "number": "The number that is printed on it.",
    "order_id": "The order.",
    "ordinal": "The how many-th link of the invoice, from 1.",
    "outcome": "consumed, or why it was refused.",
    "over_allocated": "How much more than there is PBXs hold, after a refund.",
    "owed_since": "When the order was placed.",
    "package_id": "The hosting package.",
    "paid_at": "When the money arrived.",
    "parked_at": "When it halted.",
    "pbx_id": "The PBX.",
    "pbx_name": "What the PBX is called.",
    "pi_number": "The number of the proforma invoice, for offline payment.",
    "placed_at": "When the customer ordered.",
    "plan": "enterprise or ultimate.",
    "position": "The place in the log.",
    "quantity": "In units of the service.",
    "reason": "Why it is left out.",
    "receiver_id": "The billing receiver.",
    "recorded_at": "When the log took it in.",
    "refunded_minor": "What of it went back, in minor units.",
    "requested_at": "When it was asked for.",
    "service": "The code of the service; enterprise_plan is what of the extensions is not on Ultimate.",
    "set_aside_reason": "Why it fulfils nothing; null where it does.",
    "sha256": "Of the bytes of the document.",
    "skipped": "How many events it was told to leave out.",
    "skipped_at": "When that was decided.",
    "state": "How it stands; of an event, what happened, as JSON (null where it is none that can be shown).",
    "stream": "Kind of aggregate, hyphen, its id.",
    "tax_minor": "In minor units.",
    "tax_rate_bp": "In hundredths of a percent.",
    "title": "As the price list named it.",
    "topic": "The pinned name of what happened.",
    "total": "How much of it the package has.",
    "total_minor": "With tax, in minor units.",
    "unit_price_minor": "For the whole term, in minor units.",
    "valid_until": "The day on which the term is over.",
    "version": "The place in the stream, from 1."
  }';
  one record;
BEGIN
  FOR one IN SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'reporting' LOOP
    EXECUTE format('COMMENT ON COLUMN reporting.%I.%I IS %L', one.table_name, one.column_name, known ->> one.column_name);
  END LOOP;
END $$;

GRANT USAGE ON SCHEMA reporting TO trunkline_reader, trunkline_auditor;
GRANT SELECT ON ALL TABLES IN SCHEMA reporting TO trunkline_reader, trunkline_auditor;
