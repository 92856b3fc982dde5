"""A server whose gradients are not sums of weights times slopes is told apart by its steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tinker

from posttrain_recipes import probe
from posttrain_recipes.engine import app as engine_app
from posttrain_recipes.engine.core.service import Service
from posttrain_recipes.engine.http.auth import Access
from posttrain_recipes.engine.train.loss_functions import BuiltinLoss
from posttrain_recipes.engine.wire import Datum
from tests.engine_model import build
from tests.listening import listening

TOKEN = "tml-" + "t" * 32


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tinker.ServiceClient]:
    """An engine in a thread of this process, and a client of it."""
    service = Service({"m": str(build(folder / "model"))}, folder / "data")
    with (
        listening(engine_app.build(service, Access(TOKEN))) as address,
        tinker.ServiceClient(base_url=address, api_key=TOKEN) as client,
    ):
        yield client


@pytest.mark.parametrize("divided", [False, True])
def test_a_server_that_divides_by_the_weights_is_told_and_refused_what_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, divided: bool
) -> None:
    """As SkyRL's JAX backend does: each sequence's loss over the sum of its weights."""
    check = BuiltinLoss.check

    def normalized(self: BuiltinLoss, datum: Datum, what: str) -> Datum:
        made = check(self, datum, what)
        weights = made.inputs["weights"]
        total = weights.sum()
        if not divided or total == 0:
            return made
        return Datum(made.tokens, {**made.inputs, "weights": np.float32(weights / total)})

    monkeypatch.setattr(BuiltinLoss, "check", normalized)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    with serving(tmp_path) as service:
        rest = service.create_rest_client()
        outcomes = list(probe.probe(service, rest, "m", ["custom_loss"]))
    found = {one.name: one for one in outcomes}
    assert found["train"].verdict == found["forward"].verdict == "yes"
    assert found["gradient:sum"].verdict == ("no" if divided else "yes"), found["gradient:sum"]
    assert found["custom_loss"].verdict == ("untried" if divided else "yes")
    if divided:
        assert "weight 0.01 moves the step" in found["gradient:sum"].detail
        assert found["custom_loss"].detail == "needs gradient:sum"
