"""The MLflow store: a SQLite file that is created safely, or what MLFLOW_TRACKING_URI names.

Nothing here imports mlflow until a store is opened: that import costs more than a second.
"""

from __future__ import annotations

import fcntl
import getpass
import importlib
import logging
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from posttrain_recipes import private
from posttrain_recipes.errors import PtlError, UsageError, display_path
from posttrain_recipes.shown import redact
from posttrain_recipes.tracking.databases import (
    CURRENT,
    age,
    bring_forward,
    check_address,
    check_database,
    has_tables,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "posttrain_recipes"
"""The MLflow experiment that runs go to."""

DATABASE = "mlflow.db"

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # Otherwise a line with the address is printed at the end of every run.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Traces are written from a thread of the tracker, which knows when they are done.
    "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # By default a server that is down holds a call for four minutes, and training with it.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}
"""Environment for mlflow; what the user has set wins."""


@dataclass(frozen=True)
class MlflowStore:
    """An open MLflow store, and the id of the experiment in it."""

    client: MlflowClient
    experiment_id: str
    migrated: str | None = None
    """That it was of an older MLflow, and where a copy of it is."""


def configured_uri() -> str | None:
    """The store that the environment names, or None.

    Raises:
        UsageError: what it names is no address.
    """
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        check_address(given)
    return given or None


def local_uri(home: Path) -> str:
    """The address of the SQLite store below `home`."""
    return f"sqlite:///{(home / DATABASE).resolve()}"


def is_folder(uri: str) -> bool:
    """Whether `uri` names a directory, in which MLflow keeps runs no longer."""
    return uri.startswith("file:") or "://" not in uri


def is_remote(uri: str) -> bool:
    """Whether `uri` is a server's."""
    return uri.startswith(("http://", "https://"))


def make_quiet() -> None:
    """Set what mlflow reads from the environment when it is imported."""
    # It warns of each try; the tracker says once that a server does not answer.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    # It logs each error of the database with its traceback, and raises it too.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    # Opening a store of an older mlflow or building one announces every migration.
    logging.getLogger("alembic").setLevel(logging.WARNING)


_IMPORTING = threading.Lock()


def import_mlflow() -> None:
    """Import mlflow, one thread at a time.

    Its modules import each other in circles: of two threads that begin at once, one would see half
    of it.
    """
    with _IMPORTING:
        importlib.import_module("mlflow")


def create_database(home: Path, experiment: str = EXPERIMENT) -> str:
    """Make sure that the SQLite store below `home` exists whole; returns its address.

    Processes that build the schema in one file at the same time leave it broken for good, so it is
    built under a lock, in a file of its own, and put in place when it is complete.
    """
    database = (home / DATABASE).resolve()
    if database.exists():
        return local_uri(home)
    with private.files():
        _create(database, experiment)
    return local_uri(home)


def _create(database: Path, experiment: str) -> None:
    home = database.parent
    home.mkdir(parents=True, exist_ok=True)
    with open(database.with_name(f"{DATABASE}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists():
            _build(database, (home / "artifacts").resolve(), experiment)


def _bring_forward(database: Path) -> str | None:
    with open(database.with_name(f"{DATABASE}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return bring_forward(database)


def _build(database: Path, artifacts: Path, experiment: str) -> None:
    drafts = f".{DATABASE}."
    draft = database.with_name(f"{drafts}{os.getpid()}")
    try:
        _write_empty(draft, artifacts.as_uri(), experiment)
        os.replace(draft, database)
    finally:
        # Whoever left a draft is dead: the lock is ours.
        for leftover in database.parent.glob(f"{drafts}*"):
            leftover.unlink(missing_ok=True)


def _write_empty(file: Path, artifacts: str, experiment: str) -> None:
    """A database without runs, which mlflow brings through all of its migrations in half a second.

    There is no shorter way that would be right for every version of mlflow.
    """
    import_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{file}", artifacts)
    # The default is an absolute path under whatever directory the command was started in.
    store.create_experiment(experiment, artifact_location=artifacts)
    store.engine.dispose()
    connection = sqlite3.connect(file)
    try:
        # Readers (the UI) and writers do not block each other; the mode stays with the file.
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


def server_uri() -> str | None:
    """The tracking server that the environment names, or None: runs are copied to it."""
    given = configured_uri()
    return given if given and is_remote(given) else None


_SETTINGS = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")


class CallersSettings:
    """What a program had set of MLflow before: its address, its experiment and the environment.

    It may be within a run of its own (`mlflow.start_run()`), which lies at its address.
    """

    def __init__(self) -> None:
        self.environment = {name: os.environ.get(name) for name in _SETTINGS}
        self.known = "mlflow.tracking.fluent" in sys.modules
        self.uri = self.experiment = None
        if self.known:
            from mlflow.tracking import fluent
            from mlflow.tracking._tracking_service import utils

            self.uri, self.experiment = utils._tracking_uri, fluent._active_experiment_id

    def restore(self) -> None:
        """Set it again."""
        if "mlflow.tracking.fluent" in sys.modules:
            import mlflow
            from mlflow.tracking import fluent

            mlflow.set_tracking_uri(self.uri)
            fluent._active_experiment_id = self.experiment
        for name, value in self.environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def open_store(home: Path, experiment: str = EXPERIMENT) -> MlflowStore:
    """Open the database that the environment names, or else the one below `home`."""
    make_quiet()
    import_mlflow()
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    configured = configured_uri()
    given = None if server_uri() else configured
    if given:
        check_database(given)
    uri = given or create_database(home, experiment)
    migrated = None if given else _bring_forward((home / DATABASE).resolve())
    # Traces have no client of their own: they go where the process-wide setting says.
    mlflow.set_tracking_uri(uri)
    # mlflow writes that setting to the environment, where it would pass for the user's.
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if configured:
        os.environ["MLFLOW_TRACKING_URI"] = configured
    location = None if given else (home / "artifacts").resolve().as_uri()
    try:
        client = MlflowClient(uri)
        return MlflowStore(client, experiment_id(client, experiment, location), migrated)
    except MlflowException as error:
        if given and "out-of-date" in str(error):
            require_current(given)
        raise


def require_current(uri: str) -> None:
    """See that a database that the environment names, which is not ours to change, is of the
    installed MLflow. Raises PtlError."""
    if age(uri, redact(uri)) != CURRENT:
        raise PtlError(
            f"{redact(uri)} is of an older MLflow: back it up, then run "
            f"'mlflow db upgrade {redact(uri)}'",
            code="tracking",
        )


def prepare_to_serve(home: Path) -> str | None:
    """Have a database ready for a server of the installed MLflow, which it writes to: the one that
    the environment names, or else the one below `home`, which is migrated; what was done.

    Raises:
        PtlError: it cannot be opened or written, or is of another MLflow.
    """
    make_quiet()
    if given := configured_uri():
        check_database(given)
        if given.startswith("sqlite") and has_tables(given):
            import_mlflow()
            require_current(given)
        return None
    database = (home / DATABASE).resolve()
    if not (os.access(database, os.W_OK) and os.access(database.parent, os.W_OK)):
        raise PtlError(
            f"{display_path(database)} cannot be written",
            why="MLflow writes to the database that it shows",
            hint="copy the home to where this user may write, and name the copy with --home; "
            "'ptl report RUN -o FILE' needs no server",
            code="not-writable",
        )
    import_mlflow()
    with private.files():
        return _bring_forward(database)


def frozen_uris(home: Path) -> set[str]:
    """What the runs in the database below `home` name, those that were deleted there too, read
    without writing a byte: MLflow itself needs space to open it.

    Raises:
        PtlError: something may be writing to it, or was when its process was killed.
    """
    database = (home / DATABASE).resolve()
    log = database.with_name(f"{DATABASE}-wal")
    if log.is_file() and log.stat().st_size:
        raise PtlError(
            f"{display_path(log)} holds what is not in the database yet",
            hint="free a little space by hand, and try again"
            if os.access(database, os.W_OK)
            else "let this user write there, and try again",
            code="tracking",
        )
    address = f"file:{quote(str(database))}?immutable=1"
    with closing(sqlite3.connect(address, uri=True)) as connection:
        found = connection.execute(
            "SELECT param_value FROM logged_model_params "
            "WHERE param_key IN ('checkpoint_uri', 'sampler_uri')"
        )
        return {uri for (uri,) in found}


def artifact_text(uri: str, run_id: str, path: str) -> str:
    """A text artifact of a run of the store at `uri`.

    Raises:
        UsageError: the store has no such run, or the run no such artifact.
    """
    make_quiet()
    from mlflow import MlflowClient

    try:
        with tempfile.TemporaryDirectory() as folder:
            found = MlflowClient(uri).download_artifacts(run_id, path, folder)
            return Path(found).read_text(encoding="utf-8")
    except Exception as error:
        raise UsageError(
            f"MLflow at {redact(uri)} has no {path} of a run {run_id}",
            why=redact(str(error).split("\n")[0]),
            hint="the id is that of a recipe's run, which has its stages below it",
            code="no-such-run",
        ) from None


def experiment_id(client: MlflowClient, name: str, location: str | None) -> str:
    """The experiment of that name, which is made where it is not there or was deleted."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except Exception:
            # Another process may have created it since we looked.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        # Its name stays taken, and runs cannot be added to it.
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


# --- which process holds a run -------------------------------------------------------------------


def process_start(pid: int) -> str | None:
    """What tells process `pid` from an earlier or later one of that number; None: no such process.

    Empty where the system does not say.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        try:
            # The command's name, in parentheses, may hold spaces; the rest has fixed fields.
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] == "Z":
                return None
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except (OSError, IndexError):
            return None
        return f"{fields[19]}-{boot[:8]}"
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


HOST = "ptl.host"
PROCESS = "ptl.process"


def owner_tags() -> dict[str, str]:
    """Tags that name this process and its user."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        # Containers run under user ids that have no name.
        user = "unknown"
    pid = os.getpid()
    return {
        "mlflow.user": user,
        "mlflow.source.type": "LOCAL",
        HOST: socket.gethostname(),
        PROCESS: f"{pid}@{process_start(pid) or ''}",
    }


def end_dead_runs(store: MlflowStore) -> list[str]:
    """End, as KILLED, running runs of this machine whose process is gone; returns their ids."""
    where = f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{socket.gethostname()}'"
    runs = store.client.search_runs([store.experiment_id], where, max_results=1000)
    dead: dict[str, list[Run]] = {}
    for run in runs:
        process = run.data.tags.get(PROCESS, "")
        pid, _, start = process.partition("@")
        now = process_start(int(pid)) if pid.isdigit() else None
        # A number that is in use again is another process if it started at another time.
        if now is None or (start and now and now != start):
            dead.setdefault(process, []).append(run)
    for group in dead.values():
        seen = [
            metric.timestamp
            for run in group
            for key in list(run.data.metrics)[:1]
            for metric in store.client.get_metric_history(run.info.run_id, key)
        ]
        # When it was last heard of: it may have died days ago.
        ended = max([*seen, *(run.info.start_time for run in group)])
        for run in group:
            store.client.set_terminated(run.info.run_id, "KILLED", ended)
    return [run.info.run_id for group in dead.values() for run in group]
