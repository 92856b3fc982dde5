"""A run as one archive: its recipe with its data and functions, a lock, the report, the adapters.

Whoever unpacks it reads `report.html`, or runs `recipe.yaml`. What is not in it (base models, data
of the hub and at addresses) is locked by content and named.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain_recipes import content, models, registry
from posttrain_recipes.errors import PtlError, RecipeError, UsageError, display_path
from posttrain_recipes.exporting import writing
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.planning import lock
from posttrain_recipes.planning.planner import build
from posttrain_recipes.reporting import report, reproduction
from posttrain_recipes.reporting.page import Pages
from posttrain_recipes.shown import redact
from posttrain_recipes.store import RunRecord
from posttrain_recipes.version import __version__

FORMAT = 1
RECIPE = "recipe.yaml"
LARGE = 100 << 20
"""Data files from this many bytes on are left out, and locked by their content."""


@dataclass
class Packed:
    """An archive that was written, with what has to be known of it."""

    path: Path
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is not in it, and what is not as it was when the run was made."""

    def __repr__(self) -> str:
        return f"<Packed {display_path(self.path)}: {len(self.files)} files>"


def pack(
    record: RunRecord, home: Path, output: Path, *, data: bool = True, weights: bool = True
) -> Packed:
    """Write a run to `output`, a new zip file.

    Args:
        data: the files that the recipe names; without them it can be read, and run where they are.
        weights: the adapters of its stages.

    Raises:
        UsageError: the run did not finish, the file is there, or what the run was made of is gone.
        PtlError: it cannot be written.
    """
    if record.status != "finished":
        raise UsageError(f"run {record.id} did not finish: it is {record.status}")
    if output.exists():
        raise UsageError(f"{display_path(output)} is already there", code="already-there")
    made = Packed(output)
    with tempfile.TemporaryDirectory(prefix="ptl-pack-") as temporary:
        folder = Path(temporary)
        resolved = _Gathering(record, folder, data, made).resolved()
        (folder / RECIPE).write_text(report.resolved_yaml(resolved), encoding="utf-8")
        _lock(record, folder, made)
        (folder / "report.html").write_text(Pages(home, record).html(), encoding="utf-8")
        if weights:
            _adapters(record, home, folder, made)
        (folder / "README.md").write_text(_readme(record, made), encoding="utf-8")
        _write(folder, record, made)
    return made


TELLS = ("on_end", "trackers")
"""Keys of a recipe by which a run tells others of itself; another machine's is none of theirs."""


@dataclass
class _Gathering:
    """Copies what a recipe names beside it, and has the recipe name the copies."""

    record: RunRecord
    folder: Path
    data: bool
    made: Packed
    taken: dict[Path, str] = field(default_factory=dict)

    def resolved(self) -> Any:
        told = [key for key in TELLS if key in self.record.resolved]
        if told:
            words = " and ".join(told)
            self._note(f"{words} of the recipe is not in it: a run elsewhere tells nobody here")
        kept = {key: value for key, value in self.record.resolved.items() if key not in TELLS}
        return self._of(kept, "")

    @property
    def _base(self) -> Path:
        return Path(self.record.path).absolute().parent

    def _of(self, value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return {name: self._of(inner, str(name)) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._of(inner, key) for inner in value]
        if not isinstance(value, str) or "\n" in value or len(value) > 1000:
            return value
        if key == "model" and models.is_path(value):
            self._note(f"the model {Path(value).name} is not in it: put its directory in `model:`")
            return value
        if value.startswith("tinker://"):
            self._note(f"{value} ({key}) is not in it: it runs again where the engine has that")
            return value
        module, colon, name = value.rpartition(":")
        if colon and name.isidentifier():
            return self._function(value, module, name)
        try:
            place = self._base / os.path.expanduser(value)
            there = place.is_file() and place.suffix
            tree = key.endswith("path") and place.is_dir() and value not in (".", "")
        except (OSError, ValueError):
            return value
        if there:
            return self._file(place, value)
        return self._tree(place) if tree else value

    def _file(self, place: Path, value: str) -> str:
        place = place.resolve()
        if place in self.taken:
            return self.taken[place]
        if not self.data or place.stat().st_size >= LARGE:
            why = "" if self.data else ", as was asked"
            self._note(f"{place.name} ({place.stat().st_size / 1e6:.1f} MB) is not in it{why}")
            return value
        name = self._free(f"data/{place.name}")
        self._copy(place, name)
        self.taken[place] = name
        return name

    def _tree(self, place: Path) -> str:
        name = self._free(f"data/{place.name}")
        shutil.copytree(place, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        return name

    def _function(self, value: str, module: str, name: str) -> str:
        """A module beside the recipe, with what it imports of its neighbours."""
        is_file = module.endswith(".py")
        if not is_file and not all(map(str.isidentifier, module.split("."))):
            return value
        written = Path(module) if is_file else Path(*module.split(".")).with_suffix(".py")
        place = self._base / written
        if not place.is_file():
            return value
        where = Path("code") if written.is_absolute() or ".." in written.parts else written.parent
        place = place.resolve()
        for file in (place, *content.own_modules(place).values()):
            self._copy(file, str(where / file.relative_to(place.parent)))
        return f"{where / place.name}:{name}" if is_file else value

    def _copy(self, place: Path, name: str) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(place, target)  # a script stays one

    def _free(self, name: str) -> str:
        path, number = Path(name), 1
        while (self.folder / path).exists():
            number += 1
            path = Path(name).with_stem(f"{Path(name).stem}_{number}")
        return path.as_posix()

    def _note(self, text: str) -> None:
        if text not in self.made.notes:
            self.made.notes.append(text)


def _lock(record: RunRecord, folder: Path, made: Packed) -> None:
    """The lock of the packed recipe; what differs from the run is told."""
    known = registry.load()
    try:
        plan = build(recipes.load(folder / RECIPE), known)
    except RecipeError:  # what it names is not all in it
        plan = reproduction.plan_again(record, known)
    changed = list(reproduction.changes(record, plan))
    made.notes += (f"since the run: {change}" for change in changed)
    lock.write(plan, folder / RECIPE)


def _adapters(record: RunRecord, home: Path, folder: Path, made: Packed) -> None:
    for stage in record.stages:
        saved = stage.checkpoint
        if not stage.method or saved is None or not saved.sampler_uri:
            continue
        try:
            form = writing.Form(False, None, None)
            writing.export(
                f"{record.id}/{stage.name}", folder / "adapters" / stage.name, home, form
            )
        except PtlError as error:
            made.notes.append(f"the weights of {stage.name} are not in it: {error.what}")


def _readme(record: RunRecord, made: Packed) -> str:
    lines = [
        f"# {record.id}",
        "",
        f"A run of posttrain-recipes {record.version or __version__}, packed by {__version__}.",
        "",
        "- `report.html`: results, curves and replies; a browser shows it without a network.",
        "- `recipe.yaml`, with `data/` and modules: `ptl run recipe.yaml --locked` runs it again.",
        "- `recipe.lock`: what it stands on, by content; without `--locked` that is not looked at.",
        "- `adapters/`: the weights of its stages, as PEFT reads them; `ptl chat adapters/STAGE`.",
    ]
    if made.notes:
        lines += ["", "What has to be known:", "", *(f"- {redact(note)}" for note in made.notes)]
    return "\n".join(lines) + "\n"


def _write(folder: Path, record: RunRecord, made: Packed) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    made.files = [path.relative_to(folder).as_posix() for path in files]
    sums = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in zip(made.files, files, strict=True)
    }
    about = {"format": FORMAT, "run": record.id, "ptl": __version__, "files": sums}
    try:
        made.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=made.path.parent, prefix=f".{made.path.name}.")
        try:
            with (
                os.fdopen(handle, "wb") as stream,
                zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
            ):
                for name, path in zip(made.files, files, strict=True):
                    archive.write(path, f"{record.id}/{name}")
                archive.writestr(f"{record.id}/pack.json", json.dumps(about, indent=1))
            os.replace(temporary, made.path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise PtlError(
            f"cannot write {display_path(made.path)}", why=error.strerror, code="not-writable"
        ) from None
