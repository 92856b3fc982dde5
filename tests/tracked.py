"""A recipe's run for tests of tracking, and what is logged in it."""

from __future__ import annotations

from typing import Any

from posttrain_recipes.records import Estimate, EvalResult, Message, Sample
from posttrain_recipes.tracking.tracker import MlflowTracker


def recipe_run(tracker: MlflowTracker, **more: Any) -> Any:
    defaults: dict[str, Any] = {
        "recipe": "sft_then_dpo",
        "run_name": "sft_then_dpo-1",
        "resolved_yaml": "name: sft_then_dpo\n",
        "description_md": "Imitate, then prefer.",
        "params": {"model": "tiny"},
        "tags": {"ptl.version": "1"},
    }
    return tracker.run(**{**defaults, **more})


def history(client: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))


def result(value: float, metric: str = "accuracy") -> EvalResult:
    return EvalResult({metric: Estimate(value, value - 0.1, value + 0.1, 50)})


def sample(prompt: str, reply: str) -> Sample:
    return Sample(
        (Message("system", "Be brief."), Message("user", prompt)), reply, "4", {"exact": 1.0}
    )
