"""Handlers of look-ups: models served, sessions, training runs, checkpoints."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, Field
from pydantic.dataclasses import dataclass

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.core.registry import Session, State
from posttrain_recipes.engine.core.training import OPTIMIZER
from posttrain_recipes.engine.storage.checkpoints import KINDS, CheckpointRecord, parse_path

OWNER = "local"


@dataclass(frozen=True)
class StatusQuery:
    """A filter: sessions in this state, and, of ended ones, with one of these `reasons`."""

    type: str
    reasons: list[str] | None = None


@dataclass(frozen=True)
class OwnerQuery:
    """A filter by owner; this engine has a single one."""

    type: str = "own"
    owner_urns: list[str] | None = None


@dataclass(frozen=True)
class Cursor:
    """The last session of the page before."""

    last_created_at: AwareDatetime
    last_session_id: str


@dataclass(frozen=True)
class SearchSessions:
    """A search; what is None matches everything."""

    session_id: str | None = None
    project_ids: list[str] | None = None
    user_metadata: dict[str, str] = Field(default_factory=dict)
    display_name: str | None = None
    owner: OwnerQuery = Field(default_factory=OwnerQuery)
    statuses: list[StatusQuery] | None = None
    limit: int = Field(default=50, ge=1, le=200)
    cursor: Cursor | None = None


def sessions(state: State, limit: int, offset: int) -> dict[str, Any]:
    """A page of the ids of sessions, the newest first; those that ended are among them."""
    return {"sessions": [session.id for session in _all(state)[offset : offset + limit]]}


def search_sessions(state: State, query: SearchSessions) -> dict[str, Any]:
    """Sessions that match, the newest first."""
    found = [session for session in _all(state) if _matches(session, query)]
    if query.cursor is not None:
        last = (query.cursor.last_created_at, query.cursor.last_session_id)
        found = [session for session in found if _age(session) < last]
    page, more = found[: query.limit], len(found) > query.limit
    cursor = {"last_created_at": page[-1].created, "last_session_id": page[-1].id} if more else None
    return {"sessions": [_summary(state, session) for session in page], "next_cursor": cursor}


def _all(state: State) -> list[Session]:
    known = [*state.sessions.values(), *state.finished.values()]
    return sorted(known, key=_age, reverse=True)


def _age(session: Session) -> tuple[datetime, str]:
    return datetime.fromisoformat(session.created), session.id


def _matches(session: Session, query: SearchSessions) -> bool:
    asked, metadata = session.request, session.request.user_metadata or {}
    if query.session_id is not None or query.display_name is not None:
        name = (asked.display_name or "").lower()
        words = (query.display_name or "").lower().split()
        named = bool(words) and all(word in name for word in words)
        if session.id != query.session_id and not named:
            return False
    if query.project_ids is not None and asked.project_id not in query.project_ids:
        return False
    if query.owner.type == "user" and OWNER not in (query.owner.owner_urns or ()):
        return False
    if any(metadata.get(key) != value for key, value in query.user_metadata.items()):
        return False
    return query.statuses is None or any(_in(session, status) for status in query.statuses)


def _in(session: Session, query: StatusQuery) -> bool:
    status = session.status or {"type": None}
    reason = status.get("reason", {}).get("type")
    return status["type"] == query.type and (query.reasons is None or reason in query.reasons)


def _summary(state: State, session: Session) -> dict[str, Any]:
    saved = [item for run in session.models for item in state.store.checkpoints(run)]
    return {
        "session_id": session.id,
        "created_at": session.created,
        "owner": OWNER,
        "project_id": session.request.project_id or "",
        "status": session.status,
        "checkpoints_count": len(saved),
        "display_name": session.request.display_name,
        "user_metadata": session.request.user_metadata,
        "checkpoint_storage_bytes": sum(size for _, size in saved),
    }


def capabilities(state: State) -> dict[str, Any]:
    """The models served by name, and their context windows; and what stands in for losses that this
    engine does not have, which the SDK does not read."""
    return {
        "substituted_losses": state.substitutes,
        "supported_models": [
            {
                "model_name": name,
                "max_context_length": _context(path),
                "trainable": state.double is None or state.double.trains(name),
                "sampleable": True,
            }
            for name, path in state.names.items()
        ],
    }


def training_run(state: State, run: str) -> dict[str, Any]:
    """One run with its latest checkpoints. Raises RequestError 404."""
    record = state.store.run(run)
    saved = [_checkpoint(item) for item in state.store.checkpoints(run)]
    model = state.models.get(run)

    def last(kind: str) -> dict[str, Any] | None:
        return next((c for c in saved if c["checkpoint_type"] == kind), None)

    return {
        "training_run_id": run,
        "base_model": record.base_model,
        "model_owner": OWNER,
        "is_lora": True,
        "lora_rank": record.lora.rank,
        "last_request_time": model.last_request if model else record.created,
        "last_checkpoint": last("training"),
        "last_sampler_checkpoint": last("sampler"),
        "user_metadata": record.user_metadata,
    }


def training_runs(state: State, limit: int, offset: int) -> dict[str, Any]:
    """A page of all runs, the newest first."""
    records = state.store.runs()
    page = records[offset : offset + limit]
    return {
        "training_runs": [training_run(state, record.run) for record in page],
        "cursor": {"offset": offset, "limit": limit, "total_count": len(records)},
    }


def checkpoints(state: State, run: str | None, limit: int | None, offset: int) -> dict[str, Any]:
    """A run's checkpoints, or a page of all, the newest first."""
    if run is not None:
        state.store.run(run)
    found = [_checkpoint(item) for item in state.store.checkpoints(run)]
    if limit is None:
        return {"checkpoints": found}
    cursor = {"offset": offset, "limit": limit, "total_count": len(found)}
    return {"checkpoints": found[offset : offset + limit], "cursor": cursor}


def weights_info(state: State, request: wire.PathRef) -> dict[str, Any]:
    """What a checkpoint holds. Raises RequestError 404, or 422 where its files are not what was
    saved: they are read to the end, which may take a second."""
    kept = state.store.find(parse_path(request.tinker_path))
    state.store.verify(kept)
    record = kept.record
    return {
        "base_model": record.base_model,
        "optimizer_config": OPTIMIZER,
        "is_lora": True,
        "lora_rank": record.lora.rank,
        "train_unembed": record.lora.train_unembed,
        "train_mlp": record.lora.train_mlp,
        "train_attn": record.lora.train_attn,
    }


def _context(path: str) -> int | None:
    try:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    value = config.get("max_position_embeddings")
    return value if isinstance(value, int) else None


def _checkpoint(item: tuple[CheckpointRecord, int]) -> dict[str, Any]:
    record, size = item
    path = parse_path(record.path)
    return {
        "checkpoint_id": f"{path.kind}/{path.name}",
        "checkpoint_type": KINDS[path.kind],
        "time": record.time,
        "tinker_path": record.path,
        "size_bytes": size,
        "public": record.public,
        "user_metadata": record.user_metadata,
        "expires_at": record.expires_at,
    }
