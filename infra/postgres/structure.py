"""``python -m infra.postgres.structure``: write tables.sql, every type and table as the migrations leave it.

Migrations say how a table came to be, in as many files as it had changes. ``tables.sql`` says what it is. Nothing runs
it: a test compares it with a freshly migrated database.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import Connection
from psycopg.rows import dict_row

from infra.postgres.migrate import migrate
from infra.servers.embedded_postgres import embedded_postgres, temporary_directory

TABLES = Path(__file__).with_name("tables.sql")
_HEAD = """\
-- Every type and table as it is today, by name. Written by "make structure" from a freshly migrated database; nothing
-- runs this file. Functions and views are in functions/ and views/, and how tables came to be in migrations/.
"""
_SCHEMAS: LiteralString = "('log', 'read', 'projection', 'shadow', 'scratch', 'reporting')"


def tables(conn: Connection[Any]) -> str:
    """Return the DDL of all types and tables of a database: columns, constraints, indexes, triggers and grants."""
    found = conn.cursor(row_factory=dict_row)
    pieces = [
        *(f"CREATE TYPE {row['name']} AS (\n{row['columns']}\n);\n" for row in found.execute(_TYPES).fetchall()),
        *(_table(row) for row in found.execute(_TABLES).fetchall()),
    ]
    return "\n".join([_HEAD, *pieces])


def _table(row: dict[str, Any]) -> str:
    lines = ",\n".join(filter(None, (row["columns"], row["constraints"])))
    options = f" WITH ({row['options']})" if row["options"] else ""
    after = "".join(f"{statement};\n" for statement in row["statements"])
    return f"-- {row['comment']}\nCREATE TABLE {row['name']} (\n{lines}\n){options};\n{after}"


_COLUMNS: LiteralString = """
    SELECT string_agg(format('  %I %s%s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
                             CASE WHEN a.attstorage <> t.typstorage THEN ' STORAGE EXTERNAL' END,
                             CASE WHEN a.attnotnull THEN ' NOT NULL' END,
                             ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid)), E',\n' ORDER BY a.attnum)
      FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
      LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
"""
_TYPES: LiteralString = f"""
    SELECT c.oid::regclass::text AS name, ({_COLUMNS}) AS columns
      FROM pg_class AS c
     WHERE c.relkind = 'c' AND c.relnamespace::regnamespace::text IN {_SCHEMAS}
     ORDER BY 1
"""  # noqa: S608 - made of the constants above
_TABLES: LiteralString = f"""
    SELECT c.oid::regclass::text AS name, ({_COLUMNS}) AS columns, array_to_string(c.reloptions, ', ') AS options,
           coalesce(obj_description(c.oid, 'pg_class'), 'See projections/.') AS comment,
           (SELECT string_agg('  ' || pg_get_constraintdef(k.oid), E',\n' ORDER BY k.contype DESC, k.conname)
              FROM pg_constraint AS k WHERE k.conrelid = c.oid AND k.contype <> 'n') AS constraints,
           ARRAY(SELECT pg_get_indexdef(i.indexrelid) FROM pg_index AS i
                  WHERE i.indrelid = c.oid AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid)
                  ORDER BY 1)
           || ARRAY(SELECT pg_get_triggerdef(g.oid) FROM pg_trigger AS g
                     WHERE g.tgrelid = c.oid AND NOT g.tgisinternal ORDER BY 1)
           || ARRAY(SELECT format('GRANT %s ON %s TO %s', string_agg(a.privilege_type, ', ' ORDER BY a.privilege_type),
                                  c.oid::regclass, pg_get_userbyid(a.grantee))
                      FROM aclexplode(c.relacl) AS a WHERE a.grantee <> c.relowner
                     GROUP BY a.grantee ORDER BY 1) AS statements
      FROM pg_class AS c
     WHERE c.relkind = 'r' AND c.relnamespace::regnamespace::text IN {_SCHEMAS}
     ORDER BY 1
"""  # noqa: S608 - as above


def _write() -> None:
    with temporary_directory() as directory, embedded_postgres(directory / "postgres") as owner_url:
        migrate(owner_url)
        with psycopg.connect(owner_url) as conn:
            TABLES.write_text(tables(conn), encoding="utf-8")


if __name__ == "__main__":
    _write()
