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
        raise UsageError(f"{short!r} is no address of MLflow: {why}", hint=HINT)

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
        if "%" in path or "#" in uri or (options and not re.fullmatch(r"(\w+=[\w.]+&?)+", options)):
            refuse("'%', '?' and '#' are read as escapes and options, not as parts of a path")


def check_database(uri: str) -> None:
    """Look whether a database can be opened at all, in moments.

    Raises:
        PtlError: it cannot be.
    """
    scheme = uri.split(":")[0].split("+")[0]
    if scheme == "sqlite" and not uri.startswith("sqlite:///file:") and uri != "sqlite://":
        path = Path(uri.partition("?")[0].removeprefix("sqlite:///"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA schema_version").fetchone()
        except (OSError, sqlite3.Error) as error:
            raise PtlError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    elif scheme in PORTS:
        parts = urlsplit(uri)
        address = parts.hostname or "localhost", parts.port or PORTS[scheme]
        with contextlib.ExitStack() as opened:
            try:
                opened.enter_context(socket.create_connection(address, CONNECT_S))
            except OSError as error:
                raise PtlError(f"{address[0]}:{address[1]} does not answer: {error}") from None


def bring_forward(database: Path) -> str | None:
    """Migrate our own database to the installed MLflow, which has to be imported; what was done.

    What it was is kept beside it, as `mlflow.db.before-VERSION`. To be called under its lock.

    Raises:
        PtlError: a newer MLflow made it, or the migration failed: it is as it was.
    """
    import mlflow
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils

    with closing(sqlite3.connect(database)) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.Error as error:
            raise PtlError(f"{database} is no database of MLflow ({error})") from None
    url = f"sqlite:///{database}"
    script = ScriptDirectory.from_config(utils._get_alembic_config(url))
    if row and row[0] == script.get_current_head():
        return None
    if not row or row[0] not in {one.revision for one in script.walk_revisions()}:
        raise PtlError(
            f"{database} was made by another MLflow than {mlflow.__version__}, a newer one it "
            "seems: pip install -U mlflow"
        )
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
            f"it is as it was, and a copy is {backup}"
        ) from None
    engine.dispose()
    return f"{database} was migrated to MLflow {mlflow.__version__}; what it was is {backup}"
