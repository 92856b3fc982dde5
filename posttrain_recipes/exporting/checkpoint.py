"""What is exported or deployed: a checkpoint, of this machine or of a service."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from posttrain_recipes import private, registry, sdk
from posttrain_recipes.engines import Hosted
from posttrain_recipes.errors import PtlError, UsageError, display_path
from posttrain_recipes.exporting.download import download
from posttrain_recipes.exporting.merged import ADAPTER, base_of
from posttrain_recipes.inference import kept
from posttrain_recipes.inference.target import SCHEME, Target, find, require_here
from posttrain_recipes.plugin import Engine
from posttrain_recipes.store import RunRecord, Store, named
from posttrain_recipes.waiting import EngineWaiter


@dataclass(frozen=True)
class Found:
    """A checkpoint, and where it comes from."""

    target: Target
    adapter: Path
    """Its folder, with the files of a PEFT adapter."""
    base: str
    """Its base model, as the adapter names it."""
    run: RunRecord | None
    """None of a bare tinker:// path that no run names."""
    stage: str
    """The stage of the run that made it; empty without a run."""
    console: str | None = None
    """Where hosted Tinker shows its training."""


@contextmanager
def fetched(
    target: str,
    home: Path,
    base_url: str | None = None,
    doing: Callable[[str], object] = lambda what: None,
) -> Iterator[Found]:
    """The checkpoint of that name; one of a service is there as long as the context lasts.

    Args:
        base_url: the service that has it; None: that of its run, or this machine.
        doing: is told of what takes its time, as a download.

    Raises:
        UsageError: there is none, or it is neither on this machine nor on a service that is named.
        PtlError: it is damaged, holds NaN, or cannot be fetched.
    """
    found = find(target, home)
    if not found.model.startswith(SCHEME):
        raise UsageError(
            f"{target} is a base model, not a checkpoint",
            hint="name a run of 'ptl runs', or a tinker:// path",
        )
    run, stage = _origin(found, home)
    engine = _service(run, base_url)
    if engine is None:
        require_here(found, home)
        adapter = kept.folder(found.model, home)
        _check_finite(adapter / ADAPTER[1])
        if missing := [name for name in ADAPTER if not (adapter / name).is_file()]:
            raise PtlError(
                f"the checkpoint is damaged: {adapter} lacks {', '.join(missing)}",
                code="bad-checkpoint",
            )
        yield Found(found, adapter, base_of(adapter), run, stage)
        return
    with tempfile.TemporaryDirectory(prefix="ptl-export-") as folder:
        adapter = Path(folder) / "adapter"
        adapter.mkdir()
        doing(f"downloading {found.said}")
        log = Path(folder) / "engine.log"
        with private.files(), engine.connect({}, home / "engine", log) as connection:
            download(connection, found.model, adapter, EngineWaiter(connection.alive))
        _check_finite(adapter / ADAPTER[1])
        console = sdk.console(found.model) if engine.name == "tinker" else None
        yield Found(found, adapter, base_of(adapter), run, stage, console)


def _service(run: RunRecord | None, base_url: str | None) -> Engine | None:
    """The service that is named, or that of a run; None where it is this machine."""
    if base_url is not None:
        return Hosted(Hosted.Config(base_url=base_url))
    if run is None or run.engine == "local":
        return None
    return registry.load().engine(run.resolved.get("engine", run.engine))


def _origin(found: Target, home: Path) -> tuple[RunRecord | None, str]:
    """The run and the stage that a checkpoint is of."""
    runs, _ = Store(home).listed()
    if found.run is None:  # it is named by its path, or was registered on another machine
        made = [
            (run, stage)
            for run in runs
            for stage in run.stages
            if stage.checkpoint and found.model in _addresses(stage.checkpoint)
        ]
        return (made[-1][0], made[-1][1].name) if made else (None, "")
    return named(runs, found.said.partition("/")[0]), found.said.partition("/")[2]


def _addresses(kept: object) -> tuple[str | None, ...]:
    return getattr(kept, "sampler_uri", None), getattr(kept, "state_uri", None)


def _check_finite(file: Path) -> None:
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not file.is_file():
        return  # which is told of
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise PtlError(
            f"{display_path(file)} cannot be read", why=str(error), code="bad-checkpoint"
        ) from None
    if bad := sorted(name for name, values in tensors.items() if not np.isfinite(values).all()):
        raise PtlError(
            f"{display_path(file)} holds NaN or infinity, and is not exported",
            why=f"in {bad[0]}" + (f" and {len(bad) - 1} more" if bad[1:] else ""),
            hint="name an earlier checkpoint, or train again with a lower learning rate",
            code="bad-checkpoint",
        )
