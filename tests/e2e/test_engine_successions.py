"""Clients that come one after another on one engine: each begins with the weights it asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tinker
from tinker import types

from posttrain_recipes.engine import launch
from posttrain_recipes.engine.launch import EngineProcess
from posttrain_recipes.models import BUNDLED

pytestmark = pytest.mark.usefixtures("quiet_sdk")

WAIT_S = 120.0
IDS = [(7 * i) % 400 + 5 for i in range(5)]
DATUM = types.Datum(
    model_input=types.ModelInput.from_ints(IDS[:-1]),
    loss_fn_inputs={"target_tokens": IDS[1:], "weights": [1.0] * 4},
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    data_dir = tmp_path_factory.mktemp("data")
    models: dict[str, str] = {name: str(path) for name, path in BUNDLED.items()}
    with launch.start(models, data_dir, data_dir / "engine.log") as engine:
        yield engine


def loss(trainer: tinker.TrainingClient) -> float:
    out = trainer.forward_backward([DATUM], "cross_entropy").result(WAIT_S)
    total: float = out.metrics["loss:sum"]
    return total


def lived(engine: EngineProcess, model: str, rank: int, seed: int, start: str | None) -> float:
    """The first loss of a client that then trains hard and goes."""
    with tinker.ServiceClient(base_url=engine.base_url, api_key=engine.api_key) as service:
        if start is None:
            trainer = service.create_lora_training_client(model, rank=rank, seed=seed).result()
        else:
            trainer = service.create_training_client_from_state(start).result()
        first = loss(trainer)
        trainer.optim_step(types.AdamParams(learning_rate=0.05)).result(WAIT_S)
    return first


@pytest.mark.nightly
@pytest.mark.parametrize("model", sorted(BUNDLED))
@pytest.mark.parametrize("ranks", [(4,), (2, 8)], ids=str)
def test_ten_fresh_models_show_the_base_models_loss(
    engine: EngineProcess, model: str, ranks: tuple[int, ...]
) -> None:
    found = [lived(engine, model, ranks[i % len(ranks)], i, None) for i in range(10)]
    assert found == pytest.approx([found[0]] * 10, rel=1e-5)


def test_ten_loaded_models_show_the_checkpoints_loss(engine: EngineProcess) -> None:
    with tinker.ServiceClient(base_url=engine.base_url, api_key=engine.api_key) as service:
        trainer = service.create_lora_training_client("ptl/nano", rank=4, seed=0).result()
        before = loss(trainer)
        for _ in range(3):
            trainer.optim_step(types.AdamParams(learning_rate=0.02)).result(WAIT_S)
            after = loss(trainer)
        saved = trainer.save_state("trained").result(WAIT_S).path
    assert after < 0.9 * before
    found = [lived(engine, "ptl/nano", 4, i, saved) for i in range(10)]
    assert found == pytest.approx([after] * 10, rel=1e-5)
