"""PostgreSQL: connections, schema, roles, binary format, saved positions."""
