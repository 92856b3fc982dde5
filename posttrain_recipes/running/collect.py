"""Garbage collection of checkpoints that no run references: finding them, their size, deletion."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain_recipes import private
from posttrain_recipes.errors import PtlError
from posttrain_recipes.plugin import Connection, Engine
from posttrain_recipes.registry import Registry
from posttrain_recipes.store import RunRecord, StageRecord
from posttrain_recipes.tracking import mlstore
from posttrain_recipes.waiting import EngineWaiter, GoneError

_WRITTEN = re.compile(r"tinker://[^\s\"\\]+")
"""What a recipe names: a start, or a teacher's weights."""
PAGE = 100
"""Checkpoints that a service is asked for at a time."""


@dataclass(frozen=True)
class Garbage:
    """A checkpoint that can be deleted."""

    uri: str
    engine: str
    """The engine as the recipe has it, as JSON."""
    why: str
    size: int | None = None
    """Bytes; None where only the engine knows."""


def find(
    runs: Sequence[RunRecord],
    stored: Mapping[str, int],
    tracked: set[str],
    keep_last: int | None = None,
    hosted: Mapping[str, Mapping[str, int | None]] | None = None,
) -> list[Garbage]:
    """Every checkpoint that no stage that is done, no try that can go on and no MLflow run names.

    Args:
        runs: all runs, oldest first.
        stored: the embedded engine's checkpoints with their bytes.
        tracked: what MLflow names.
        keep_last: of each recipe, the last so many unfinished runs stay able to go on; None: all.
        hosted: by engine as JSON, the checkpoints that it has, with their bytes where it tells
            them. Of those only what these runs made is looked at: others' may be among them.
    """
    hosted = hosted or {}
    dropped = _abandoned(runs, keep_last)
    named = set(tracked)
    for run in runs:
        named |= set(_WRITTEN.findall(json.dumps(run.resolved)))
        for stage in run.stages:
            if run.id not in dropped or stage.done:
                named |= _names(stage)
    found: dict[str, Garbage] = {}

    def add(uri: str | None, run: RunRecord, why: str) -> None:
        there = stored if run.engine == "local" else hosted.get(spec_of(run))
        if uri and uri not in named and (there is None or uri in there):
            size = there.get(uri) if there else None
            found.setdefault(uri, Garbage(uri, spec_of(run), why, size))

    for run in runs:
        if run.status == "running":  # it may save one at this moment
            continue
        for stage in run.stages:
            for uri in stage.superseded:
                add(uri, run, f"{run.id} {stage.name}: a later step was saved")
            if stage.resume and not stage.done:
                for uri in _resumed_from(stage):
                    add(uri, run, f"{run.id} {stage.name}: not gone on with")
            beside = stage.resume.beside.values() if stage.resume else ()
            made = {_training_run(uri) for uri in (*_names(stage), *beside)} - {""}
            for uri in stored if made and not stage.reused_from else ():
                if _training_run(uri) in made:
                    add(uri, run, f"{run.id} {stage.name}: no result of it")
        trained = _trained(run)
        for uri in hosted.get(spec_of(run), ()):
            if _session(uri) in run.sessions or _training_run(uri) in trained:
                add(uri, run, f"{run.id}: no result of it")
    busy = {
        _training_run(uri)
        for run in runs
        if run.status == "running"
        for stage in run.stages
        for uri in _names(stage)
    }
    asking = {one for run in runs if run.status == "running" for one in run.sessions}
    return [
        item
        for uri, item in found.items()
        if _training_run(uri) not in busy and _session(uri) not in asking
    ]


def spec_of(run: RunRecord) -> str:
    """The engine of a run as its recipe has it, as JSON."""
    return json.dumps(run.resolved.get("engine", run.engine), sort_keys=True)


def on_services(
    runs: Sequence[RunRecord],
    registry: Registry,
    home: Path,
    silent: Callable[[str, PtlError], None],
) -> dict[str, dict[str, int | None]]:
    """By engine as JSON, what there is on the services that runs used, with bytes where they tell
    them; without what was published there. `silent` is told of each that does not answer."""
    found = {}
    for spec in sorted({spec_of(run) for run in runs if run.engine != "local"}):
        try:
            engine, log = registry.engine(json.loads(spec)), home / "gc.log"
            with private.files(), engine.connect({}, home / "engine", log) as connection:
                found[spec] = _listed(connection)
        except PtlError as error:
            silent(spec, error)
    return found


def _listed(connection: Connection) -> dict[str, int | None]:
    wait = EngineWaiter(connection.alive)
    found: dict[str, int | None] = {}
    for offset in itertools.count(0, PAGE):
        page = wait(connection.rest.list_user_checkpoints(PAGE, offset)).checkpoints
        found |= {one.tinker_path: one.size_bytes for one in page if not one.public}
        if len(page) < PAGE:
            break
    return found


def _trained(run: RunRecord) -> set[str]:
    """The trainings that a run's stages are: what a stage began from is another's."""
    uris: set[str] = set()
    for stage in run.stages:
        untrained = stage.checkpoint is not None and stage.checkpoint == stage.start
        if not stage.reused_from and not untrained:
            made = stage.checkpoint
            uris |= {uri for uri in (made and (made.state_uri, made.sampler_uri)) or () if uri}
            uris |= {uri for one in (stage.resume, stage.best) if one for uri in one.saved}
            uris |= set(stage.superseded)
    return {_training_run(uri) for uri in uris}


def _session(uri: str) -> str:
    """The session that made a checkpoint: a training is called `SESSION:train:NUMBER`."""
    session, trained, _ = uri.removeprefix("tinker://").partition(":train:")
    return session if trained else ""


def _abandoned(runs: Sequence[RunRecord], keep_last: int | None) -> set[str]:
    """Unfinished runs beyond the last `keep_last` of their recipe."""
    if keep_last is None:
        return set()
    unfinished: dict[str, list[str]] = {}
    for run in runs:
        if run.status not in ("finished", "running"):
            unfinished.setdefault(run.recipe, []).append(run.id)
    return {run for ids in unfinished.values() for run in ids[: max(0, len(ids) - keep_last)]}


def _names(stage: StageRecord) -> set[str]:
    saved = (stage.checkpoint, stage.start, stage.resume, stage.best)
    uris = [uri for made in saved if made for uri in (made.state_uri, made.sampler_uri)]
    return {uri for uri in uris if uri} | ({*_resumed_from(stage)} if not stage.done else set())


def _resumed_from(stage: StageRecord) -> Sequence[str]:
    """What the next try of a stage needs: its state, and the weights that it samples from, which
    may be those of several steps before."""
    resume = stage.resume
    return (*resume.saved, *resume.samplers) if resume else ()


def _training_run(uri: str) -> str:
    return uri.removeprefix("tinker://").split("/")[0]


NEEDED = 4 << 20
"""Bytes that have to be free for SQLite to open a database as usual."""


def _named(store: mlstore.MlflowStore) -> set[str]:
    found: set[str] = set()
    page = None
    while True:
        models = store.client.search_logged_models([store.experiment_id], page_token=page)
        for model in models:
            if _is_active(store, model.source_run_id):
                uris = (model.params or {}).get
                found |= {uri for uri in (uris("checkpoint_uri"), uris("sampler_uri")) if uri}
        page = models.token
        if not page:
            return found


def tracked_uris(home: Path) -> set[str]:
    """What MLflow's runs name, but for those that were deleted there.

    Raises:
        PtlError: the store does not answer: then nothing can be deleted safely.
    """
    own = home / mlstore.DATABASE
    if not (mlstore.configured_uri() or own.is_file()):
        return set()
    try:
        space = os.access(own, os.W_OK) and shutil.disk_usage(home).free > NEEDED
        if mlstore.configured_uri() or space:
            return _named(mlstore.open_store(home))
        return mlstore.frozen_uris(home)
    except Exception as error:
        raise PtlError(
            "MLflow does not say which checkpoints its runs name, so none is deleted",
            why=str(error).strip().split("\n")[0],
            hint=error.hint if isinstance(error, PtlError) else None,
            code="tracking",
        ) from None


def _is_active(store: mlstore.MlflowStore, run_id: str | None) -> bool:
    if not run_id:
        return True
    return bool(store.client.get_run(run_id).info.lifecycle_stage == "active")


def delete(
    garbage: Sequence[Garbage],
    registry: Registry,
    home: Path,
    failed: Callable[[Garbage, str], None],
) -> Iterator[Garbage]:
    """Delete them, engine by engine; yields each that is gone, and tells `failed` of the others."""
    for spec in sorted({item.engine for item in garbage}):
        mine = [item for item in garbage if item.engine == spec]
        try:
            engine = registry.engine(json.loads(spec))
            yield from _delete(mine, engine, home, failed)
        except PtlError as error:
            for item in mine:
                failed(item, error.what)


def _delete(
    garbage: Sequence[Garbage],
    engine: Engine,
    home: Path,
    failed: Callable[[Garbage, str], None],
) -> Iterator[Garbage]:
    data_dir = home / "engine"
    left = []
    for item in garbage:
        try:
            gone = engine.discard(item.uri, data_dir)
        except PtlError as error:
            failed(item, error.what)
            continue
        if gone:
            yield item
        else:
            left.append(item)
    if not left:
        return
    with private.files(), engine.connect({}, data_dir, home / "gc.log") as connection:
        wait = EngineWaiter(connection.alive)
        for item in left:
            try:
                wait(connection.rest.delete_checkpoint_from_tinker_path(item.uri))
            except GoneError:
                pass
            except PtlError as error:
                failed(item, error.what)
                continue
            yield item
