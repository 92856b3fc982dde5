"""Rewards by verdict tokens through the SDK and the engine: as transformers has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch

from posttrain_recipes.engine import launch
from posttrain_recipes.methods.reward_model import BradleyTerry, Judged, RewardModel
from posttrain_recipes.models import resolve
from posttrain_recipes.records import Message
from posttrain_recipes.training.judges import verdicts
from posttrain_recipes.training.text.chat_template import load_renderer

ROOT = Path(__file__).resolve().parents[2]
MODEL = "ptl/nano"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tinker.ServiceClient]:
    folder = tmp_path_factory.mktemp("engine")
    with (
        pytest.MonkeyPatch.context() as patch,
        launch.start({MODEL: resolve(MODEL)}, folder, folder / "engine.log") as engine,
    ):
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("TINKER_TELEMETRY", "0")
        with tinker.ServiceClient(base_url=engine.base_url, api_key=engine.api_key) as service:
            yield service


def wait(future: Future[Any]) -> Any:
    return future.result(120)


def test_scores_and_the_first_loss_are_those_of_transformers(
    service: tinker.ServiceClient,
) -> None:
    """A new adapter changes nothing, so the method's first margin is that of the base's scores."""
    from transformers import AutoModelForCausalLM

    rows = (ROOT / "recipes" / "data" / "formal_held_out.jsonl").read_text().splitlines()[:4]
    conversations = [
        (Message("user", row["prompt"]), Message("assistant", row[reply]))
        for row in map(json.loads, rows)
        for reply in ("chosen", "rejected")
    ]
    renderer = load_renderer(resolve(MODEL))
    model = AutoModelForCausalLM.from_pretrained(resolve(MODEL), dtype=torch.float32)
    judgements = [verdicts.judgement(c, renderer) for c in conversations]
    wanted = []
    for one in judgements:
        with torch.no_grad():
            logits = model(torch.tensor([one.prompt])).logits[0, -1]
        wanted.append((logits[one.yes] - logits[one.no]).item())

    sampler = service.create_sampling_client(base_model=MODEL).result()
    assert verdicts.score(sampler, renderer, wait, conversations) == pytest.approx(wanted, abs=1e-3)  # type: ignore[arg-type]

    client = service.create_lora_training_client(base_model=MODEL, rank=4, seed=0).result()
    batch = [Judged(c, r) for c, r in zip(judgements[::2], judgements[1::2], strict=True)]
    objective = BradleyTerry(RewardModel.Config())
    margins = torch.tensor(wanted[::2]) - torch.tensor(wanted[1::2])
    found = objective.metrics(batch, wait(objective.submit(client, batch)))
    assert found["margin"] == pytest.approx(margins.mean().item(), abs=1e-3)
    loss = torch.nn.functional.softplus(-margins).mean().item()
    assert found["train/loss"] == pytest.approx(loss, abs=1e-3)
    for _ in range(5):
        gradient = objective.submit(client, batch)
        client.optim_step(tinker.AdamParams(learning_rate=5e-3))
        later = objective.metrics(batch, wait(gradient))
    assert later["margin"] > found["margin"] + 0.5
