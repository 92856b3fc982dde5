"""reasoning-gym itself: its tasks, their options and levels, and one item of one of them.

What tasks there are is read from `tasks.json`, which `python -m ptl_reasoning_gym.survey` writes,
so that a recipe is checked without importing the library (sympy takes most of a second).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from posttrain_recipes.plugin import UsageError

CHUNK = 1000
"""Items of one instance of a task. That of `acre` makes all of its items at once."""
OURS = ("seed", "size")
"""Options of every task that the dataset has itself."""


@cache
def table() -> dict[str, dict[str, Any]]:
    """By task: `fields` of its config, how many `levels` it has, and why it is `unusable`."""
    found: dict[str, dict[str, Any]] = json.loads(
        Path(__file__).with_name("tasks.json").read_text(encoding="utf-8")
    )
    return found


def version() -> str:
    """Of the library that is installed: other versions may make other items."""
    return importlib.metadata.version("reasoning-gym")


def problems(
    task: str, config: Mapping[str, Any], levels: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """What is wrong with a task, as `(option, message)`: without the library where that is known.

    The values of `config` are the task's own to check, when its first item is made.
    """
    known = table().get(task) or _of_library(task)
    if known is None:
        usable = [name for name, one in table().items() if "unusable" not in one]
        yield "task", f"reasoning-gym has no task '{task}'; {_near(task, usable)}"
        return
    if why := known.get("unusable"):
        yield "task", f"'{task}' cannot be used: {why}"
    for name in config:
        if name in OURS:
            yield "config", f"'{name}' is an option of the dataset; say it there"
        elif name not in known["fields"]:
            yield "config", f"'{task}' has no option '{name}'; {_near(name, known['fields'])}"
    for level in levels:
        if level >= known["levels"]:
            there = f"levels 0 to {known['levels'] - 1}" if known["levels"] else "no levels"
            yield "level", f"'{task}' has {there}, not {level}"


def _of_library(task: str) -> dict[str, Any] | None:
    """A task that is newer than the table."""
    from reasoning_gym.factory import DATASETS

    return describe(task) if task in DATASETS else None


def describe(task: str) -> dict[str, Any]:
    """The fields of a task's config and how many levels it has."""
    from reasoning_gym.factory import CURRICULA, DATASETS

    names = [f.name for f in dataclasses.fields(DATASETS[task][1]) if f.name not in OURS]
    made: Any = CURRICULA[task]() if task in CURRICULA else None  # type: ignore[operator]
    most = max((len(a.levels) for a in made.attributes.values()), default=0) if made else 0
    return {"fields": names, "levels": most}


def _near(name: str, there: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), there, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(repr(one) for one in near)}?"
    return f"there is: {', '.join(there)}" if there else "it has none"


@lru_cache(maxsize=64)
def instance(task: str, level: int | None, config: str, seed: int) -> Any:
    """`CHUNK` items of a task.

    Args:
        level: of the task's curriculum, where one is meant; `config` goes before what it says.
        config: the options that were given, as JSON.
        seed: of its first item.

    Raises:
        UsageError: the task does not take such options.
    """
    from reasoning_gym.factory import CURRICULA, DATASETS

    cls, config_cls = DATASETS[task]
    given = {**json.loads(config), "seed": seed, "size": CHUNK}
    try:
        if level is None:
            made = config_cls(**given)
        else:
            curriculum = CURRICULA[task]()  # type: ignore[operator]
            curriculum.set_global_level(level)
            made = dataclasses.replace(curriculum.generate_configuration(), **given)
        return cls(made)  # which has the config look at itself
    except Exception as error:
        raise _cannot(task, level, config, error) from error


def _cannot(task: str, level: int | None, config: str, error: Exception) -> UsageError:
    at = "" if level is None else f" at level {level}"
    return UsageError(
        f"reasoning-gym cannot make '{task}'{at} with {config}",
        why=str(error) or type(error).__name__,
        hint="change 'config' or 'level'",
    )


@dataclasses.dataclass(frozen=True)
class Item:
    """Where one item is found again, exactly."""

    task: str
    level: int | None
    config: str
    seed: int
    index: int

    def entry(self) -> dict[str, Any]:
        """Its `question`, `answer` and `metadata`, as the library has them."""
        return _entry(self)

    def score(self, answer: str) -> float:
        """What the task's own `score_answer` says of an answer, between 0 and 1."""
        made = instance(self.task, self.level, self.config, self.seed)
        return min(1.0, max(0.0, float(made.score_answer(answer, self.entry()))))


@lru_cache(maxsize=4096)
def _entry(item: Item) -> dict[str, Any]:
    made = instance(item.task, item.level, item.config, item.seed)
    try:
        entry: dict[str, Any] = made[item.index]
    except Exception as error:  # of options that a config does not check, such as a number's type
        raise _cannot(item.task, item.level, item.config, error) from error
    return entry
