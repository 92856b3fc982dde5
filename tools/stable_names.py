"""Write down what of the plugin API is stable, into tests/compat/stable.json.

    python tools/stable_names.py

docs/reference/stability.md says what is promised of these names; tests/contract/test_stable.py
compares them with the code. Run it where a name was added. One that is missing was promised: it is
to be deprecated first (posttrain_recipes/deprecation.py).
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path

from posttrain_recipes import plugin, testing, training
from posttrain_recipes.registry import Hooks
from posttrain_recipes.reporting.metric_words import METRICS
from posttrain_recipes.training.loops.rl import RolloutLoop
from posttrain_recipes.training.loops.steps import Step
from posttrain_recipes.training.moved import MODULES, public
from posttrain_recipes.training.rl.rollout import Group, Rollout, Segment

HANDED = {
    "a rollout loop": (RolloutLoop, ("beside", "checkpoint", "client", "submitted")),
    "a step of it": (
        Step,
        ("batch", "beside", "extra", "groups", "metrics", "number", "passes", "update"),
    ),
    "a group": (Group, ("scored",)),
    "Rollout": (
        Rollout,
        ("advantage", "credits", "length", "masked", "reward", "segments", "weight"),
    ),
    "a segment": (Segment, ("sampled", "tokens")),
}
"""What a policy gradient of a plugin is handed, of which these attributes are promised."""
PATH = Path(__file__).resolve().parents[1] / "tests" / "compat" / "stable.json"


def _set_by(cls: type) -> set[str]:
    """Attributes that a class's methods set."""
    return set(re.findall(r"self\.(\w+) =", inspect.getsource(cls)))


def names() -> dict[str, list[str]]:
    """What is stable, sorted: a part of the API -> its names."""
    found = {
        "posttrain_recipes.plugin": plugin.__all__,
        "posttrain_recipes.testing": testing.__all__,
        "posttrain_recipes.training": training.__all__,
        "hooks": [name for name in vars(Hooks) if name.startswith("ptl_")],
        "metrics": list(METRICS),
    }
    for name, home in MODULES.items():
        module = importlib.import_module(f"posttrain_recipes.training.{home}")
        found[f"posttrain_recipes.training.{name}"] = public(module.__name__)
    for name in plugin.__all__:
        value = getattr(plugin, name)
        if not inspect.isclass(value) or not value.__module__.startswith("posttrain_recipes."):
            continue
        if dataclasses.is_dataclass(value):
            found[name] = [field.name for field in dataclasses.fields(value)]
        elif issubclass(value, plugin.Plugin | plugin.Episode):
            found[name] = [one for one in dir(value) if not one.startswith("_")]
    for name, (cls, promised) in HANDED.items():
        known = {*dir(cls), *inspect.get_annotations(cls), *_set_by(cls)}
        found[name] = [one for one in promised if one in known]
    return {part: sorted(listed) for part, listed in sorted(found.items())}


if __name__ == "__main__":
    PATH.write_text(json.dumps(names(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {PATH}")
