-- A text in the canonical form of the chain: its length in bytes, then its bytes; -1 for null. textsend yields UTF-8 if that
-- is the client encoding, as it is within log.append; convert_to would look the encoding up by name at each call.
CREATE OR REPLACE FUNCTION log.canonical(value text) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(int4send(octet_length(value)) || textsend(value), int4send(-1));
