-- Documents are PDFs, which are compressed already: PostgreSQL need not try again at each of them.

ALTER TABLE log.documents ALTER COLUMN content SET STORAGE EXTERNAL;
