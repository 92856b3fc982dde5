"""The engine behind its routes: sessions here, models in `training`, samplers in `sampling`."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain_recipes.engine import checkpoints, wire
from posttrain_recipes.engine.sampling import Sampling
from posttrain_recipes.engine.state import Session, State
from posttrain_recipes.engine.training import Training
from posttrain_recipes.engine.wire import RequestError

log = logging.getLogger(__name__)

SESSION_LOST_S = 900.0  # no heartbeat (one every 10 s) for so long: the client is gone


class Service:
    """The engine. `models` maps served names to directories or hub ids."""

    def __init__(self, models: Mapping[str, str], data_dir: Path) -> None:
        self.state = State(models, data_dir)
        self.training = Training(self.state)
        self.sampling = Sampling(self.state)

    def start(self) -> None:
        """Start computing; torch is imported, and the served models loaded, on the worker."""
        self.state.scheduler.start(first=self._warm_up)

    async def close(self) -> None:
        """Finish what is queued and stop."""
        await self.state.scheduler.close()
        self.state.parking.clear()

    def _warm_up(self) -> None:
        start = time.monotonic()
        for name in self.state.names:
            try:
                self.state.backend.base(name)
                log.info("loaded %s after %.1f s", name, time.monotonic() - start)
            except RequestError as error:  # told to whoever asks for it
                log.error("%s", error)

    # Sessions --------------------------------------------------------------------------------

    def create_session(self, request: wire.CreateSession) -> dict[str, Any]:
        """Begin a session."""
        session = Session(str(uuid.uuid4()), request, checkpoints.now(), time.monotonic())
        self.state.sessions[session.id] = session
        return {"session_id": session.id, "type": "create_session"}

    def heartbeat(self, request: wire.SessionRef) -> dict[str, Any]:
        """Note that a session is alive."""
        self.state.session(request.session_id)
        return {"type": "session_heartbeat"}

    def finish_session(self, session_id: str) -> dict[str, Any]:
        """Forget a session with its models and samplers. Checkpoints stay."""
        session = self.state.sessions.pop(session_id, None)
        if session is not None:
            for model_id in session.models:
                self.state.models.pop(model_id, None)
                self.state.scheduler.forget_model(model_id)
            for sampler_id in session.samplers:
                self.state.samplers.pop(sampler_id, None)
        return {}

    def reap(self) -> None:
        """End the sessions whose client is gone."""
        lost = time.monotonic() - SESSION_LOST_S
        for session in list(self.state.sessions.values()):
            if session.last_seen < lost and self.state.scheduler.idle():
                log.info("session %s has not been heard of for a while: ended", session.id)
                self.finish_session(session.id)

    def get_session(self, session_id: str) -> dict[str, Any]:
        """A session's models and samplers."""
        session = self.state.session(session_id)
        return {
            "training_run_ids": session.models,
            "sampler_ids": session.samplers,
            "user_metadata": session.request.user_metadata,
            "display_name": session.request.display_name,
        }
