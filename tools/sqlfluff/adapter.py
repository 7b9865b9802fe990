"""What the macros ask of dbt's adapter, for sqlfluff, which renders the models without dbt."""


def quote(identifier: str) -> str:
    """Return a name as DuckDB reads it whatever it holds."""
    return '"' + identifier.replace('"', '""') + '"'
