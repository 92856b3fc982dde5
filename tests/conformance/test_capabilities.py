"""Every capability check, through the SDK alone: on the embedded engine, or on any other server.

    TINKER_BASE_URL=http://host:port TINKER_API_KEY=... PTL_CONFORMANCE=server \
        python -m pytest tests/conformance

`ptl engines check --base-url URL` prints the same as a table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain_recipes import probe
from posttrain_recipes.engines import Local, Server
from posttrain_recipes.plugin import Connection
from tests.engine_model import build

ELSEWHERE = os.environ.get("PTL_CONFORMANCE") == "server"


@pytest.fixture(scope="module")
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Connection, str]]:
    if ELSEWHERE:
        server = Server(Server.Config(base_url=os.environ["TINKER_BASE_URL"]))
        with server.connect({}, Path(), Path()) as connection:
            served = connection.rest.get_server_capabilities().result().supported_models
            yield connection, str(served[0].model_name)
        return
    home = tmp_path_factory.mktemp("engine")
    models = {"ptl/test": str(build(tmp_path_factory.mktemp("model")))}
    with Local(Local.Config()).connect(models, home, home / "engine.log") as connection:
        yield connection, "ptl/test"


@pytest.fixture(scope="module")
def found(connected: tuple[Connection, str]) -> dict[str, probe.Outcome]:
    connection, model = connected
    outcomes = probe.probe(connection.service, connection.rest, model)
    return {one.name: one for one in outcomes}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", probe.CHECKS)
def test_capability(found: dict[str, probe.Outcome], name: str) -> None:
    outcome = found[name]
    if ELSEWHERE and outcome.verdict != "yes":
        pytest.skip(outcome.detail)
    assert outcome.verdict == ("no" if name in probe.EMBEDDED_LACKS else "yes"), outcome.detail


def test_nothing_that_a_check_saved_is_left(
    connected: tuple[Connection, str], found: dict[str, probe.Outcome]
) -> None:
    kept = connected[0].rest.list_user_checkpoints(limit=1000).result().checkpoints
    assert not [one.tinker_path for one in kept if "/probe-" in one.tinker_path]
