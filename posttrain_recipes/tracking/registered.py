"""Versions of MLflow's model registry that are checkpoints: registered, looked up, given aliases.

A version's source is the `tinker://` path of a training state: MLflow copies no weights, so the
checkpoint stays where it was trained. What is needed to go on from it stands in the version's tags.

The registry is that of `MLFLOW_TRACKING_URI` (or of `MLFLOW_REGISTRY_URI`, which MLflow reads), or
else of the database below the home.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes.errors import PtlError, UsageError, display_path
from posttrain_recipes.models.registered import RegisteredName
from posttrain_recipes.shown import redact
from posttrain_recipes.tracking import mlstore
from posttrain_recipes.tracking.mlruns import strings

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "ptl.checkpoint."
"""What the tags of `RegisteredCheckpoint` begin with."""
NO_PATH = "; 'ptl promote RUN NAME' registers a checkpoint"


@dataclass(frozen=True)
class RegisteredCheckpoint:
    """What a version says of its checkpoint."""

    state: str
    """The `tinker://` path of the training state."""
    sampler: str
    """The same weights, to be sampled from."""
    base_model: str
    rank: int
    engine: str
    """As the recipe called it."""
    host: str
    """The machine that it was registered on."""
    home: str
    """Where its runs are kept; the embedded engine's checkpoints are there too."""
    run: str
    stage: str

    def tags(self) -> dict[str, str]:
        """As tags of a version."""
        return strings({f"{TAG}{name}": str(value) for name, value in asdict(self).items()})

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> RegisteredCheckpoint | None:
        """What the tags of a version say; None where it is not one of `ptl promote`."""
        found: dict[str, Any] = {f.name: tags.get(f"{TAG}{f.name}") for f in fields(cls)}
        if not all(found.values()) or not str(found["rank"]).isdigit():
            return None
        return cls(**{**found, "rank": int(found["rank"])})


@contextmanager
def _registry(home: Path) -> Iterator[tuple[MlflowClient, str]]:
    """A client of the registry, and its address to show.

    Raises:
        PtlError: it does not answer, or refuses.
    """
    mlstore.make_quiet()
    before = mlstore.CallersSettings()
    server = mlstore.server_uri()
    where = redact(server or mlstore.configured_uri() or display_path(home / mlstore.DATABASE))
    try:
        mlstore.import_mlflow()
        from mlflow import MlflowClient

        yield (MlflowClient(server) if server else mlstore.open_store(home).client), where
    except PtlError:
        raise
    except Exception as error:
        raise PtlError(
            f"MLflow's model registry at {where} cannot be used",
            why=redact(str(error).strip().split("\n")[0])[:600],
            hint="see that MLFLOW_TRACKING_URI is right, the server up, and user, password or "
            "token such that it lets you",
            code="tracking",
        ) from None
    finally:
        before.restore()


def look_up(text: str, home: Path) -> tuple[str, RegisteredCheckpoint]:
    """The number of the version that `models:/NAME@ALIAS` names now, and its checkpoint.

    Raises:
        UsageError: there is no such version, or it is no checkpoint.
        PtlError: the registry does not answer.
    """
    named = RegisteredName.parse(text)
    assert named is not None
    if not (mlstore.configured_uri() or (home / mlstore.DATABASE).is_file()):
        raise UsageError(
            f"there is no {named}: nothing was registered in {display_path(home)}",
            hint="name the home with --home, or the team's server with MLFLOW_TRACKING_URI"
            + NO_PATH,
            code="bad-model",
        )
    with _registry(home) as (client, where):
        found = _find(client, named)
        if found is None:
            raise UsageError(
                f"there is no {named} in MLflow's registry at {where}",
                why=_there_is(client, named),
                hint="name one that is there" + NO_PATH,
                code="bad-model",
            )
    checkpoint = RegisteredCheckpoint.of(found.tags or {})
    if checkpoint is None:
        raise UsageError(
            f"{named} (version {found.version}) is no checkpoint of 'ptl promote'",
            why=f"its source is {redact(str(found.source))}, and it lacks the tags '{TAG}...'",
            hint="name a version that 'ptl promote' registered",
            code="bad-model",
        )
    return str(found.version), checkpoint


def _find(client: MlflowClient, named: RegisteredName) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        if named.alias:
            return client.get_model_version_by_alias(named.name, named.alias)
        return client.get_model_version(named.name, named.version)
    except MlflowException as error:
        # Of an alias that is not there MLflow says that a parameter is wrong.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _there_is(client: MlflowClient, named: RegisteredName) -> str:
    """What the registry has under a name, in words."""
    versions = client.search_model_versions(f"name = '{named.name}'")
    if not versions:
        return f"nothing is registered as '{named.name}'"
    numbers = ", ".join(sorted((str(v.version) for v in versions), key=int))
    aliases = client.get_registered_model(named.name).aliases
    told = ", ".join(f"@{alias} (version {number})" for alias, number in sorted(aliases.items()))
    return f"'{named.name}' has version{'s' * (len(versions) > 1)} {numbers}; " + (
        f"its aliases: {told}" if told else "it has no alias"
    )


def register(
    home: Path,
    name: str,
    checkpoint: RegisteredCheckpoint,
    *,
    tags: Mapping[str, str],
    description: str,
    tracking_id: str | None,
    alias: str | None,
) -> tuple[str, bool]:
    """Register a checkpoint; its version's number, and whether that is new: the same checkpoint is
    registered once under a name, and told again with what is known of it now.

    Args:
        tags: what else is known of it, as its evals.
        description: the version's page, in Markdown.
        tracking_id: its stage's run in the local store.
        alias: moved to this version, from whichever had it.

    Raises:
        PtlError: the registry does not answer, or refuses.
    """
    with _registry(home) as (client, _):
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        whole = {**checkpoint.tags(), **strings(tags)}
        same = [
            one
            for one in client.search_model_versions(f"name = '{name}'")
            if (one.tags or {}).get(f"{TAG}state") == checkpoint.state
        ]
        if same:
            number = str(same[0].version)
            for key, value in whole.items():
                client.set_model_version_tag(name, number, key, value)
            client.update_model_version(name, number, description)
        else:
            run_id, model_id = _tracked(client, home, checkpoint, tracking_id)
            made = client.create_model_version(
                name,
                checkpoint.state,
                run_id,
                tags=whole,
                description=description,
                model_id=model_id,
            )
            number = str(made.version)
        if alias:
            client.set_registered_model_alias(name, alias, number)
        return number, not same


def _tracked(
    client: MlflowClient, home: Path, checkpoint: RegisteredCheckpoint, tracking_id: str | None
) -> tuple[str | None, str | None]:
    """The stage's run and the model that MLflow shows the checkpoint as, where the registry's
    store has them: its page links to them."""
    if not tracking_id:
        return None, None
    run_id: str | None = tracking_id
    if mlstore.server_uri():
        run_id = _copied(home / "runs" / checkpoint.run / "mirror.json", tracking_id)
    if run_id is None:
        return None, None
    try:
        run = client.get_run(run_id)
        for output in (run.outputs.model_outputs or ()) if run.outputs else ():
            params = client.get_logged_model(output.model_id).params or {}
            if params.get("checkpoint_uri") == checkpoint.state:
                return run_id, output.model_id
    except Exception:  # it was deleted there, or is another server's: the version stands alone
        return None, None
    return run_id, None


def _copied(file: Path, run_id: str) -> str | None:
    """What the server calls a local run; None where it does not have it."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["uri"] == redact(mlstore.server_uri() or ""):
            return str(data["runs"][run_id]["remote"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
