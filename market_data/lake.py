"""Opening the lake.

    settings ── DuckDB connection ── extensions from their wheels ── ATTACH 'ducklake:…' AS lake

Writers open the head, under the writers' lock; readers open a version (``SNAPSHOT_VERSION``), by default
the last published one. The catalog is always called ``lake``: the macros stored in it name its tables so.
"""

from __future__ import annotations

import importlib
import importlib.resources
from pathlib import Path

import duckdb

from loaders.settings import Settings

ALIAS = "lake"


def quoted(text: str) -> str:
    """``text`` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """``name`` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


KEEP_ROWS = "SET GLOBAL disabled_optimizers = 'top_n_window_elimination'"
"""By this optimization DuckDB 1.5 loses rows of QUALIFY row_number() <= n where an expression of its order is null."""

SHARED_SETTINGS = (
    "SET TimeZone = 'UTC'",
    KEEP_ROWS,
    # Where DuckDB expects few rows it compares each with each for an ASOF join, and of what is computed on the way it
    # expects one: the spreads of fifteen minutes of a venue took half a minute, and take a quarter of a second so.
    "SET GLOBAL asof_loop_join_threshold = 0",
)


def extensions(settings: Settings) -> list[str]:
    """The extensions that this lake and raw zone need, in the order in which they load."""
    names = ["sqlite_scanner"] if settings.lake_is_local else ["postgres_scanner"]
    if any(place.startswith("s3://") for place in (settings.raw, settings.lake_data)):
        names.append("httpfs")
    return [*names, "ducklake"]


def extension_file(name: str) -> Path:
    """Where the wheel ``duckdb-extension-<name>`` keeps the extension for this DuckDB."""
    package = importlib.import_module(f"duckdb_extension_{name}")
    folder = Path(str(importlib.resources.files(package))) / "extensions"
    return folder / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"


def load_statements(settings: Settings) -> list[str]:
    """SQL that loads the extensions, sets what our connections share and, where S3 is used, makes the secret from the
    AWS variables."""
    statements = [f"LOAD {quoted(str(extension_file(name)))}" for name in extensions(settings)]
    return [*statements, *SHARED_SETTINGS, *s3_statements(settings)]


def s3_statements(settings: Settings) -> list[str]:
    """SQL that gives DuckDB the S3 endpoint and credentials of the environment."""
    if "httpfs" not in extensions(settings):
        return []
    s3 = settings.s3
    options = ["TYPE s3"]
    if s3.access_key and s3.secret_key:
        options += [f"KEY_ID {quoted(s3.access_key)}", f"SECRET {quoted(s3.secret_key)}"]
    else:
        options.append("PROVIDER credential_chain")
    if s3.session_token:
        options.append(f"SESSION_TOKEN {quoted(s3.session_token)}")
    if s3.region:
        options.append(f"REGION {quoted(s3.region)}")
    if s3.endpoint:
        scheme, _, host = s3.endpoint.rpartition("://")
        options += [f"ENDPOINT {quoted(host.rstrip('/'))}", "URL_STYLE 'path'"]
        options.append(f"USE_SSL {'false' if scheme == 'http' else 'true'}")
    return [f"CREATE OR REPLACE SECRET market_data_s3 ({', '.join(options)})"]


def attach_statement(
    settings: Settings, version: int | None = None, *, read_only: bool = False, alias: str = ALIAS
) -> str:
    """The ATTACH of this lake: its head, or the given version, which is read-only, and so is its catalog then."""
    if settings.lake_is_local:
        catalog = f"sqlite:{settings.lake}"
        options = ["META_JOURNAL_MODE 'WAL'", "META_BUSY_TIMEOUT 30000"]
    else:
        catalog, options = settings.lake, []
    if version is None and not read_only:  # a reader takes the place of the files from the catalog
        options.insert(0, f"DATA_PATH {quoted(settings.lake_data)}")
    if version is not None:
        options.append(f"SNAPSHOT_VERSION {version}")
    if version is not None or read_only:
        options.append("READ_ONLY")
    return f"ATTACH {quoted(f'ducklake:{catalog}')} AS {alias} ({', '.join(options)})"


def exists(settings: Settings) -> bool:
    """Whether the lake was ever written to; known without opening it only for a local catalog."""
    return not settings.lake_is_local or Path(settings.lake).exists()


def open_for_writing(settings: Settings) -> duckdb.DuckDBPyConnection:
    """A connection to the head of the lake, made where it is not there yet. Call it under the writers' lock."""
    make_places(settings)
    connection = duckdb.connect()
    prepare(connection, settings)
    return connection


def make_places(settings: Settings) -> None:
    """Make the local directories that the lake's files go to."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    if settings.lake_is_local:
        Path(settings.lake).parent.mkdir(parents=True, exist_ok=True)
    if "://" not in settings.lake_data:
        Path(settings.lake_data).mkdir(parents=True, exist_ok=True)


def prepare(connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Load the extensions on a connection, bound its memory, and attach the head of the lake to it."""
    for statement in load_statements(settings):
        connection.execute(statement)
    connection.execute(f"set temp_directory = {quoted(str(settings.state_dir / 'tmp'))}")
    bound_memory(connection, settings)
    connection.execute(attach_statement(settings))


def bound_memory(connection: duckdb.DuckDBPyConnection, settings: Settings, at_most: int | None = None) -> None:
    """Let DuckDB use what the settings say, and no more than so many bytes."""
    bounds = [bytes_ for bytes_ in (settings.memory, at_most) if bytes_]
    connection.execute(f"set memory_limit = '{min(bounds)} B'" if bounds else "reset memory_limit")


def open_version(settings: Settings, version: int | None) -> duckdb.DuckDBPyConnection:
    """A connection that reads one version of the lake (or, with None, its head), and cannot write."""
    connection = duckdb.connect()
    for statement in load_statements(settings):
        connection.execute(statement)
    connection.execute(attach_statement(settings, version, read_only=True))
    connection.execute(f"USE {ALIAS}")
    return connection
