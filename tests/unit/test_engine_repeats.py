"""Requests that come again: the same one is answered again, another one in its place is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tinker.proto import tinker_public_pb2 as pb

from posttrain_recipes.engine.core import scheduler as scheduling
from posttrain_recipes.engine.core.futures import Futures
from posttrain_recipes.engine.core.scheduler import Feed
from tests.live_engine import BASE, Live, message, started


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    kept: list[Futures] = []
    init = Futures.__init__

    def noted(self: Futures) -> None:
        init(self)
        kept.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Futures, "__init__", noted)
        with started(tmp_path_factory.mktemp("engine")) as live:
            live.futures = kept[0]  # type: ignore[attr-defined]
            yield live


def forget_all(live: Live) -> None:
    """As after an hour."""
    futures: Futures = live.futures  # type: ignore[attr-defined]
    for pending in list(futures._by_id.values()):
        futures._forget(pending)


def loss(live: Live, model: str) -> float:
    request = message(model, live.next(model)).SerializeToString()
    out = pb.ForwardBackwardOutput.FromString(live.result(live.post("forward_backward", request)))
    return float(out.metrics["loss:sum"])


def step(live: Live, model: str) -> dict[str, Any]:
    return {"model_id": model, "seq_id": live.next(model), "adam_params": {"learning_rate": 0.3}}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("optim_step", {"adam_params": {"learning_rate": 1e-3}}),
         ("optim_step", {"adam_params": {"learning_rate": 2e-3}})),
        (("optim_step", {"adam_params": {}}), ("save_weights", {"path": "x"})),
        (("save_weights", {"path": "a"}), ("save_weights", {"path": "b"})),
        (("save_weights_for_sampler", {"sampling_session_seq_id": 70}),
         ("save_weights_for_sampler", {"path": "c"})),
    ],
)  # fmt: skip
def test_another_operation_under_a_number_is_refused(live: Live, first: Any, second: Any) -> None:
    model = live.model()
    number = {"model_id": model, "seq_id": live.next(model)}
    done = live.post(first[0], {**number, **first[1]})
    answer = live.result(done)
    other = live.post(second[0], {**number, **second[1]})
    assert other.status_code == 409
    assert "takes the next number" in other.json()["detail"]
    again = live.post(first[0], {**number, **first[1]})
    assert live.result(again) == answer
    assert loss(live, model) > 0  # the numbers after it go on


def test_a_chunk_with_other_data_is_refused(live: Live) -> None:
    model = live.model()
    number = live.next(model)
    sent = message(model, number).SerializeToString()
    assert live.post("forward_backward", sent).status_code == 200
    assert live.post("forward_backward", sent).status_code == 200
    other = message(model, number, length=9).SerializeToString()
    assert live.post("forward_backward", other).status_code == 409


def test_other_samples_under_a_number_are_refused(live: Live) -> None:
    asked = live.sample()
    assert live.post("asample", asked).status_code == 200
    assert live.post("asample", {**asked, "num_samples": 2}).status_code == 409
    assert live.post("asample", asked).status_code == 200


def test_a_sampler_numbered_anew_is_the_same_operation(live: Live) -> None:
    """As the SDK sends it again."""
    model = live.model()
    body = {"model_id": model, "seq_id": live.next(model), "sampling_session_seq_id": 80}
    first = live.result(live.post("save_weights_for_sampler", body))
    again = live.result(
        live.post("save_weights_for_sampler", {**body, "sampling_session_seq_id": 81})
    )
    assert again == first


def test_a_sampler_that_was_refused_for_want_of_room_works_when_it_is_sent_again(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = live.model()
    body = {"model_id": model, "seq_id": live.next(model) + 1, "sampling_session_seq_id": 90}
    with monkeypatch.context() as patch:
        patch.setattr(scheduling, "MAX_EARLY", 0)
        assert live.post("save_weights_for_sampler", body).status_code == 429
    loss_before = message(model, body["seq_id"] - 1).SerializeToString()
    live.result(live.post("forward_backward", loss_before))
    live.next(model)
    made = live.result(live.post("save_weights_for_sampler", body))
    drawn = live.result(
        live.post("asample", live.sample(sampling_session_id=made["sampling_session_id"]))
    )
    assert pb.SampleResponse.FromString(drawn).sequences


def test_unloading_twice_is_unloading_once(live: Live) -> None:
    ref = {"model_id": live.model()}
    first = live.result(live.post("unload_model", ref))
    assert live.result(live.post("unload_model", ref)) == first


def test_a_model_created_again_after_its_answer_was_forgotten_keeps_what_it_learned(
    live: Live,
) -> None:
    model = live.model()
    created = {
        "session_id": live.session,
        "model_seq_id": live.models,
        "base_model": BASE,
        "lora_config": {"rank": 2, "seed": 1},
    }
    before = loss(live, model)
    live.result(live.post("optim_step", step(live, model)))
    after = loss(live, model)
    assert abs(after - before) > 0.01
    forget_all(live)
    assert live.result(live.post("create_model", created))["model_id"] == model
    assert loss(live, model) == pytest.approx(after)
    forget_all(live)
    other = {**created, "lora_config": {"rank": 4}}
    refused = live.post("create_model", other)
    assert refused.status_code == 409
    assert "takes the next model_seq_id" in refused.json()["detail"]


def test_a_model_loaded_again_after_its_answer_was_forgotten_keeps_what_it_learned(
    live: Live,
) -> None:
    source = live.model()
    saved = live.result(
        live.post("save_weights", {"model_id": source, "seq_id": live.next(source), "path": "s"})
    )["path"]
    live.models += 1
    body = {"session_id": live.session, "model_seq_id": live.models, "path": saved,
            "optimizer": False}  # fmt: skip
    model = live.result(live.post("load_weights", body))["model_id"]
    live.sequence[model] = 0
    before = loss(live, model)
    live.result(live.post("optim_step", step(live, model)))
    after = loss(live, model)
    assert abs(after - before) > 0.01
    forget_all(live)
    assert live.result(live.post("load_weights", body))["model_id"] == model
    assert loss(live, model) == pytest.approx(after)


def test_a_batch_of_samples_ends_without_an_error(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[Exception] = []
    monkeypatch.setattr(Feed, "fail", lambda self, error: failures.append(error))
    for _ in range(3):
        live.result(live.post("asample", live.sample()))
    live.goes_on()
    assert failures == []
