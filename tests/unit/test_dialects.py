"""Translations that need no server: fields, names, messages, and what an answer is completed by."""

from __future__ import annotations

import re
from typing import Any

import httpx
import numpy as np
import pytest
from tinker.proto import tinker_public_pb2 as pb

from posttrain_recipes.cli import check_page
from posttrain_recipes.dialects import LACKS, passes, requests, upstream
from posttrain_recipes.dialects.translator import KEPT, Awaited, ServerModel, _full_path
from posttrain_recipes.dialects.upstream import DeclinedError, FailedError
from posttrain_recipes.probe import CHECKS, Outcome


def test_what_no_such_server_does_are_checks() -> None:
    assert set(LACKS) <= set(CHECKS)


@pytest.mark.parametrize(
    ("route", "dropped", "asked", "what"),
    [
        ("create_session", {"project_id": None}, {"project_id": "p"}, "projects"),
        ("create_model", {"optimizer_config": {"type": "adamw"}},
         {"optimizer_config": {"type": "dimuon", "version": 1}}, "optimizers other than Adam"),
        ("load_weights", {"weights_access_token": None}, {"weights_access_token": "t"}, "accounts"),
        ("optim_step", {}, {"optimizer_params": {"type": "dimuon"}}, "optimizers other than Adam"),
        ("save_weights", {"overwrite": False}, {"overwrite": True}, "overwrite"),
        ("save_weights_for_sampler", {"kind": "snapshot"}, {"kind": "inflight"}, "in training"),
        ("save_weights_for_sampler", {}, {"ttl_seconds": 60}, "ttl_seconds"),
        ("asample", {"topk_sample_logprobs": 0}, {"topk_sample_logprobs": 2}, "topk_sample"),
        ("asample", {"prompt_alt_tokens_k": 0}, {"prompt_alt_tokens_k": 1}, "prompt_alt_tokens_k"),
        ("asample", {"record_stability_info": None}, {"record_stability_info": True}, "records"),
    ],
)  # fmt: skip
def test_newer_fields_are_dropped_as_they_are_by_default_and_refused_otherwise(
    route: str, dropped: dict[str, Any], asked: dict[str, Any], what: str
) -> None:
    kept = requests.older(route, {"model_id": "m", **dropped})
    assert kept["model_id"] == "m"
    assert not set(dropped) & set(kept)
    with pytest.raises(DeclinedError, match=f"dialect 0.25, which has no .*{what}") as error:
        requests.older(route, {"model_id": "m", **asked})
    assert error.value.status == 422


def test_names_of_checkpoints_fit_and_stay_apart() -> None:
    assert requests.checkpoint_name("sft-000050") == "sft-000050"
    first, second = requests.checkpoint_name("v1.5"), requests.checkpoint_name("v1_5")
    assert second == "v1_5"
    assert first.startswith("v1_5-")
    assert requests.NAME.fullmatch(first)
    assert requests.NAME.fullmatch(requests.checkpoint_name("ä" * 300))
    assert requests.checkpoint_name("a" * 201) != requests.checkpoint_name("a" * 202)


def test_numbers_have_no_gaps_and_stay_where_a_request_is_sent_again() -> None:
    model = ServerModel("m", sent=1)  # its loading was the first
    assert [model.number(asked) for asked in (1, 2, 2, 3)] == [2, 3, 3, 4]
    model.take_back(3)  # the server did not accept it
    assert model.number(4) == 4
    model.take_back(2)  # an older one's number is taken
    assert model.number(2) == 3


def test_of_answers_that_came_the_last_few_are_remembered() -> None:
    known: Awaited[int] = Awaited()
    for number in map(str, range(KEPT + 2)):
        known[number] = 1
    for number in map(str, range(KEPT + 1)):
        known.answered(number)
    assert sorted(map(int, known)) == list(range(1, KEPT + 2))


def test_weights_to_sample_from_have_their_whole_path() -> None:
    saved = {"type": "save_weights_for_sampler", "path": "tinker://m/one"}
    assert _full_path(saved)["path"] == "tinker://m/sampler_weights/one"
    state = {"type": "save_weights", "path": "tinker://m/weights/one"}
    assert _full_path(state) == state
    assert _full_path({**saved, "path": None})["path"] is None
    assert requests.sampled("tinker://m/weights/one") is None


def output(**fields: list[list[float]]) -> pb.ForwardBackwardOutput:
    made = pb.ForwardBackwardOutput()
    record = made.loss_fn_outputs.add()
    for name, arrays in fields.items():
        ends = np.cumsum([0, *(4 * len(one) for one in arrays)]).astype(np.int64)
        record.fields[name].data = np.float32(sum(arrays, [])).tobytes()
        record.fields[name].offsets = ends.tobytes()
        record.fields[name].dtype = pb.DTYPE_FLOAT32
    return made


def loss(made: pb.ForwardBackwardOutput, given: passes.PassAsked) -> float:
    whole = passes.with_loss(made.SerializeToString(), given)
    return float(pb.ForwardBackwardOutput.FromString(whole).metrics["loss:sum"])


def test_the_loss_is_computed_where_the_server_tells_none() -> None:
    made = output(logprobs=[[-1.0, -2.0], [-3.0]], elementwise_loss=[[9.0, 9.0], [9.0]])
    weights = [np.float32([1.0, 0.5]), None]
    assert loss(made, passes.PassAsked("cross_entropy", weights)) == 5.0
    assert loss(made, passes.PassAsked("ppo", [None, None])) == 27.0
    made.metrics["loss:sum"] = 4.0
    assert loss(made, passes.PassAsked("cross_entropy", weights)) == 4.0


def test_no_loss_is_made_up() -> None:
    made = output(logprobs=[[-1.0, -2.0]])
    with pytest.raises(FailedError, match="tells no loss of 'ppo'"):
        loss(made, passes.PassAsked("ppo", [None]))
    with pytest.raises(FailedError, match="2 log-probabilities for 3 targets"):
        loss(made, passes.PassAsked("cross_entropy", [np.ones(3, np.float32)]))
    with pytest.raises(FailedError, match="of 1 of 2 sequences"):
        loss(made, passes.PassAsked("cross_entropy", [None, None]))


def sampled(prompt: list[float], rows: int = 0) -> bytes:
    made = pb.SampleResponse(prompt_logprobs=np.float32(prompt).tobytes())
    if rows:
        ids, values = np.arange(2 * rows, dtype=np.int32), np.zeros(2 * rows, np.float32)
        made.topk_prompt_logprobs.CopyFrom(
            pb.TopkLogprobs(token_ids=ids.tobytes(), logprobs=values.tobytes(), k=2, length=rows)
        )
    return bytes(made.SerializeToString())


def test_the_first_token_of_a_prompt_has_an_empty_entry() -> None:
    def values(answer: bytes, length: int, last: int | None = None) -> list[float | None]:
        whole = pb.SampleResponse.FromString(passes.with_first(answer, length, last))
        found = np.frombuffer(whole.prompt_logprobs, np.float32)
        return [None if np.isnan(value) else float(value) for value in found]

    assert values(sampled([-1.0, -2.0]), 3) == [None, -1.0, -2.0]
    assert values(sampled([np.nan, -1.0, -2.0]), 3) == [None, -1.0, -2.0]  # it is there already
    assert values(sampled([-1.0, -2.0]), 3, last=1) == [None, None, -2.0]
    table = pb.SampleResponse.FromString(
        passes.with_first(sampled([-1.0, -2.0], rows=2), 3, None)
    ).topk_prompt_logprobs
    assert (table.length, table.k) == (3, 2)
    assert np.frombuffer(table.token_ids, np.int32).tolist() == [0, 0, 0, 1, 2, 3]
    assert np.frombuffer(table.logprobs, np.float32)[:2].tolist() == [-99999.0] * 2


def test_what_is_wrong_is_told_in_the_servers_words() -> None:
    missing = [{"loc": ["body", "model_id"], "msg": "Field required"}]
    for body, words in (
        ({"detail": missing}, "body.model_id: Field required"),
        ({"detail": "no such model"}, "no such model"),
        ({"message": "slow down"}, "slow down"),
    ):
        assert upstream.detail(httpx.Response(422, json=body)) == words
    assert upstream.detail(httpx.Response(502, text="")) == "HTTP 502"


def test_a_page_tells_checks_and_recipes() -> None:
    found = [
        Outcome(name, f"a | {name}", "no" if name == "gradient:sum" else "yes", "why")
        for name in CHECKS
    ]
    text = check_page.page("Some server 1.2", "m", "0.25", found)
    assert text.startswith("## Some server 1.2\n")
    assert f"{len(CHECKS) - 1} of {len(CHECKS)} checks, with the model `m`, dialect 0.25; " in text
    assert "| sft | nothing |" in text
    assert "| dpo | `gradient:sum` |" in text
    assert re.search(
        r"\| `gradient:sum` \| a \\\| gradient:sum \| \*\*no\*\*: why \| \d+ recipes", text
    )
