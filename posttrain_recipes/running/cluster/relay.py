"""What a stage on a node tells the driver, as it happens: calls of its reporter and of its run in
MLflow, which the driver makes in its stead, and what its record has become.

Everything is pickled when it is told, as records change later. Plans do not travel: each side has
its own, and a stage or an eval in a call is named.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from posttrain_recipes.planning.plans import PlannedEval, PlannedStage
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.store import Spent, StageRecord

EVERY_S = 0.3
"""Between two times that a node sends what it has to say."""


class Link(Protocol):
    """The way from a node to the driver."""

    def put(self, batch: Sequence[bytes]) -> str | None:
        """Hand over events in their order. Returns why the stage should stop, None where it should
        not. Raises `SupersededError` where another node has the stage now, and anything else where
        there is no driver any more."""


class SupersededError(Exception):
    """Another node goes on with the stage: this one was taken for dead."""


@dataclass(frozen=True)
class Begun:
    """A node has begun with the stage, or gone on with it."""

    node: str
    step: int
    """The step that it goes on from."""


@dataclass(frozen=True)
class Call:
    """A call of the reporter, or of the stage's run in MLflow."""

    of: str
    """`reporter` or `child`."""
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class StageSaved:
    """What is known of the stage; the checkpoints that it names are below the URL."""

    record: StageRecord


@dataclass(frozen=True)
class Used:
    """What the stage has spent, after a step."""

    training: Spent
    evaluation: Spent
    lost: Spent


Event = Begun | Call | StageSaved | Used


@dataclass(frozen=True)
class _Stage:
    """The stage itself, in a call."""


@dataclass(frozen=True)
class _Eval:
    """One of its evals."""

    name: str


@dataclass(frozen=True)
class _Record:
    """What is known of it."""


def _named(value: Any) -> Any:
    if isinstance(value, PlannedStage):
        return _Stage()
    if isinstance(value, PlannedEval):
        return _Eval(value.name)
    return _Record() if isinstance(value, StageRecord) else value


def _found(value: Any, stage: PlannedStage, kept: StageRecord) -> Any:
    if isinstance(value, _Stage):
        return stage
    if isinstance(value, _Eval):
        return next(planned for planned in stage.evals if planned.name == value.name)
    return kept if isinstance(value, _Record) else value


# --- on the node ---------------------------------------------------------------------------------


class Outbox:
    """Sends events in their order, some at a time, from a thread of its own.

    Args:
        stop: called with why, where the driver wants the stage to stop or is gone.
    """

    def __init__(self, link: Link, stop: Callable[[str], None]) -> None:
        self._link, self._stop = link, stop
        self._waiting: list[bytes] = []
        self._adding, self._sending = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        self._superseded = False
        self._thread = threading.Thread(target=self._send_always, name="outbox", daemon=True)
        self._thread.start()

    def add(self, event: Event) -> None:
        """Have an event sent."""
        pickled = pickle.dumps(event)
        with self._adding:
            self._waiting.append(pickled)

    def close(self) -> None:
        """Send what waits; nothing more comes."""
        self._closed.set()
        self._thread.join()
        self.flush()

    def _send_always(self) -> None:
        while not self._closed.wait(EVERY_S):
            self.flush()

    def flush(self) -> bool:
        """Send what waits. False where another node has the stage."""
        with self._sending:
            with self._adding:
                batch, self._waiting = self._waiting, []
            try:
                why = self._link.put(batch)
            except SupersededError:
                why, self._superseded = "another node goes on with the stage", True
            except Exception as error:  # of the cluster's own kinds
                why = f"the driver cannot be reached any more ({type(error).__name__})"
        if why is not None:
            self._stop(why)
        return not self._superseded


class RelayChild:
    """A stage's run in MLflow, written by the driver. Stands in for a `StageRun`."""

    def __init__(self, outbox: Outbox, run_id: str) -> None:
        self.run_id = run_id
        self._outbox = outbox

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> None:
            self._outbox.add(Call("child", name, args, kwargs))

        return call


def relay_reporter(outbox: Outbox, kept: StageRecord) -> Reporter:
    """A reporter whose calls the driver makes."""
    told = Reporter()

    def relayed(name: str) -> Callable[..., None]:
        def call(*args: Any) -> None:
            outbox.add(Call("reporter", name, tuple(map(_named, args)), {}))
            if name in ("step", "made"):
                outbox.add(Used(kept.training, kept.evaluation, kept.lost))

        return call

    for name in vars(Reporter):
        if not name.startswith("_"):
            setattr(told, name, relayed(name))
    return told


# --- on the driver -------------------------------------------------------------------------------


def make(call: Call, of: object, stage: PlannedStage, kept: StageRecord) -> None:
    """Make a call that was relayed."""
    getattr(of, call.name)(*(_found(value, stage, kept) for value in call.args), **call.kwargs)


def become(kept: StageRecord, told: StageRecord) -> None:
    """Have a record say what another one does."""
    for one in fields(StageRecord):
        setattr(kept, one.name, getattr(told, one.name))
