"""A real MLflow server behind a password, that is killed and comes back while a run goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from click.testing import CliRunner

from posttrain_recipes.cli.sync import sync
from posttrain_recipes.records import Estimate, EvalResult, Message, Sample
from posttrain_recipes.store import Store
from posttrain_recipes.tracking import mirror, mlstore
from posttrain_recipes.tracking.runs import RecipeRun
from posttrain_recipes.tracking.tracker import MlflowTracker
from tests import browser as browsing
from tests.conftest import Project, Ptl, flat
from tests.tracking_server import BUCKET, PASSWORD, USER, Guard, Server, bucket, s3
from tests.unit.tracking.test_registered import NEXT, trained

HANGS_S = 300.0
"""What has not happened by then never will."""
TOKEN = "dapi-0123456789abcdef"


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    with s3() as environment:
        yield environment


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, store: dict[str, str]) -> Iterator[Server]:
    """With its artifacts in an S3 store, which it alone has the key of."""
    folder = tmp_path_factory.mktemp("mlflow") / "server"
    made = Server(folder, f"s3://{BUCKET}/proxied", store)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def guard(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    made = Guard(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.url)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    monkeypatch.setattr(mirror, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(mirror, "SHARE", 1)
    monkeypatch.setattr(mirror, "LAST_SECONDS", 180.0)
    yield made
    made.answers.set()
    made.shutdown()
    made.server_close()


class Watched:
    """The passes of copying, and the requests that they make, as they happen."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._changed = threading.Condition()
        self.ended = 0
        self.threads: set[str] = set()
        """Who made requests."""
        whole, request = mirror.Copying._pass, requests.Session.request

        def counted(session: requests.Session, *args: Any, **more: Any) -> Any:
            self.threads.add(threading.current_thread().name)
            try:
                return request(session, *args, **more)
            finally:
                self._note(ended=1)

        def told(copying: mirror.Copying) -> None:
            whole(copying)
            self._note()

        patch.setattr(requests.Session, "request", counted)
        patch.setattr(mirror.Copying, "_pass", told)

    def _note(self, ended: int = 0) -> None:
        with self._changed:
            self.ended += ended
            self._changed.notify_all()

    def until(self, condition: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, HANGS_S)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def result(value: float) -> EvalResult:
    return EvalResult({"accuracy": Estimate(value, value - 0.1, value + 0.1, 50)})


SAMPLES = [Sample((Message("user", "1+1?"),), "2", "2", {"exact": 1.0})]


def recipe_run(tracker: MlflowTracker, name: str) -> Any:
    return tracker.run(
        recipe="demo",
        run_name=name,
        resolved_yaml="name: demo\n",
        params={"model": "tiny"},
        tags={"ptl.run": name, "password": PASSWORD},
    )


def work(run: RecipeRun, steps: range, index: int = 1) -> None:
    """A stage."""
    params = {"learning_rate": 0.1}
    with run.stage(name=f"sft-{steps.start}", index=index, params=params) as stage:
        stage.log_dataset("chat", "data/chat.jsonl", "ab" * 32, count=7)
        stage.log_eval("qa", "before", result(0.2), 0)
        stage.log_samples("qa", "before", SAMPLES, 0)
        for step in steps:
            stage.log_metrics({"train/loss": 1 / step}, step)
        stage.log_checkpoint(f"tinker://{run.run_id}/weights/a", "s-1", steps.stop - 1)
        stage.log_eval("qa", "after", result(0.8), steps.stop - 1, "qa", "cd" * 32, "s-1")
        stage.log_samples("qa", "after", SAMPLES, steps.stop - 1)


def on_server(server: Server, name: str) -> tuple[Any, Any, list[Any]]:
    """A client of the server, and the runs of a recipe's run that it has, the recipe's first."""
    from mlflow import MlflowClient

    client = MlflowClient(server.url)
    experiment = client.get_experiment_by_name(mlstore.EXPERIMENT)
    assert experiment
    (parent,) = client.search_runs([experiment.experiment_id], f"tags.`ptl.run` = '{name}'")
    where = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = client.search_runs([experiment.experiment_id], where)
    return client, parent, sorted(children, key=lambda run: run.info.start_time)


@pytest.mark.nightly
def test_a_server_that_is_killed_and_comes_back_gets_everything(
    server: Server, guard: Guard, tmp_path: Path, watched: Watched, store: dict[str, str]
) -> None:
    warnings: list[str] = []
    tracker = MlflowTracker(tmp_path, warn=warnings.append)
    tracker.start()
    with recipe_run(tracker, "demo-1") as run:
        work(run, range(1, 25))
        watched.until(lambda: mirror.remote_id(tmp_path / "runs" / "demo-1"))
        guard.answers.clear()
        assert guard.held.wait(HANGS_S)
        server.kill()
        ended = watched.ended
        work(run, range(25, 50))
        assert watched.ended == ended, "a step waited for a server that is gone"
        assert watched.threads == {"mirror"}
        guard.answers.set()
        watched.until(lambda: warnings)
        server.start()
        work(run, range(50, 60), index=2)
        run.write_text("<html>", "report.html")
    assert tracker.problems == []
    assert len(warnings) == 1, "\n".join(warnings)
    assert "training goes on" in warnings[0]
    assert PASSWORD not in warnings[0]
    assert guard.refused == 0

    client, parent, children = on_server(server, "demo-1")
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["password"] == "***"
    assert parent.data.params["model"] == "tiny"
    assert [child.data.tags["ptl.stage"] for child in children] == ["sft-1", "sft-25", "sft-50"]
    traces: dict[tuple[str, str], Any] = {}
    for child, steps in zip(children, ((1, 25), (25, 50), (50, 60)), strict=True):
        assert child.info.status == "FINISHED"
        history = client.get_metric_history(child.info.run_id, "train/loss")
        assert sorted((m.step, m.value) for m in history) == [(s, 1 / s) for s in range(*steps)]
        assert child.data.params["learning_rate"] == "0.1"
        assert [i.dataset.name for i in child.inputs.dataset_inputs] == ["chat"]
        for when, value in (("before", 0.2), ("after", 0.8)):
            evaluation = client.get_run(child.data.tags[f"ptl.{when}"])
            assert evaluation.info.run_id in child.data.tags["mlflow.note.content"], "links lead on"
            assert evaluation.data.tags["mlflow.parentRunId"] == parent.data.tags["ptl.evaluations"]
            assert evaluation.data.metrics == {"eval/qa/accuracy": value}
            found = client.search_traces(
                locations=[parent.info.experiment_id], run_id=evaluation.info.run_id
            )
            assert {trace.info.tags["when"] for trace in found} == {when}
            traces[child.data.tags["ptl.stage"], when] = found
    (output,) = children[0].outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert model.params["sampler_uri"] == "s-1"
    assert model.source_run_id == children[0].info.run_id
    assert ("eval/qa/accuracy", 0.8) in {(m.key, m.value) for m in model.metrics}
    files = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert files == {"recipe.yaml", "report.html"}
    kept = {item.key for item in bucket(store).objects.filter(Prefix="proxied/")}
    assert any(key.endswith(f"{parent.info.run_id}/artifacts/recipe.yaml") for key in kept)
    measured = client.get_run(children[0].data.tags["ptl.after"]).inputs
    assert [m.model_id for m in measured.model_inputs] == [model.model_id]
    (trace,) = traces["sft-1", "after"]
    assert trace.info.response_preview == "2"
    assert trace.data.spans[0].outputs["content"] == "2"
    assert {a.name for a in trace.info.assessments} == {"exact", "expected"}


@pytest.mark.nightly
def test_what_a_server_missed_is_copied_later(
    server: Server, guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    warnings: list[str] = []
    with recipe_run(MlflowTracker(tmp_path, warn=warnings.append), "demo-2") as run:
        work(run, range(1, 5))
    copying = [thread for thread in threading.enumerate() if thread.name == "mirror"]
    assert copying == [], "it gave up by itself"
    assert guard.refused
    assert "run 'ptl sync'" in warnings[-1]
    arguments = ["--home", str(tmp_path)]
    failed = CliRunner().invoke(sync, arguments, standalone_mode=False)
    assert "could not be brought up to date" in str(failed.exception)
    assert "wrong" not in str(failed.exception)

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    for expected in ("demo-2: copied\n", f"{guard.url} has everything that was meant for it\n"):
        done = CliRunner().invoke(sync, arguments, standalone_mode=False)
        assert done.exception is None, done.exception
        assert done.output == expected
    client, _, (child,) = on_server(server, "demo-2")
    assert len(client.get_metric_history(child.info.run_id, "train/loss")) == 4

    # A crash before it could be remembered makes no second run.
    (tmp_path / "runs" / "demo-2" / "mirror.json").unlink()
    found = mirror.Mirror(tmp_path, guard.url)
    found.open()
    (parent,) = found.local.search_runs(
        [e.experiment_id for e in found.local.search_experiments()], "tags.`ptl.run` = 'demo-2'"
    )
    assert found.copy(parent)
    client, _, (child,) = on_server(server, "demo-2")
    assert len(client.get_metric_history(child.info.run_id, "train/loss")) == 4


def short(tracker: MlflowTracker, name: str) -> None:
    with recipe_run(tracker, name) as run:
        work(run, range(1, 3))


def synced(home: Path) -> Any:
    return CliRunner().invoke(sync, ["--home", str(home)], standalone_mode=False)


def test_a_token_opens_a_server_and_is_kept_nowhere(
    server: Server, guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard.asks = f"Bearer {TOKEN}"
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"{TOKEN}-of-yesterday")
    warnings: list[str] = []
    short(MlflowTracker(tmp_path, warn=warnings.append), "demo-3")
    assert guard.refused
    assert "run 'ptl sync'" in warnings[-1]
    assert "could not be brought up to date" in str(failed := synced(tmp_path).exception)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    assert synced(tmp_path).output == "demo-3: copied\n"
    client, _, (child,) = on_server(server, "demo-3")
    assert len(client.get_metric_history(child.info.run_id, "train/loss")) == 2
    told = "".join([*warnings, str(failed)])
    assert TOKEN not in told
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or TOKEN.encode() not in file.read_bytes(), file


def test_who_may_only_read_loses_nothing_and_is_told(
    server: Server, guard: Guard, tmp_path: Path
) -> None:
    guard.may_write = False
    warnings: list[str] = []
    short(MlflowTracker(tmp_path, warn=warnings.append), "demo-4")
    assert "PERMISSION_DENIED: Permission denied" in warnings[0]
    assert "training goes on" in warnings[0]
    failed = synced(tmp_path).exception
    assert "PERMISSION_DENIED: Permission denied" in str(failed)
    guard.may_write = True
    assert synced(tmp_path).output == "demo-4: copied\n"
    assert len(on_server(server, "demo-4")[2]) == 1


def test_artifacts_go_straight_to_an_s3_store(
    server: Server,
    guard: Guard,
    tmp_path: Path,
    store: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An experiment whose artifacts the server does not pass on: who writes needs the key."""
    import boto3
    from mlflow import MlflowClient
    from mlflow.store.artifact import s3_artifact_repo

    # boto3 keeps the first keys that a process shows it: those of a test before this one.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    client = MlflowClient(server.url)
    client.create_experiment("direct", f"s3://{BUCKET}/direct")
    monkeypatch.setattr(mlstore, "EXPERIMENT", "direct")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", store["MLFLOW_S3_ENDPOINT_URL"])
    warnings: list[str] = []
    short(MlflowTracker(tmp_path, warn=warnings.append), "demo-5")
    assert "Unable to locate credentials" in warnings[0]
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    # 'ptl sync' is a process of its own; in one process MLflow keeps a client for minutes.
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    assert synced(tmp_path).output == "demo-5: copied\n"
    _, parent, _ = on_server(server, "demo-5")
    kept = bucket(store).Object(f"direct/{parent.info.run_id}/artifacts/recipe.yaml")
    assert kept.get()["Body"].read() == b"name: demo\n"


def test_a_checkpoint_is_promoted_on_a_server(
    server: Server, guard: Guard, project: Project, ptl: Ptl
) -> None:
    home = trained(project, 9)
    (record,) = Store(home).runs()
    with recipe_run(MlflowTracker(home), record.id) as run, run.stage(name="dpo", index=1) as stage:
        checkpoint = record.stages[0].checkpoint
        assert checkpoint
        assert checkpoint.state_uri
        stage.log_checkpoint(checkpoint.state_uri, checkpoint.sampler_uri, 3)
    with Store(home).open(record) as directory:
        record.stages[0].tracking_id = stage.run_id
        directory.save()
    words = ("promote", "demo-1", "tone", "--alias", "champion", "--home", str(home))
    guard.may_write = False
    refused = ptl(*words)
    assert refused.code == 1
    assert "PERMISSION_DENIED: Permission denied" in refused.err
    assert PASSWORD not in refused.err
    guard.may_write = True
    assert ptl(*words).code == 0
    from mlflow import MlflowClient

    client = MlflowClient(server.url)
    made = client.get_model_version_by_alias("tone", "champion")
    child = client.get_run(made.run_id)  # of the server: its page leads there
    assert child.data.tags[mirror.ORIGIN] == stage.run_id
    model = client.get_logged_model(child.outputs.model_outputs[0].model_id)
    assert '"name": "tone"' in model.tags["mlflow.modelVersions"], "and the model's to it"
    assert made.tags["eval.held_out/exact_match"] == "0.75"
    # Here it can be started from; elsewhere it is told where it lies.
    project.write("next.yaml", NEXT)
    assert ptl("plan", "next.yaml", "--home", str(home)).code == 0
    other = ptl("plan", "next.yaml", "--home", str(project.path / "other"))
    assert other.code == 2
    assert f"({home})" in flat(other.err)


@pytest.mark.nightly
@pytest.mark.skipif(bool(browsing.MISSING), reason=browsing.MISSING)
def test_mlflows_compare_page_shows_two_runs(server: Server, guard: Guard, tmp_path: Path) -> None:
    for name, rate, value in (("demo-6", 0.1, 0.4), ("demo-7", 0.2, 0.8)):
        with (
            recipe_run(MlflowTracker(tmp_path), name) as run,
            run.stage(name="sft", index=1, params={"learning_rate": rate}) as stage,
        ):
            stage.log_eval("qa", "before", result(0.2), 0)
            stage.log_eval("qa", "after", result(value), 9)
    pairs = [on_server(server, name)[1].info for name in ("demo-6", "demo-7")]
    runs = quote(json.dumps([one.run_id for one in pairs]))
    experiments = quote(json.dumps([pairs[0].experiment_id]))
    with browsing.browser() as window:
        window.size(1300, 2000)
        window.open(f"{server.url}/#/compare-runs?runs={runs}&experiments={experiments}")
        window.until("return document.body.innerText.includes('stages/sft/qa/accuracy_before')", 60)
        shown = window.run("return document.body.innerText")
    assert "Comparing 2 Runs" in shown
    rows = " ".join(shown.split())
    assert "sft/learning_rate 0.1 0.2" in rows, "what differs"
    metrics = rows.partition("Metrics Show diff only")[2].partition("Artifacts")[0]
    for told in ("eval/qa/accuracy", "stages/sft/qa/accuracy_before", "0.4 0.8", "0.2 0.2"):
        assert told in metrics


@pytest.mark.nightly
@pytest.mark.skipif(bool(browsing.MISSING), reason=browsing.MISSING)
def test_mlflows_page_of_evaluations_shows_before_and_after(
    server: Server, guard: Guard, tmp_path: Path
) -> None:
    with recipe_run(MlflowTracker(tmp_path), "demo-8") as run:
        work(run, range(1, 5))
    experiment = on_server(server, "demo-8")[1].info.experiment_id
    with browsing.browser() as window:
        window.size(1900, 1000)
        window.open(f"{server.url}/#/experiments/{experiment}/evaluation-runs")
        window.until("return document.body.innerText.includes('before demo-8/1-sft-1')", 60)
        shown = window.run("return document.body.innerText")
        window.run(
            "[...document.querySelectorAll('.eval-runs-table-row')].find("
            "row => row.innerText.includes('after demo-8/1-sft-1')).querySelector('a').click()"
        )
        window.until("return document.body.innerText.includes('1+1?')", 60)
    for told in ("demo-8 evaluations", "after demo-8/1-sft-1", "eval/qa/accuracy", "0.2", "0.8"):
        assert told in shown


@pytest.mark.nightly
def test_roles_of_mlflows_own_basic_auth(
    tmp_path: Path, store: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The app that `mlflow server --app-name basic-auth` is: who may edit, and who may read."""
    pytest.importorskip("flask_wtf", reason="needs mlflow[auth]")
    environment = {
        "MLFLOW_AUTH_ADMIN_USERNAME": "root",
        "MLFLOW_AUTH_ADMIN_PASSWORD": f"{PASSWORD}-root",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key-of-a-test",
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
    }
    (tmp_path / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{tmp_path}/auth.db\nadmin_username = root\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    made = Server(tmp_path / "server", None, environment, ("--app-name", "basic-auth"))
    made.start()

    def become(name: str, password: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    try:
        from mlflow import MlflowClient
        from mlflow.server import get_app_client

        monkeypatch.setenv("MLFLOW_TRACKING_URI", made.url)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        become("root", f"{PASSWORD}-root")
        users = get_app_client("basic-auth", made.url)
        experiment = MlflowClient(made.url).create_experiment(mlstore.EXPERIMENT)
        for name, may in (("ada", "EDIT"), ("bob", "READ")):
            users.create_user(name, PASSWORD)
            users.grant_user_permission(name, "experiment", experiment, may)
        home = tmp_path / "home"
        warnings: list[str] = []
        become("bob", PASSWORD)
        short(MlflowTracker(home, warn=warnings.append), "demo-1")
        assert "Permission denied" in warnings[0]
        assert "Permission denied" in str(synced(home).exception)
        become("ada", PASSWORD)
        assert synced(home).output == "demo-1: copied\n"
        become("bob", PASSWORD)
        assert len(on_server(made, "demo-1")[2]) == 1, "he may look"
        become("eve", PASSWORD)
        assert "You are not authenticated" in str(synced(home).exception)
    finally:
        made.kill()
