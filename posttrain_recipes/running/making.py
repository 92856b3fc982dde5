"""The records that a stage makes for later stages, on disk by batches, with their provenance.

    RUN/made/STAGE/batches/000003.jsonl     a batch, whole or not there
                   conversation.jsonl       in the end all of them, a file for each record type
                   provenance.json          what made them; they are complete only where it is

A batch is written to a temporary file that is then renamed, so that a stage that was killed goes on
with the first batch that is not there: nothing that was written is made again, or twice.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from posttrain_recipes import store
from posttrain_recipes.conversion import as_row
from posttrain_recipes.errors import writing
from posttrain_recipes.planning.plans import Plan, PlannedStage
from posttrain_recipes.records import RECORD_TYPES, Checkpoint, Record
from posttrain_recipes.store import RunRecord

NAMES: dict[type[Record], str] = {record: record.__name__.lower() for record in RECORD_TYPES}
"""What a file of each record type is called."""


@dataclass(frozen=True)
class Made:
    """The directory of the records that one stage makes."""

    path: Path

    @property
    def complete(self) -> bool:
        """Whether all of it was made."""
        return (self.path / "provenance.json").is_file()

    def left(self, fingerprint: str) -> dict[str, int] | None:
        """What an earlier try of the same stage made to its end: records by the name of their type.
        None where it did not come to its end, or where something else made them."""
        try:
            told = json.loads((self.path / "provenance.json").read_text(encoding="utf-8"))
            if told["fingerprint"] != fingerprint:
                return None
            return {Path(name).stem: int(f["records"]) for name, f in told["files"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def clear(self) -> None:
        """Remove all of it: a stage begins from nothing."""
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def batches(self) -> int:
        """How many batches there are: the number of the last one."""
        return max((int(path.stem) for path in self._batches()), default=0)

    def write(self, number: int, records: Sequence[Record]) -> None:
        """Keep batch `number`, counted from 1."""
        lines = [json.dumps([NAMES[type(r)], as_row(r)], ensure_ascii=False) for r in records]
        store.write_atomic(self._batch(number), "".join(line + "\n" for line in lines))

    def forget_after(self, number: int) -> None:
        """Remove batches past `number`: what comes after that step is made again."""
        for path in self._batches():
            if int(path.stem) > number:
                path.unlink()

    def finish(self, provenance: Mapping[str, Any]) -> dict[str, int]:
        """Put the batches together, a file for each record type, and say where they came from.

        Returns the number of records by the name of their type.
        """
        with writing(self.path):
            told = self._put_together()
        whole = {**provenance, "files": told, "made": store.now()}
        text = json.dumps(whole, indent=1, ensure_ascii=False)
        store.write_atomic(self.path / "provenance.json", text + "\n")
        shutil.rmtree(self.path / "batches", ignore_errors=True)
        return {Path(name).stem: file["records"] for name, file in told.items()}

    def _put_together(self) -> dict[str, dict[str, Any]]:
        self.path.mkdir(parents=True, exist_ok=True)
        files = _Files(self.path)
        try:
            for path in sorted(self._batches()):
                with path.open(encoding="utf-8") as lines:
                    for line in lines:
                        files.add(*json.loads(line))
            return files.close()
        except BaseException:
            files.discard()
            raise

    def _batch(self, number: int) -> Path:
        return self.path / "batches" / f"{number:06d}.jsonl"

    def _batches(self) -> Iterator[Path]:
        return (self.path / "batches").glob("[0-9]*.jsonl")


def provenance(
    plan: Plan, run: RunRecord, stage: PlannedStage, start: Checkpoint
) -> dict[str, Any]:
    """What made a stage's records: enough to make them again."""
    return {
        "recipe": plan.name,
        "run": run.id,
        "stage": stage.name,
        "method": stage.inputs["method"],
        "model": stage.model,
        "start": start.sampler_uri or start.base_model,
        "seed": stage.seed,
        "dataset": {"name": stage.data.label, "digest": stage.data.digest} if stage.data else None,
        "fingerprint": stage.fingerprint,
        "versions": {
            name: importlib.metadata.version(name) for name in ("posttrain-recipes", "tinker")
        },
    }


class _Files:
    """A file for each record type, renamed to its name at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open: dict[str, IO[bytes]] = {}
        self.counts: dict[str, int] = {}
        self.hashes: dict[str, Any] = {}

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        if name not in self.open:
            self.open[name] = (self.folder / f".{name}.tmp").open("wb")
            self.counts[name], self.hashes[name] = 0, hashlib.sha256()
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        self.open[name].write(line)
        self.hashes[name].update(line)
        self.counts[name] += 1

    def close(self) -> dict[str, dict[str, Any]]:
        told = {}
        for name, file in self.open.items():
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(file.name, self.folder / f"{name}.jsonl")
            told[f"{name}.jsonl"] = {
                "records": self.counts[name],
                "sha256": self.hashes[name].hexdigest(),
            }
        return told

    def discard(self) -> None:
        for file in self.open.values():
            file.close()
            Path(file.name).unlink(missing_ok=True)
