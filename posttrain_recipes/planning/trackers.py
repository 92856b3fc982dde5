"""`trackers:`, who hears of a run beside MLflow. No fingerprint depends on it."""

from __future__ import annotations

from typing import Any

from posttrain_recipes.planning import building
from posttrain_recipes.planning.building import Builder
from posttrain_recipes.plugin import Tracker


def asked(builder: Builder, value: Any) -> tuple[Tracker, ...]:
    """The trackers that a recipe names; of one that cannot be made it is noted why."""
    found = []
    for index, item in enumerate(value if isinstance(value, list) else ()):
        spec = {"use": item} if isinstance(item, str) else item
        made: Tracker | None = building.plugin(builder, "tracker", spec, ("trackers", index))
        found += [made] if made is not None else []
    return tuple(found)
