"""Tasks of Inspect (inspect-ai) as evals of posttrain_recipes.

The eval `inspect` serves the weights on OpenAI's routes, calls `inspect eval` there, and reads the
log that it writes.
"""

from __future__ import annotations

from posttrain_recipes.plugin import Eval, hookimpl
from ptl_inspect.task import InspectTask

PTL_API = 1


@hookimpl
def ptl_evals() -> list[type[Eval]]:
    """The evals of this package."""
    return [InspectTask]
