"""The checkpoints that the embedded engine keeps in a home, read without starting it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from posttrain_recipes.errors import PtlError

if TYPE_CHECKING:
    from posttrain_recipes.engine.storage.checkpoints import CheckpointRecord


def record(path: str, home: Path) -> CheckpointRecord | None:
    """The description of a checkpoint of the engine in `home`; None if it is not there."""
    from posttrain_recipes.engine.storage.checkpoints import CheckpointStore, parse_path
    from posttrain_recipes.engine.wire import RequestError

    if not (home / "engine" / "runs").is_dir():
        return None
    try:
        return CheckpointStore(home / "engine").record(parse_path(path))
    except RequestError as error:
        if error.status == 404:
            return None
        raise PtlError(f"the checkpoint {path} cannot be used", why=str(error)) from None


def folder(path: str, home: Path) -> Path:
    """Where a checkpoint's files lie, after they were held against their hashes.

    Raises:
        PtlError: it is not there, or not as it was written.
    """
    from posttrain_recipes.engine.storage.checkpoints import CheckpointStore, parse_path
    from posttrain_recipes.engine.wire import RequestError

    kept = CheckpointStore(home / "engine")
    try:
        found = kept.find(parse_path(path))
        kept.verify(found)
        return found.folder
    except RequestError as error:
        raise PtlError(str(error)) from None


def first_of_same(path: str, home: Path) -> str:
    """The oldest checkpoint with the same weights: what was measured of it is known."""
    from posttrain_recipes.engine.storage.checkpoints import ADAPTER_FILE, CheckpointStore

    store = CheckpointStore(home / "engine")
    there = [record for record, _ in reversed(store.checkpoints())]
    own = next(record for record in there if record.path == path)
    held = (own.files or {}).get(ADAPTER_FILE)
    for record in there:
        same = (record.files or {}).get(ADAPTER_FILE) == held and record.lora == own.lora
        kind = record.path.split("/")[3:4] == path.split("/")[3:4]
        if held and same and kind and record.base_model == own.base_model:
            return record.path
    return path
