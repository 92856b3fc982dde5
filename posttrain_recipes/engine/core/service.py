"""The engine's service, which the routes call: sessions, start and shutdown.

Models in training are handled by `training`, samplers by `sampling`, exports and copies by
`transfers`.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.core.hosted import HostedDouble
from posttrain_recipes.engine.core.metrics import Metrics
from posttrain_recipes.engine.core.registry import Session, State
from posttrain_recipes.engine.core.sampling import Sampling
from posttrain_recipes.engine.core.training import Training
from posttrain_recipes.engine.core.transfers import Transfers
from posttrain_recipes.engine.storage import checkpoints
from posttrain_recipes.engine.wire import RequestError

log = logging.getLogger(__name__)

SESSION_LOST_S = 900.0  # no heartbeat (one every 10 s) for so long: the client is gone
FINISHED_KEPT = 1000
FETCH_S = 2.0  # within which a connected client fetches an answer


@dataclass(frozen=True)
class FinishReason:
    """How a session ended."""

    type: Literal["success", "errored", "interrupted"] = "success"


@dataclass(frozen=True)
class Finish:
    """How a client says that its session ended, when it ends it."""

    reason: FinishReason | None = None
    detail: str | None = None


class Service:
    """The engine. `models` maps served names to directories or hub ids; with `only_served` clients
    may name no other base model. `chat_template` stands in for those of the models,
    `dtype` for the numbers that they would be held in, `substitutes` (name -> name) for losses
    that this engine does not have; `double` has it meet programs as hosted Tinker does."""

    def __init__(
        self,
        models: Mapping[str, str],
        data_dir: Path,
        only_served: bool = False,
        chat_template: str | None = None,
        dtype: str | None = None,
        substitutes: Mapping[str, str] | None = None,
        double: HostedDouble | None = None,
    ) -> None:
        self.chat_template = chat_template
        self.metrics = Metrics()
        self.state = State(
            models, data_dir, self.metrics.answered, only_served, dtype, substitutes, double
        )
        self.training = Training(self.state)
        self.sampling = Sampling(self.state)
        self.transfers = Transfers(self.state)

    def start(self) -> None:
        """Start computing; torch is imported, and the served models loaded, on the worker."""
        self.state.scheduler.start(first=self._warm_up)

    async def close(self, grace_s: float = 10.0) -> None:
        """Finish what is queued within `grace_s` seconds, and stop."""
        await self.state.scheduler.close(grace_s)
        self.state.offloading.clear()

    def drained(self) -> bool:
        """Whether no request runs or waits, and the answers of the last `FETCH_S` seconds have been
        fetched."""
        scheduler = self.state.scheduler
        fresh = time.monotonic() - FETCH_S
        return scheduler.idle and not scheduler.futures.unfetched_since(fresh)

    def _warm_up(self) -> None:
        start = time.monotonic()
        if self.state.names:
            from transformers.utils import logging as progress

            progress.disable_progress_bar()
        for name in self.state.names:
            try:
                self.state.base_models.get(name)
                log.info("loaded %s after %.1f s", name, time.monotonic() - start)
            except RequestError as error:  # told to whoever asks for it
                log.error("%s", error)

    def refused(self, body: bytes) -> None:
        """A model's operation, in `body`, was refused for good: those after it do not wait for
        it."""
        named = wire.addressed(body)
        if named is not None and named[0] in self.state.models:
            self.state.scheduler.skip(*named)

    # Sessions --------------------------------------------------------------------------------

    def create_session(self, request: wire.CreateSession) -> dict[str, Any]:
        """Start a session."""
        session = Session(str(uuid.uuid4()), request, checkpoints.now(), time.monotonic())
        self.state.sessions[session.id] = session
        return {"session_id": session.id, "type": "create_session"}

    def heartbeat(self, request: wire.SessionRef) -> dict[str, Any]:
        """Note that a session is alive. Raises RequestError 410, at which the SDK stops."""
        if request.session_id in self.state.finished:
            raise RequestError(410, f"session {request.session_id} has ended")
        self.state.session(request.session_id)
        return {"type": "session_heartbeat"}

    def finish_session(self, session_id: str, how: Finish | None = None) -> dict[str, Any]:
        """End a session: its models and samplers go, its checkpoints stay. The first end counts."""
        session = self.state.sessions.pop(session_id, None)
        if session is None:
            return {}
        for model_id in session.models:
            self.state.models.pop(model_id, None)
            self.state.scheduler.forget_model(model_id)
        for sampler_id in session.samplers:
            self.state.samplers.pop(sampler_id, None)
        session.losses.clear()
        self.state.records.forget(session_id)
        if how is not None:
            reason = (how.reason or FinishReason()).type
            session.status = {
                "type": "client_finished", "reason": {"type": reason}, "detail": how.detail
            }  # fmt: skip
        else:
            session.status = None
        finished = self.state.finished
        finished[session_id] = session
        while len(finished) > FINISHED_KEPT:
            finished.popitem(last=False)
        return {}

    def reap(self) -> None:
        """End the sessions whose client is gone, and remove what has expired."""
        lost = time.monotonic() - SESSION_LOST_S
        for session in list(self.state.sessions.values()):
            if session.last_seen < lost:
                log.info("session %s has sent no heartbeat for a while: ended", session.id)
                self.finish_session(session.id)
        self.state.scheduler.futures.sweep()

    def get_session(self, session_id: str) -> dict[str, Any]:
        """A session's models and samplers; to look at one does not keep it alive."""
        session = self.state.sessions.get(session_id) or self.state.finished.get(session_id)
        if session is None:
            raise RequestError(404, f"there is no session {session_id}")
        return {
            "training_run_ids": session.models,
            "sampler_ids": session.samplers,
            "user_metadata": session.request.user_metadata,
            "display_name": session.request.display_name,
        }
