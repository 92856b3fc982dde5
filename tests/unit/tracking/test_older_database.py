"""A database that an older MLflow made, with its tables: copied, brought forward, used."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from posttrain_recipes.tracking.tracker import MlflowTracker
from tests.tracked import recipe_run


def older(database: Path, steps: int) -> str:
    """Make an MLflow database `steps` versions of its schema back; the version."""
    import sqlalchemy
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    url = f"sqlite:///{database}"
    config = _get_alembic_config(url)
    version: str = list(ScriptDirectory.from_config(config).walk_revisions())[steps].revision
    engine = sqlalchemy.create_engine(url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, version)
    engine.dispose()
    return version


def version_of(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        [(version,)] = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    return str(version)


def test_a_database_with_older_tables_is_copied_and_brought_forward(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    before = older(database, 8)
    told: list[str] = []
    with MlflowTracker(tmp_path, warn=told.append) as tracker:
        tracker.start()
        with recipe_run(tracker) as run, run.stage(name="sft", index=1) as stage:
            stage.log_metrics({"train/loss": 1.0}, 1)
        assert tracker.problems == []
    assert version_of(database) != before
    [copy] = tmp_path.glob("mlflow.db.before-*")
    assert version_of(copy) == before
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT value FROM metrics").fetchall() == [(1.0,)]
