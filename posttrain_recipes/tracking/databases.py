"""Addresses of MLflow's stores, and databases that another version of MLflow made.

MLflow tries for a minute and more to open what cannot be opened, and makes the directories of an
address wherever that leads. So an address is looked at before MLflow gets it.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.shown import redact

LONGEST = 500
"""Characters of an address; SQLite opens no path of more than 512 bytes."""
HINT = "set MLFLOW_TRACKING_URI to sqlite:///PATH/mlflow.db or http://HOST:PORT, or unset it"
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
CONNECT_S = 5.0
_SCHEMES = ("http", "https", "sqlite", "file", "databricks", "uc", *PORTS)


def check_address(uri: str) -> None:
    """Refuse an address that cannot be meant.

    Raises:
        UsageError: it is too long, no text, of no known kind, or would lie elsewhere than it reads.
    """

    def refuse(why: str) -> None:
        short = redact(uri).encode(errors="backslashreplace").decode()
        short = short if len(short) <= 80 else f"{short[:80]}…"
        raise UsageError(f"{short!r} is no address of MLflow: {why}", hint=HINT, code="tracking")

    if len(uri) > LONGEST:
        refuse(f"it has {len(uri)} characters, and {LONGEST} are read")
    if bad := next((c for c in uri if not c.isprintable()), None):
        refuse(f"it has a {bad.encode(errors='backslashreplace').decode()!r}")
    try:
        parts = urlsplit(uri)
        parts.port  # noqa: B018  raises where it is no number
    except ValueError:  # its text holds a part of the address, maybe of a password
        refuse(
            "its host and port cannot be read; in a password '/' is written %2F, '@' %40, ':' %3A"
            if "@" in uri
            else "its host and port cannot be read"
        )
    scheme = parts.scheme.split("+")[0]
    if "://" in uri and scheme not in _SCHEMES:
        refuse(f"there is no store of the kind '{scheme}'")
    if scheme in ("http", "https"):
        if not parts.hostname:
            refuse("it names no host")
        if parts.query or parts.fragment or "%2f" in uri.lower().rpartition("@")[2]:
            refuse("a server's address has no '?', '#' or '%2F'")
    if scheme in PORTS and "@" in parts.path:
        refuse("a '/' in a password is written %2F")
    if scheme == "sqlite":
        path, _, options = uri.partition("?")
        place = path.partition(":///")[2]
        if place in ("", ":memory:") or "mode=memory" in options or place.endswith(":memory:"):
            refuse("a database in memory, or without a file, is gone at once: name a file")
        if Path(place).is_dir():
            refuse("it is a directory, and SQLite's database is a file in one")
        if "%" in path or "#" in uri or (options and not re.fullmatch(r"(\w+=[\w.]+&?)+", options)):
            refuse("'%', '?' and '#' are read as escapes and options, not as parts of a path")


def check_database(uri: str) -> None:
    """Look whether a database can be opened at all, in moments.

    Raises:
        PtlError: it cannot be.
    """
    scheme = uri.split(":")[0].split("+")[0]
    if scheme == "sqlite" and ":///file:" not in uri:
        path = Path(uri.partition("?")[0].partition(":///")[2])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA schema_version").fetchone()
        except (OSError, sqlite3.Error) as error:
            raise PtlError(
                f"{path}: {getattr(error, 'strerror', None) or error}", code="tracking"
            ) from None
    elif scheme in PORTS:
        parts = urlsplit(uri)
        address = parts.hostname or "localhost", parts.port or PORTS[scheme]
        with contextlib.ExitStack() as opened:
            try:
                opened.enter_context(socket.create_connection(address, CONNECT_S))
            except OSError as error:
                raise PtlError(
                    f"{address[0]}:{address[1]} does not answer: {error}", code="tracking"
                ) from None


def has_tables(uri: str) -> bool:
    """Whether something is in a database; MLflow makes what it needs in an empty one."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        return bool(sqlalchemy.inspect(engine).get_table_names())
    finally:
        engine.dispose()


OLDER, CURRENT = "older", "current"


def age(url: str, where: str) -> str:
    """Whether MLflow's database at `url`, which the installed MLflow is imported to read, is of it
    (`CURRENT`) or an `OLDER` one.

    Args:
        where: what to call it, without a password.

    Raises:
        PtlError: a newer MLflow made it, or it is no database of MLflow.
    """
    import mlflow
    import sqlalchemy
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils

    script = ScriptDirectory.from_config(utils._get_alembic_config(url.replace("%", "%%")))
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            found = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version"))
            version = found.scalar()
    except sqlalchemy.exc.DatabaseError as error:
        raise PtlError(
            f"{where} is no database of MLflow ({error.orig})", code="tracking"
        ) from None
    finally:
        engine.dispose()
    if version == script.get_current_head():
        return CURRENT
    if version not in {one.revision for one in script.walk_revisions()}:
        raise PtlError(
            f"{where} was made by another MLflow than {mlflow.__version__}, a newer one it "
            "seems: pip install -U mlflow",
            code="tracking",
        )
    return OLDER


def bring_forward(database: Path) -> str | None:
    """Migrate our own database to the installed MLflow, which has to be imported; what was done.

    What it was is kept beside it, as `mlflow.db.before-VERSION`. To be called under its lock.

    Raises:
        PtlError: a newer MLflow made it, or the migration failed: it is as it was.
    """
    import mlflow
    from mlflow.store.db import utils

    url = f"sqlite:///{database}"
    if age(url, str(database)) == CURRENT:
        return None
    backup = database.with_name(f"{database.name}.before-{mlflow.__version__}")
    with (
        closing(sqlite3.connect(database)) as old,
        closing(sqlite3.connect(f"{backup}.draft")) as new,
    ):
        old.backup(new)
    os.replace(f"{backup}.draft", backup)
    engine = utils.create_sqlalchemy_engine(url)
    try:
        utils._upgrade_db(engine)
    except Exception as error:
        engine.dispose()
        with closing(sqlite3.connect(backup)) as old, closing(sqlite3.connect(database)) as new:
            old.backup(new)
        raise PtlError(
            f"{database} could not be migrated to MLflow {mlflow.__version__} ({error}); "
            f"it is as it was, and a copy is {backup}",
            code="tracking",
        ) from None
    engine.dispose()
    return f"{database} was migrated to MLflow {mlflow.__version__}; what it was is {backup}"
