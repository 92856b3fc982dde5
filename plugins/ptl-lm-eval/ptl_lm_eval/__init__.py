"""Tasks of lm-evaluation-harness (lm-eval) as evals of posttrain_recipes.

The eval `lm_eval` serves the weights on OpenAI's routes, calls `lm_eval` there, and reads the
results and samples that it writes.
"""

from __future__ import annotations

from posttrain_recipes.plugin import Eval, hookimpl
from ptl_lm_eval.tasks import LmEval

PTL_API = 1


@hookimpl
def ptl_evals() -> list[type[Eval]]:
    """The evals of this package."""
    return [LmEval]
