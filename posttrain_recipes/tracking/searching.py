"""Runs by what MLflow has of them: its own search, so that a filter means here what it means there.

https://mlflow.org/docs/latest/ml/search/search-runs
"""

from __future__ import annotations

from pathlib import Path

from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.shown import redact
from posttrain_recipes.tracking import mlstore

EXAMPLE = (
    "\"metrics.`eval/held_out/exact_match` > 0.8 and attributes.status = 'FINISHED' and "
    "tags.`ptl.gates` = 'passed'\": names with a '/' or a '.' in backticks, text in quotes"
)


def search(home: Path, where: str) -> set[str]:
    """The ids of the runs that a filter of MLflow's search finds, by what the store below `home`,
    or the database that the environment names, has of the recipes' runs; stages are left out.

    Raises:
        UsageError: MLflow cannot read the filter.
        PtlError: the store cannot be opened.
    """
    if not (mlstore.configured_uri() or (home / mlstore.DATABASE).is_file()):
        return set()
    before = mlstore.CallersSettings()
    found: set[str] = set()
    try:
        store = mlstore.open_store(home)
        from mlflow.exceptions import MlflowException

        token: str | None = None
        while True:
            try:
                page = store.client.search_runs(
                    [store.experiment_id], where, max_results=1000, page_token=token
                )
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                raise UsageError(
                    "--where is no filter of MLflow's search",
                    why=str(error).strip().split("\n")[0][:400],
                    hint=f"write {EXAMPLE}",
                    code="wrong-value",
                ) from None
            # A stage's run is below one that has the tag.
            found |= {run.data.tags["ptl.run"] for run in page if "ptl.run" in run.data.tags}
            token = page.token
            if not token:
                return found
    except PtlError:
        raise
    except Exception as error:
        raise PtlError(
            "MLflow's store cannot be searched",
            why=redact(str(error).strip().split("\n")[0])[:600],
            code="tracking",
        ) from None
    finally:
        before.restore()
