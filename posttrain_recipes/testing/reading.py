"""Checks that read a plugin: its name, words, options and imports. They take a second."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from posttrain_recipes.language.schema import EXTRA_OPTIONS
from posttrain_recipes.plugin import API_VERSION, DataMethod, Dataset, DatasetConfig, Eval, Method
from posttrain_recipes.records import RECORD_TYPES
from posttrain_recipes.registry import KINDS, Entry
from posttrain_recipes.testing.findings import Complaints, Finding, placeholder, run_check
from posttrain_recipes.testing.flipping import identity_checks

HEAVY = ("torch", "tinker", "transformers", "mlflow", "datasets", "pyarrow", "safetensors")
"""What a plugin's module must not import: every command of `ptl` imports all plugins."""

_PROBE = """
import importlib, sys
import posttrain_recipes.registry
importlib.import_module(sys.argv[1])
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def read_checks(entry: Entry, options: dict[str, Any], *, probe: bool = True) -> list[Finding]:
    """Every check that needs no work of the plugin; `probe` imports it in a fresh process too."""
    return [
        run_check(check, complaints, entry, options)
        for check, kinds, complaints in _CHECKS
        if entry.kind in kinds and (probe or complaints is not _light)
    ]


def _name(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    if entry.name != entry.name.lower() or not entry.name.isidentifier():
        yield f"'{entry.name}' should be a lower-case word such as 'my_{entry.kind}'"


def _api_version(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    if entry.api_version is None:
        yield f"its module should say PTL_API = {API_VERSION}, the version it is written for"


def _summary(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    first = inspect.cleandoc(entry.cls.__doc__ or "").split("\n")[0]
    if not 20 <= len(first) <= 100:
        yield (
            "the first line of the class's docstring should say in one sentence of 20 to 100 "
            f"characters what it does; it has {len(first)}"
        )
    elif not first.endswith(".") or not (first[0].isupper() or first[0].isdigit()):
        yield f"the docstring's first line should be a sentence: '{first}'"


def _when(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    text = " ".join((entry.cls.__doc__ or "").split())
    for words in ("When:", "When not:"):
        if words not in text:
            yield f"the docstring lacks a sentence that begins '{words}'"


def _described(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    for name, option in entry.config.model_json_schema().get("properties", {}).items():
        told = option.get("description", "")
        if not told:
            yield f"option '{name}' has no description; write a string below it"
        elif told[-1] not in ".:":
            yield f"the description of option '{name}' should end with a full stop"


def _defaults(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    fields = entry.config.model_fields
    given = placeholder(options, entry)
    for name, field in fields.items():
        if not field.is_required():
            given.setdefault(name, field.get_default(call_default_factory=True))
    try:
        entry.config.model_validate(given)
    except ValidationError as error:
        for problem in error.errors():
            where = ".".join(map(str, problem["loc"])) or "the options together"
            yield f"the default of {where} is not valid: {problem['msg']}"


def _strict(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    if entry.config.model_config.get("extra") != "forbid":
        yield "its Config should refuse unknown options: do not change 'extra'"
    if entry.config.model_config.get("frozen") is not True:
        yield "its Config should be frozen: do not change 'frozen'"


def _own_words(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    taken = {"use", *EXTRA_OPTIONS.get(entry.kind, {})}
    for name in sorted(taken & entry.config.model_fields.keys()):
        yield f"'{name}' is a word of the recipe language; call the option otherwise"


def _made(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    made = entry.cls(entry.config.model_validate(placeholder(options, entry)))
    if not isinstance(made, KINDS[entry.kind]):
        yield f"it should be a {KINDS[entry.kind].__name__}"


def _needs(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    if entry.missing:
        wanted = entry.cls.extra or " ".join(entry.missing)
        yield f"{', '.join(entry.missing)} is not installed; pip install '{wanted}'"


def _takes(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    assert issubclass(entry.cls, (Method, Eval))
    if not isinstance(entry.cls.takes, tuple) or not set(entry.cls.takes) <= set(RECORD_TYPES):
        names = ", ".join(record.__name__ for record in RECORD_TYPES)
        yield f"'takes' should be a tuple of record types: {names}"
    if issubclass(entry.cls, DataMethod) and not entry.cls.makes:
        yield "'makes' should name the record types that it makes"


def _loss(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    assert issubclass(entry.cls, Method)
    if not entry.cls.loss and not issubclass(entry.cls, DataMethod):
        yield "'loss' should give the loss as a formula, for `ptl explain`"


def _dataset_options(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    assert issubclass(entry.cls, Dataset)
    if not issubclass(entry.config, DatasetConfig):
        yield "its Config should be a DatasetConfig, so that it can be split and limited"


def _light(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, entry.cls.__module__],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        yield f"its module cannot be imported: {done.stderr.strip().splitlines()[-1]}"
        return
    for name in HEAVY:
        if name in done.stdout.split():
            yield (
                f"importing {entry.cls.__module__} imports {name}, which would slow every command; "
                "import it in the method that needs it"
            )


_EVERY = tuple(KINDS)
_USED = ("dataset", "method", "reward", "eval")
_CHECKS: tuple[tuple[str, tuple[str, ...], Complaints], ...] = (
    ("its name is a word", _EVERY, _name),
    ("it says which API it is written for", _EVERY, _api_version),
    ("it says what it does", _EVERY, _summary),
    ("it says when to use it and when not", ("method",), _when),
    ("every option is described", _EVERY, _described),
    ("its defaults are valid", _EVERY, _defaults),
    ("unknown options are refused", _EVERY, _strict),
    ("its options leave the recipe's own words alone", _EVERY, _own_words),
    ("it can be made from its options", _EVERY, _made),
    ("its options affect what they say", _USED, identity_checks),
    ("what it needs is installed", _EVERY, _needs),
    ("it says which records it takes", ("method", "eval"), _takes),
    ("it gives its loss", ("method",), _loss),
    ("it can be split and limited", ("dataset",), _dataset_options),
    ("its module is light", _EVERY, _light),
)
