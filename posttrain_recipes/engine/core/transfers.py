"""Handlers of checkpoint exports (external weights), their download, and checkpoint copies.

The SDK and `tinker checkpoint download` export a training checkpoint as external weights (PEFT's
files, encrypted with age where they are asked to be), ask for an address for each file, and fetch
those without a header: each address carries a signature that holds for an hour.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from pydantic import Field
from pydantic.dataclasses import dataclass

from posttrain_recipes.engine.core.futures import Pending
from posttrain_recipes.engine.core.registry import Model, State
from posttrain_recipes.engine.storage import checkpoints
from posttrain_recipes.engine.storage.checkpoints import (
    CheckpointPath,
    CheckpointRecord,
    TrainingRun,
)
from posttrain_recipes.engine.wire import RequestError

SIGNED = "/files/"
"""URLs below this path are signed, and need no token."""
URL_SECONDS = 3600
_COPIES = uuid.UUID("4f0c7a86-8c4e-4f0a-9d55-3b1f9b1b6a11")  # names copies by their idempotency key


@dataclass(frozen=True)
class SaveExternal:
    """Export a model's weights as files to download."""

    model_id: str
    path: str
    seq_id: int
    ttl_seconds: int | None = None
    age_encryption_recipients: list[str] | None = Field(default=None, max_length=10)


@dataclass(frozen=True)
class CopyWeights:
    """Copy a checkpoint into a run of its own; projects mean nothing here."""

    source_path: str
    session_id: str | None = None
    model_seq_id: int | None = None
    destination_project_id: str | None = None
    ttl_seconds: int | None = None
    weights_access_token: str | None = None


@dataclass(frozen=True)
class Signer:
    """Signs addresses with the engine's token, so that whoever is given one may read it a while."""

    token: str

    def sign(self, path: str, expires: int) -> str:
        """The signature that lets anybody read `path` until `expires` (seconds since 1970)."""
        message = f"{expires} {path}".encode()
        return hmac.new(self.token.encode(), message, hashlib.sha256).hexdigest()

    def signed(self, path: str, query: Mapping[str, str], now: float) -> bool:
        """Whether a request for `path` carries a signature that holds."""
        expires = query.get("expires", "")
        return (
            expires.isdecimal()
            and len(expires) < 12
            and now < int(expires)
            and hmac.compare_digest(
                query.get("signature", "").encode(), self.sign(path, int(expires)).encode()
            )
        )


class Transfers:
    """External weights and copies."""

    def __init__(self, state: State) -> None:
        self.state = state

    def save_external(self, request: SaveExternal) -> Pending:
        """Queue an export. Raises RequestError 422 for recipients that are none."""
        model = self.state.model(request.model_id)
        path = CheckpointPath(model.id, checkpoints.EXTERNAL, checkpoints.check_name(request.path))
        encrypt = _encryption(request.age_encryption_recipients or [])
        expires = checkpoints.expiry(request.ttl_seconds)
        record = CheckpointRecord(
            str(path), model.base_model, model.lora, 0, checkpoints.now(), expires
        )  # fmt: skip

        def work() -> dict[str, str]:
            self._export(model, path, record, encrypt)
            return {"path": str(path), "type": "save_weights_external"}

        return self.state.scheduler.submit_ordered(model.id, request.seq_id, work)

    def _export(
        self, model: Model, path: CheckpointPath, record: CheckpointRecord, encrypt: Encryption
    ) -> None:
        if model.adapter is None:
            raise RequestError(422, f"model {model.id} could not be created; see that error")
        base, adapter = self.state.base_models.get(model.base_model), model.adapter

        def write(folder: Path) -> None:
            adapter.snapshot().save(folder, base.path, base.targets)
            if encrypt:
                for file in list(folder.iterdir()):
                    encrypt(file)
                    file.unlink()

        record = replace(record, step=adapter.step, time=checkpoints.now())
        self.state.store.save(path, record, write, overwrite=True)

    def urls(self, path: CheckpointPath, origin: str, signer: Signer) -> dict[str, object]:
        """An address for each file of an export, below `origin` (http://host:port). Raises
        RequestError 422 where the files are not what was saved: they are read to the end."""
        if path.kind != checkpoints.EXTERNAL:
            raise RequestError(422, f"{path} is no external weights checkpoint")
        kept = self.state.store.find(path)
        self.state.store.verify(kept)
        expires = int(time.time()) + URL_SECONDS
        urls = {}
        for file in sorted(kept.folder.iterdir()):
            if file.name != checkpoints.DESCRIPTION and not file.name.startswith("."):
                where = f"{SIGNED}{path.run}/{path.name}/{file.name}"
                signature = signer.sign(where, expires)
                urls[file.name] = (
                    f"{origin}{quote(where, safe='/:')}?expires={expires}&signature={signature}"
                )
        return {"urls": urls, "expires": datetime.fromtimestamp(expires, UTC).isoformat()}

    def file(self, run: str, name: str, file: str) -> Path:
        """A file of an export. Raises RequestError 404."""
        path = CheckpointPath(
            checkpoints.check_run(run), checkpoints.EXTERNAL, checkpoints.check_name(name)
        )
        found = self.state.store.folder(path) / checkpoints.check_name(file)
        if file == checkpoints.DESCRIPTION or not found.is_file():
            raise RequestError(404, f"{path} has no file {file}")
        return found

    def copy(self, request: CopyWeights, idempotency_key: str | None) -> dict[str, str]:
        """Copy a checkpoint; the copy shares the files' bytes and expires on its own. The same
        idempotency key gives the same copy."""
        source = checkpoints.parse_path(request.source_path)
        expires = checkpoints.expiry(request.ttl_seconds)
        record = self.state.store.record(source)
        if request.session_id is not None:
            session = self.state.session(request.session_id).id
            seq = request.model_seq_id if request.model_seq_id is not None else 0
        else:
            unique = f"{idempotency_key}:{source}" if idempotency_key else uuid.uuid4().hex
            session, seq = str(uuid.uuid5(_COPIES, unique)), 0
        run = checkpoints.check_run(f"{session}:train:{seq}")
        target = CheckpointPath(run, source.kind, source.name)
        if run in self.state.models:
            raise RequestError(422, f"{run} is in training: copy to another model_seq_id")
        copied = replace(record, path=str(target), expires_at=expires, public=False)

        def link(folder: Path) -> None:
            kept = self.state.store.find(source)
            self.state.store.verify(kept)  # the copy's hashes are made anew
            for file in kept.folder.iterdir():
                if file.name != checkpoints.DESCRIPTION:
                    _link(file, folder / file.name)

        metadata = {"copied_from": str(source)}
        self.state.store.add_run(
            TrainingRun(run, session, record.base_model, record.lora, checkpoints.now(), metadata)
        )
        self.state.store.save(target, copied, link, overwrite=True)
        return {"tinker_path": str(target)}


def _link(source: Path, target: Path) -> None:
    """Hard-link `source` to `target`, or copy it: a checkpoint's files are never changed."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


class Encryption:
    """Encrypts files to recipients, in the age format (age-encryption.org); false without any."""

    def __init__(self, recipients: list[object]) -> None:
        self.recipients = recipients

    def __bool__(self) -> bool:
        return bool(self.recipients)

    def __call__(self, file: Path) -> None:
        """Write `file` encrypted beside it, as `file`.age."""
        import pyrage

        pyrage.encrypt_file(str(file), f"{file}.age", self.recipients)


def _encryption(recipients: list[str]) -> Encryption:
    if not recipients:
        return Encryption([])
    try:
        import pyrage
    except ImportError:
        raise RequestError(
            422,
            "age_encryption_recipients needs the package pyrage where the engine runs: pip "
            "install pyrage, or export without encryption",
        ) from None
    found: list[object] = []
    for text in recipients:
        kind = pyrage.ssh if text.startswith("ssh-") else pyrage.x25519
        try:
            found.append(kind.Recipient.from_str(text))
        except pyrage.RecipientError as error:
            raise RequestError(422, f"age_encryption_recipients: {text!r}: {error}") from None
    return Encryption(found)
