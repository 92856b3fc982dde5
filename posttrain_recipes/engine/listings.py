"""What a client can look up: models served, training runs, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.checkpoints import KINDS, Record, parse_path
from posttrain_recipes.engine.state import State
from posttrain_recipes.engine.training import OPTIMIZER


def capabilities(state: State) -> dict[str, Any]:
    """The models served by name, and their context windows."""
    return {
        "supported_models": [
            {
                "model_name": name,
                "max_context_length": _context(path),
                "trainable": True,
                "sampleable": True,
            }
            for name, path in state.names.items()
        ]
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
        "model_owner": "local",
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
    """What a checkpoint holds. Raises RequestError 404."""
    record = state.store.record(parse_path(request.tinker_path))
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


def _checkpoint(item: tuple[Record, int]) -> dict[str, Any]:
    record, size = item
    path = parse_path(record.path)
    return {
        "checkpoint_id": f"{path.kind}/{path.name}",
        "checkpoint_type": KINDS[path.kind],
        "time": record.time,
        "tinker_path": record.path,
        "size_bytes": size,
        "public": False,
        "user_metadata": record.user_metadata,
        "expires_at": record.expires_at,
    }
