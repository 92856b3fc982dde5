"""Resolves a TARGET: a model, a checkpoint's path, a run or one of its stages."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_recipes import ggufs, models
from posttrain_recipes.errors import PtlWarning, UsageError, display_path
from posttrain_recipes.inference import kept
from posttrain_recipes.language.suite import Measurand
from posttrain_recipes.models import check_model
from posttrain_recipes.models.registered import FORM, RegisteredName, is_registered
from posttrain_recipes.options import AS_EVER, RendererConfig
from posttrain_recipes.planning.plans import BASE
from posttrain_recipes.registry import nearest
from posttrain_recipes.store import RunRecord, StageRecord, Store, named

SCHEME = "tinker://"


@dataclass(frozen=True)
class Target:
    """What can be sampled from: `model`, its name on the engine, and `base`, the model to serve."""

    model: str
    base: str
    said: str
    renderer: RendererConfig = AS_EVER
    """How the run asked it."""
    run: RunRecord | None = None
    """The run that it is of; None for a model, and for a checkpoint that is named by its path."""


def find(text: str | None, home: Path) -> Target:
    """The target of that name; without a name the last run's, or else the bundled model.

    Raises:
        UsageError: there is no such thing.
    """
    runs, unreadable = Store(home).listed()
    if text is None:
        made = [run for run in runs if run.engine == "local" and _trained(run)]
        return _of_run(made[-1], "") if made else Target("ptl/tiny", "ptl/tiny", "ptl/tiny")
    if text.startswith(SCHEME):
        record = kept.record(text, home)
        return Target(text, record.base_model if record else "", text)
    check_model(text, "the target")
    if is_registered(text):
        return _registered(text, home)
    name, _, stage = text.partition("/")
    if (run := named(runs, name)) is not None:
        return _of_run(run, stage)
    for one in unreadable:
        if one.id == name:
            raise one.error()
    # Only what ends in a number, as an id does: hub models of an organisation may be alike.
    near = re.fullmatch(r".+-\d+", name) and nearest(name, [run.id for run in runs], 0.8)
    if near and text not in models.BUNDLED and not models.is_path(text):
        raise UsageError(
            f"'{name}' is no run in {display_path(home)}",
            hint=f"did you mean '{near}'?",
            code="no-such-run",
        )
    if text in models.BUNDLED or text.count("/") == 1 or models.is_path(text):
        if models.is_path(text):
            text = str(Path(os.path.expanduser(text)).resolve())
            require_model(text)
        return Target(text, text, text)
    recent = ", ".join(run.id for run in runs[-5:])
    raise UsageError(
        f"'{text}' is no run in {display_path(home)}, no checkpoint and no model",
        hint=f"the last runs: {recent}"
        if recent
        else "models: ptl/tiny, ptl/nano, ORGANISATION/MODEL on the hub, or ./DIRECTORY",
        code="no-such-run",
    )


def _registered(text: str, home: Path) -> Target:
    """A version of MLflow's registry: its weights, asked as its run asked them if it is here."""
    from posttrain_recipes.tracking import registered

    if RegisteredName.parse(text) is None:
        raise UsageError(f"'{text}' is no version of a registered model", hint=FORM)
    _, found = registered.look_up(text, home)
    run = named(Store(home).runs(), found.run)
    kept = [s for s in run.stages if s.name == found.stage] if run else []
    if run and kept and kept[0].checkpoint and kept[0].checkpoint.sampler_uri == found.sampler:
        return _of_run(run, found.stage)
    return Target(found.sampler, found.base_model, text)


def require_model(path: str) -> None:
    """Raise UsageError for a path at which there is no model."""
    if ggufs.is_gguf(path):
        if why := ggufs.fault(Path(path)):
            raise UsageError(f"{path}: {why}", code="bad-model")
    elif not Path(path).is_dir():
        raise UsageError(f"there is no directory {path}", code="no-such-file")
    elif (Path(path) / "adapter_config.json").is_file() and not (
        Path(path) / "config.json"
    ).is_file():
        raise UsageError(
            f"{path} is an adapter, and no whole model",
            hint="name the run that it is of; or write a whole model, 'ptl export RUN DIR --merge'",
            code="bad-model",
        )


def _trained(run: RunRecord) -> list[StageRecord]:
    return [stage for stage in run.stages if stage.checkpoint and stage.checkpoint.sampler_uri]


def _of_run(run: RunRecord, name: str) -> Target:
    trained = {stage.name: stage for stage in _trained(run)}
    if name and name not in trained:
        missing = name not in [stage.name for stage in run.stages]
        raise UsageError(
            f"run {run.id} has no {'stage' if missing else 'checkpoint of its stage'} '{name}'",
            hint=f"it has {', '.join(trained)}" if trained else "no stage of it has ended",
            code="no-such-checkpoint",
        )
    if not trained and run.stages and all(s.done and s.method is None for s in run.stages):
        raise UsageError(
            f"run {run.id} measured {run.model} and trained nothing",
            hint=f"name what it measured: {run.model}",
            code="no-such-checkpoint",
        )
    if not trained:
        raise UsageError(
            f"run {run.id} has no checkpoint: no stage of it has ended",
            hint=f"'ptl show {run.id}' says how far it came",
            code="no-such-checkpoint",
        )
    stage = trained[name] if name else list(trained.values())[-1]
    checkpoint = stage.checkpoint
    assert checkpoint is not None
    assert checkpoint.sampler_uri is not None
    renderer = RendererConfig.model_validate(stage.inputs.get("renderer", {}))
    said = f"{run.id}/{stage.name}"
    return Target(checkpoint.sampler_uri, checkpoint.base_model, said, renderer, run)


def require_here(target: Target, home: Path) -> None:
    """See that the target's checkpoint lies in `home`, and say so where it cannot be verified.

    Raises:
        UsageError: it does not.
        PtlError: its description is damaged.
    """
    if not target.model.startswith(SCHEME):
        return
    record = kept.record(target.model, home)
    if record is None:
        raise UsageError(
            f"the checkpoint {target.model} is not in {display_path(home / 'engine')}",
            hint="name the --home it was trained in, or the --base-url of the engine that has it",
            code="no-such-checkpoint",
        )
    if record.files is None:
        told = f"{target.said} is not verified: an earlier version saved it without hashes"
        warnings.warn(told, PtlWarning, stacklevel=2)


def measurand(text: str, home: Path, engine: Any, model: str | None) -> Measurand:
    """What `ptl eval` measures: a target as a suite takes it.

    Args:
        engine: as a recipe has it; None: that of the run, else the local one.
        model: the base model of a checkpoint that `home` does not know.

    Raises:
        UsageError: there is no such thing, or its base model is not known.
    """
    target = find(text, home)
    own = target.run.resolved.get("engine", "local") if target.run else "local"
    base = model or target.base
    if not base:
        raise UsageError(
            f"of which base model {text} is, is not known",
            why=f"it is not in {display_path(home / 'engine')}",
            hint="name it with --model, and where it is served with --engine",
            code="no-such-checkpoint",
        )
    start = BASE
    if target.model.startswith(SCHEME):
        start = target.model
        if (engine or own) == "local":
            require_here(target, home)
            start = kept.first_of_same(start, home)
    shown = {k: v for k, v in target.renderer.model_dump(mode="json").items() if v is not None}
    renderer = shown if target.renderer != AS_EVER else {}
    return Measurand(target.said, base, start, engine or own, renderer)
