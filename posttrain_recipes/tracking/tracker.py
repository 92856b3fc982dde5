"""Logs a run to MLflow without ever failing it: a run for the recipe, nested ones for its stages.

It is written to a database; a server is kept up to date by `mirror`.

Nothing here may take training down: a write that fails is reported once, kept, and tried again at
the next flush. A process that is killed loses the metrics of its last few steps at most.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from posttrain_recipes.shown import redact
from posttrain_recipes.tracking import mlstore
from posttrain_recipes.tracking.delivery import Deliveries
from posttrain_recipes.tracking.mirror import COPIED, WANTED, Copying, Mirror
from posttrain_recipes.tracking.mlstore import MlflowStore
from posttrain_recipes.tracking.runs import RecipeRun, closing

logger = logging.getLogger(__name__)


class MlflowTracker:
    """Writes runs to MLflow: to the store below `home`, or where MLFLOW_TRACKING_URI says."""

    def __init__(
        self,
        home: Path,
        experiment: str = mlstore.EXPERIMENT,
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        self.home = home
        self._warn = warn
        self.experiment = experiment
        self.problems: list[str] = []
        """What could not be tracked, for the report; each kind once."""
        self._kinds: set[str] = set()
        self._store: MlflowStore | None = None
        self._failed = False
        self._told = False
        self._closed = False
        self._lock = threading.Lock()
        self._opener: threading.Thread | None = None

    @property
    def uri(self) -> str:
        """What `mlflow ui --backend-store-uri` takes; passwords are left out."""
        return redact(mlstore.configured_uri() or mlstore.local_uri(self.home))

    def start(self) -> None:
        """Open the store in the background: mlflow takes seconds to import and set up."""
        if self._opener is None:
            # A daemon, so that a command that fails at once does not wait for it.
            self._opener = threading.Thread(target=self._prepare, name="tracking", daemon=True)
            self._opener.start()

    def store(self) -> MlflowStore | None:
        """The open store; None where it cannot be opened, which `problems` tells."""
        if self._opener is not None:
            self._opener.join()
        with self._lock:
            if self._store is None and not self._failed:
                try:
                    self._store = mlstore.open_store(self.home, self.experiment)
                except Exception as error:
                    self._failed = True
                    why = _NO_FOLDER if mlstore.is_folder(self.uri) else error
                    self.report(f"open {self.uri}, so that nothing is tracked", why)
            if self._store is not None and self._store.migrated and not self._told:
                self._told = True
                self._warn(self._store.migrated)
            return self._store

    def _prepare(self) -> None:
        # Tried again by whoever needs it: imports of several threads can get in each other's way.
        with contextlib.suppress(Exception), self._lock:
            if not self._closed:
                self._store = mlstore.open_store(self.home, self.experiment)
            if self._closed and not self._before.known:
                # The run failed at once, and nobody waited for this.
                self._before.restore()

    def __enter__(self) -> MlflowTracker:
        self._before = mlstore.CallersSettings()
        return self

    def __exit__(self, *_: object) -> None:
        """Give MLflow's settings, which hold for the whole process, back to the program."""
        self._closed = True
        # A store that is still being opened gives them back itself: nobody waits for it.
        if self._lock.acquire(blocking=self._before.known):
            try:
                self._before.restore()
            finally:
                self._lock.release()

    def report(self, what: str, error: BaseException | str) -> None:
        """Remember that `what` failed, and warn the first time."""
        if what not in self._kinds:
            self._kinds.add(what)
            reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            short = reason if len(reason) <= 600 else f"{reason[:600]}…"
            text = redact(f"MLflow: could not {what}: {short}")
            self.problems.append(text)
            self._warn(text)

    def mark_dead_runs(self) -> list[str]:
        """End, as killed, the runs that processes of this machine left behind; returns their ids.

        A run whose process is gone without a word (power cut, `kill -9`) would be shown as running
        for ever.
        """
        store = self.store()
        if store is None:
            return []
        try:
            return mlstore.end_dead_runs(store)
        except Exception as error:
            self.report("end the runs of dead processes", error)
            return []

    @contextmanager
    def run(
        self,
        *,
        recipe: str,
        run_name: str,
        resolved_yaml: str,
        description_md: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        told: Deliveries | None = None,
    ) -> Iterator[RecipeRun]:
        """The run of a recipe. `run_id` goes on with an earlier one where the store has it; `told`
        are trackers that hear the same."""
        labels, known = tags or {}, params or {}
        run = RecipeRun(self, recipe, run_name, labels, known, run_id, description_md, told)
        run.write_text(resolved_yaml, "recipe.yaml")
        server = mlstore.server_uri()
        copying = Copying(Mirror(self.home, server), self._warn) if server and run.run_id else None
        if copying is not None and server:
            run.set_tags({WANTED: redact(server), COPIED: ""})
            copying.start()
        try:
            with _terminable(), closing(run):
                yield run
        finally:
            if copying is not None:
                copying.finish()


_NO_FOLDER = (
    "MLflow takes no directory as its store any more; set MLFLOW_TRACKING_URI to "
    "sqlite:///PATH/mlflow.db "
    "or a server's address, or unset it for the store beside the runs"
)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises SystemExit inside, unless the program already does something about it."""

    def leave(signum: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signum)

    mine = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if mine:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
