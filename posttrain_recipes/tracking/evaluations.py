"""What was measured before and after a stage, where MLflow looks for evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from posttrain_recipes.tracking.mlruns import SOURCE, TrackedRun, TrackingBackend

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

EVALUATED = {"before": "ptl.before", "after": "ptl.after"}
"""The tags of a stage's run that name the runs with its results and replies of before and after."""


GROUP = "ptl.evaluations"
"""The tag of a recipe's run that names the run over all of its evaluations."""
_TYPE = {"mlflow.runType": "genai_evaluate"}


class EvaluationGroup(TrackedRun):
    """What the evaluations of a recipe's run stand below in MLflow's list of runs.

    Its page of evaluations leaves out whatever is below a run that put out a model.
    """

    def __init__(
        self, tracker: TrackingBackend, recipe: str, name: str, of: str, run_id: str | None
    ) -> None:
        labels = {SOURCE: f"before and after each stage of {name}", "ptl.recipe": recipe, **_TYPE}
        super().__init__(tracker, f"{name} evaluations", {**labels, "ptl.of": of}, {}, run_id)
        if self.run_id:
            self.close("FINISHED")


class EvaluationRun(TrackedRun):
    """What was measured before or after a stage: one of MLflow's "Evaluation runs".

    That page lists runs that put out no model, and sets the replies of two side by side, with the
    scores of each.
    """

    def __init__(
        self,
        group: EvaluationGroup,
        recipe: str,
        stage: str,
        name: str,
        when: str,
        run_id: str | None,
    ) -> None:
        labels = {
            SOURCE: f"{stage}, {when}",
            "mlflow.parentRunId": group.run_id,
            "ptl.recipe": recipe,
            "ptl.stage": stage,
            **_TYPE,
        }
        super().__init__(group.tracker, f"{when} {name}", labels, {}, run_id)
        self._models: set[str] = set()
        if self.run_id:
            # Nothing goes on in it: it is whole after every write.
            self.close("FINISHED")

    def log_result(
        self,
        values: Mapping[str, float],
        step: int,
        model_id: str | None,
        dataset: DatasetInput | None,
    ) -> None:
        """What an eval found, by eval and metric, of which checkpoint and on what data."""
        keys = {f"eval/{key}": value for key, value in values.items()}
        new = {key: value for key, value in keys.items() if self.is_new(key, step)}
        self.write_metrics([m for key, value in new.items() for m in self.metric(key, value, step)])
        if dataset is not None:
            self.write_input(dataset, "eval")
        if model_id and model_id not in self._models:
            self._models.add(model_id)
            self.write("log the evaluated model", partial(self._write_model, model_id=model_id))

    def _write_model(self, client: MlflowClient, model_id: str) -> None:
        from mlflow.entities import LoggedModelInput

        client.log_inputs(self.run_id, models=[LoggedModelInput(model_id)])
