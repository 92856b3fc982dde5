"""Environments of verifiers for posttrain_recipes.

A dataset, `verifiers`: the tasks of a taskset of verifiers 0.4, one of the Environments Hub say,
each an environment that drives itself. It trains under `grpo`, and the eval `episodes` measures it.
"""

from __future__ import annotations

from posttrain_recipes.plugin import Dataset, hookimpl
from ptl_verifiers.dataset import Verifiers

PTL_API = 1


@hookimpl
def ptl_datasets() -> list[type[Dataset]]:
    """The dataset of this package."""
    return [Verifiers]
