"""What a `run.json` holds, whatever version wrote it: brought forward by format, and checked.

A file says its format's number. One of an older format passes through the chain `MIGRATIONS`; one
of a newer format is refused, and so is what is damaged: it is told of, and never written over.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from posttrain_recipes.errors import PtlError

FORMAT = 3
"""The format that is written."""
MEND = "put back a copy of it, or move its directory away; nothing changes it until then"
COPIED = "move its directory away; a copy of all of .ptl can be read, with --home"
RUN_STATES = ("running", "finished", "failed", "killed", "stopped")
STAGE_STATES = ("waiting", *RUN_STATES, "trained", "reused", "skipped", "left_out")
DAMAGED = (ValueError, TypeError, LookupError, AttributeError)
"""What reading a file of another form raises."""
T = TypeVar("T")


class UnreadableError(ValueError):
    """A `run.json` that cannot be read: what is wrong with it, and what to do."""

    def __init__(self, why: str, hint: str = MEND) -> None:
        super().__init__(why)
        self.hint = hint


@dataclass(frozen=True)
class Unreadable:
    """A run of which the record cannot be read. Its directory is kept as it is."""

    id: str
    """The name of its directory."""
    path: Path
    why: str
    hint: str

    def error(self) -> PtlError:
        """What is wrong, for whoever asks for this run."""
        return PtlError(str(self), hint=self.hint, code="bad-run")

    def __str__(self) -> str:
        return f"run {self.id} cannot be read: {self.why}"

    @classmethod
    def of(cls, path: Path, error: UnreadableError) -> Unreadable:
        """The run of the file at `path`, which could not be read."""
        return cls(path.parent.name, path, str(error), error.hint)


def _to_2(run: dict[str, Any]) -> dict[str, Any]:
    """Format 1 left out that a metric is better when higher."""
    for stage in run["stages"]:
        for measured in (*stage["before"], *stage["after"]):
            named = measured.get("higher_is_better", {})
            measured["higher_is_better"] = {**dict.fromkeys(measured["metrics"], True), **named}
    return run


def _to_3(run: dict[str, Any]) -> dict[str, Any]:
    """Format 2 knew nothing of what is measured in the middle of a stage."""
    return run


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _to_2, 2: _to_3}
"""By format: what makes the next one of it. All that is known of older formats is here."""


def migrated(data: Any) -> dict[str, Any]:
    """What a file holds, in today's format and without its number.

    Raises:
        UnreadableError: it is no run, or of a format that is not known here.
    """
    if not isinstance(data, dict):
        raise UnreadableError(f"it holds a {_called(data)}, not an object")
    if "format" not in data:
        raise UnreadableError("it does not say its format")
    number = data["format"]
    if type(number) is not int or number < 1:
        raise UnreadableError(f"its format is {_shown(number)}, which is none")
    if number > FORMAT:
        raise UnreadableError(
            f"written by a newer ptl (format {number}; this one reads up to {FORMAT})",
            "pip install -U posttrain-recipes, or go on with the version that wrote it",
        )
    data = {key: value for key, value in data.items() if key != "format"}
    for step in range(number, FORMAT):
        try:
            data = MIGRATIONS[step](data)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UnreadableError(f"no whole run of format {number} ({error!r})") from None
    return data


def damaged(path: Path, error: Exception) -> str:
    """What is said of a file beside a run that is left out because it cannot be read."""
    return f"{path} is left out: it is damaged ({error})"


def records(runs_dir: Path) -> list[Path]:
    """Every `run.json`, also one that cannot be looked at: a link in a circle, a directory without
    permission."""
    try:
        folders = sorted(Path(e.path) for e in os.scandir(runs_dir) if e.is_dir())
    except OSError:
        return []
    return [folder / "run.json" for folder in folders if _has_record(folder)]


def _has_record(folder: Path) -> bool:
    try:
        return "run.json" in os.listdir(folder)
    except OSError:
        return True


def load(path: Path) -> Any:
    """What the file at `path` holds, as it was written.

    Raises:
        UnreadableError: it cannot be read, or is no JSON.
    """
    try:
        if not path.is_file():
            raise UnreadableError("it is no file")
        text = path.read_bytes().decode("utf-8")
        if not text.strip():
            raise UnreadableError("it is empty")
        return json.loads(text)
    except UnreadableError:
        raise
    except UnicodeDecodeError:
        raise UnreadableError("it is not UTF-8 text") from None
    except ValueError as error:  # also of a number with thousands of digits
        raise UnreadableError(f"it is cut off, or no JSON ({error})") from None
    except RecursionError:
        raise UnreadableError("it is nested too deep") from None
    except OSError as error:
        raise UnreadableError(error.strerror or str(error), "make it readable") from None


def build(cls: type[T], data: Any, where: str = "run") -> T:
    """A dataclass from plain data, each field of the type that it is declared with.

    Raises:
        UnreadableError: a field is missing, not known or of another type.
    """
    if not isinstance(data, Mapping):
        raise UnreadableError(f"{where} is a {_called(data)}, not an object")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        raise UnreadableError(f"{where} has '{unknown[0]}', which is not known here")
    hints = typing.get_type_hints(cls)
    given = {}
    for name, field in fields.items():
        if name in data:
            given[name] = _value(hints[name], data[name], f"{where}.{name}")
        elif (field.default, field.default_factory) == (dataclasses.MISSING,) * 2:
            raise UnreadableError(f"{where} lacks '{name}'")
    return cls(**given)


def _recipe(data: Any, where: str) -> None:
    """Hold a resolved recipe, or a block of stages in one, to its outer form: what stands in a
    plugin's own options is the plugin's to read."""
    _form(data, _BLOCK, where)
    for name in ("stages", "compare"):
        for index, stage in enumerate(data.get(name, ())):
            _recipe(stage, f"{where}.{name}[{index}]")
            if not stage.keys() & {"name", "repeat", "compare"}:
                raise UnreadableError(f"{where}.{name}[{index}] lacks 'name'")
    for index, item in enumerate(data.get("eval", ())):
        if not isinstance(item, str):
            _form(item, _PLUGIN, f"{where}.eval[{index}]")


def _form(data: Any, forms: Mapping[str, tuple[type, ...]], where: str) -> None:
    if not isinstance(data, Mapping):
        raise UnreadableError(f"{where} is {_shown(data)}, which is no object")
    for name, types_ in forms.items():
        # A truth is a number to Python, and none here.
        if name in data and (type(data[name]) not in types_):
            raise UnreadableError(
                f"{where}.{name} is {_shown(data[name])}, which is no {_named(types_[0])}"
            )
        if types_ == _NAMED and name in data:
            _form(data[name], _PLUGIN, f"{where}.{name}")


_NAMED = (dict,)
_PLUGIN: Mapping[str, tuple[type, ...]] = {"use": (str,), "name": (str,)}
_BLOCK: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "description", "model", "init_from"), (str,)),
    **dict.fromkeys(("stages", "compare", "eval", "seeds", "trackers"), (list,)),
    **dict.fromkeys(
        ("matrix", "expect", "until", "limits", "budget", "lora", "on_end"), (dict, type(None))
    ),
    **dict.fromkeys(("method", "dataset"), _NAMED),
    "reward": (dict, list),
    "engine": (str, dict),
    "seed": (int,),
    "repeat": (int,),
}
"""Of the keys of a recipe and of its blocks: what may stand there."""
_INPUTS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("method", "dataset", "lora", "renderer"), (dict,)),
    "reward": (list,),
}
_PLUGINS = ("method", "dataset")
_DEPENDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("config", "models"), (dict,)),
    "use": (str,),
}


def check(run: Any) -> None:
    """Hold a `RunRecord` to what its parts mean, beyond their types: names that are files' names,
    states that there are, a recipe and inputs of a form that can be read.

    Raises:
        UnreadableError: one is something else.
    """
    if not run.stages:
        raise UnreadableError("it has no stages")
    _one_of(run.status, RUN_STATES, "run.status")
    _name(run.recipe, "run.recipe")
    _recipe(run.resolved, "run.resolved")
    for index, stage in enumerate(run.stages):
        where = f"run.stages[{index}]"
        _one_of(stage.status, STAGE_STATES, f"{where}.status")
        _name(stage.name, f"{where}.name")
        _form(stage.inputs, _INPUTS, f"{where}.inputs")
        for name, made in stage.inputs.items():
            for plugin in made if name == "reward" else [made] if name in _PLUGINS else []:
                _form(plugin, _DEPENDS, f"{where}.inputs.{name}")
        if ".." in Path(stage.made_in).parts or Path(stage.made_in).is_absolute():
            raise UnreadableError(f"{where}.made_in is {_shown(stage.made_in)}, outside the runs")
        for when in ("before", "during", "after"):
            for place, measured in enumerate(getattr(stage, when)):
                _name(measured.name, f"{where}.{when}[{place}].name")


def _one_of(value: str, known: Sequence[str], where: str) -> None:
    if value not in known:
        raise UnreadableError(f"{where} is {_shown(value)}; there is: {', '.join(known)}")


def _name(value: str, where: str) -> None:
    """Names are those of files too: none leads elsewhere."""
    if not value or ".." in Path(value).parts or Path(value).is_absolute():
        raise UnreadableError(f"{where} is {_shown(value)}, which is no name")


def _value(declared: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(declared), typing.get_args(declared)
    if declared is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        (declared,) = [one for one in inner if one is not type(None)]
        return _value(declared, value, where)
    if dataclasses.is_dataclass(declared):
        return build(typing.cast("type[Any]", declared), value, where)
    if origin in (list, tuple) and isinstance(value, list):
        made = [_value(inner[0], one, f"{where}[{i}]") for i, one in enumerate(value)]
        return tuple(made) if origin is tuple else made
    if origin is dict and isinstance(value, dict):
        return {key: _value(inner[1], one, f"{where}.{key}") for key, one in value.items()}
    if declared is float and type(value) in (int, float):
        return float(value)
    if origin is None and type(value) is declared:
        return value
    raise UnreadableError(f"{where} is {_shown(value)}, which is no {_named(declared)}")


def _named(declared: Any) -> str:
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    origin = typing.get_origin(declared) or declared
    return names.get(origin) or {list: "list", tuple: "list", dict: "object"}.get(
        origin, str(declared)
    )


def _called(value: Any) -> str:
    kinds = {list: "list", str: "text", dict: "object", type(None): "null", bool: "boolean"}
    return kinds.get(type(value), "number")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:40]}…"


class Numbered(Protocol):
    """What a run's place among others depends on."""

    id: str
    recipe: str
    created: str
    order: int


R = TypeVar("R", bound=Numbered)


def in_order(runs: Iterable[R]) -> list[R]:
    """Runs, oldest first, by their `order`. Those without one come first: of one recipe by their
    number, of others by when they began, as far as that goes with it."""
    began: dict[str, str] = {}
    found = []
    for run in sorted(runs, key=lambda run: (run.recipe, _number(run.id))):
        began[run.recipe] = max(run.created, began.get(run.recipe, ""))
        found.append((run.order, began[run.recipe], run.recipe, _number(run.id), run))
    return [run for *_, run in sorted(found, key=lambda one: one[:4])]


def _number(run_id: str) -> int:
    tail = run_id.rsplit("-", 1)[-1]
    return int(tail) if tail.isdigit() else 0
