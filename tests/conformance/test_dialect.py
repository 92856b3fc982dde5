"""A server of the 0.25 era, through the translator: what works, what is refused, what is left."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tinker
from tinker import types

import posttrain_recipes as ptl
from posttrain_recipes import dialects, probe
from posttrain_recipes.engines import Server
from posttrain_recipes.errors import PtlError
from posttrain_recipes.models import BUNDLED
from posttrain_recipes.plugin import Connection
from posttrain_recipes.probe.bench import MOST
from posttrain_recipes.store import Store
from posttrain_recipes.tracking import curves
from tests.engine_model import build
from tests.older_server import KEY, OlderServer, embedded, older

pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
BASE = "ptl/test"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = {
        BASE: str(build(tmp_path_factory.mktemp("model"))),
        "ptl/nano": str(BUNDLED["ptl/nano"]),
    }
    with embedded(models, tmp_path_factory.mktemp("data")) as address:
        yield address


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    monkeypatch.setenv("OLDER_KEY", KEY)


@pytest.fixture
def behind(engine: str, quiet: None) -> Iterator[tuple[str, OlderServer]]:
    with older(engine, strict=True) as made:
        yield made


@pytest.fixture
def connection(behind: tuple[str, OlderServer]) -> Iterator[Connection]:
    server = Server(Server.Config(base_url=behind[0], api_key="${env:OLDER_KEY}"))
    with server.connect({BASE: BASE}, Path(), Path()) as made:
        yield made


@pytest.fixture
def client(connection: Connection) -> tinker.TrainingClient:
    return trainer(connection)


def trainer(connection: Connection, **options: Any) -> tinker.TrainingClient:
    options = {"rank": 4, "seed": 1, "train_unembed": False, **options}
    return connection.service.create_lora_training_client(BASE, **options).result()


def datum(ids: list[int], weights: Any = None, targets: Any = None) -> types.Datum:
    inputs = {"target_tokens": targets if targets is not None else ids[1:]}
    if weights is not None:
        inputs["weights"] = weights
    return types.Datum(model_input=types.ModelInput.from_ints(ids[:-1]), loss_fn_inputs=inputs)


DATUM = datum([5, 6, 7, 8, 9], [1.0, 0.5, 0.0, 2.0])


# --- which dialect it is -------------------------------------------------------------------------


def test_the_dialect_is_told_by_answers(engine: str, behind: tuple[str, OlderServer]) -> None:
    assert dialects.told(engine, KEY) == "current"
    assert dialects.told(behind[0], KEY) == "0.25"
    assert dialects.told(engine, "tml-wrong") is None
    assert dialects.told("http://127.0.0.1:9", KEY) is None


def test_an_engine_is_known_by_its_address_and_dialect(behind: tuple[str, OlderServer]) -> None:
    options = {"base_url": behind[0], "api_key": "${env:OLDER_KEY}"}
    server = Server(Server.Config(**options))
    assert (server.identity, server.settled()) == (behind[0], {})  # nobody has asked it yet
    told = server.settle(None, measure=True)
    assert told == f"engine: {behind[0]} speaks the dialect 0.25, which is translated"
    assert server.identity == f"{behind[0]} (dialect 0.25)"
    assert server.settled() == {"dialect": "0.25"}
    named = Server(Server.Config(**options, dialect="0.25"))
    assert named.identity == server.identity
    current = Server(Server.Config(**options, dialect="current"))
    assert current.identity == behind[0]
    assert (current.settle(None, measure=True), current.open_options) == (None, {})


# --- what is translated --------------------------------------------------------------------------


def test_training_goes_on_from_a_checkpoint_under_the_names_that_the_client_invents(
    behind: tuple[str, OlderServer], connection: Connection, client: tinker.TrainingClient
) -> None:
    """Numbers are without gaps, which a strict server sees to."""

    def steps(client: tinker.TrainingClient) -> list[float]:
        losses = []
        for _ in range(2):
            passed = client.forward_backward([DATUM], "cross_entropy")
            client.optim_step(types.AdamParams(learning_rate=1e-2)).result()
            losses.append(passed.result().metrics["loss:sum"])
        return losses

    first = steps(client)
    path = client.save_state("kept.at-2").result().path
    assert path.startswith("tinker://model_")
    ahead = steps(client)
    service = connection.service
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    assert ":train:" in resumed.model_id
    assert resumed.get_info().model_id == resumed.model_id
    assert steps(resumed) == pytest.approx(ahead)
    assert first[0] > first[1] > ahead[0] > ahead[1]
    sampler = resumed.save_weights_and_get_sampling_client().result()
    (drawn,) = sampler.sample(
        types.ModelInput.from_ints([5, 6]), 1, types.SamplingParams(max_tokens=3, stop=[])
    ).result().sequences  # fmt: skip
    assert drawn.sequence_id.endswith(":0")
    run = connection.rest.get_training_run(resumed.model_id).result()
    assert run.base_model == BASE
    with pytest.raises(tinker.NotFoundError):
        service.create_training_client_from_state(path + "x").result()


def test_the_loss_is_a_sum(client: tinker.TrainingClient) -> None:
    output = client.forward([DATUM, datum([3, 4, 5])], "cross_entropy").result()
    first, second = (list(one["logprobs"].data) for one in output.loss_fn_outputs)
    want = -sum(w * p for w, p in zip([1.0, 0.5, 0.0, 2.0], first, strict=True)) - sum(second)
    assert output.metrics["loss:sum"] == pytest.approx(want)
    rl = datum([5, 6, 7])
    rl.loss_fn_inputs["logprobs"] = types.TensorData(data=[-1.0, -1.0], dtype="float32", shape=[2])
    rl.loss_fn_inputs["advantages"] = types.TensorData(data=[1.0, -1.0], dtype="float32", shape=[2])
    passed = client.forward_backward([rl], "importance_sampling").result()
    ratios = [2.718281828 ** (p + 1) for p in passed.loss_fn_outputs[0]["logprobs"].data]
    assert passed.metrics["loss:sum"] == pytest.approx(-(ratios[0] - ratios[1]), rel=1e-4)


def test_prompt_logprobs_have_an_entry_for_each_token(connection: Connection) -> None:
    sampler = connection.service.create_sampling_client(base_model=BASE).result()
    prompt = types.ModelInput.from_ints([5, 6, 7, 8])
    values = sampler.compute_logprobs(prompt).result()
    assert len(values) == 4
    assert values[0] is None
    assert all(value < 0 for value in values[1:])
    params = types.SamplingParams(max_tokens=1, stop=[])
    last = sampler.sample(
        prompt, 1, params, include_prompt_logprobs=True, prompt_logprobs_last_n=2
    ).result()
    assert list(last.prompt_logprobs) == [None, None, *values[2:]]


def test_a_failure_is_an_answer_and_the_client_goes_on(client: tinker.TrainingClient) -> None:
    with pytest.raises(tinker.RequestFailedError, match="2000000000"):
        client.forward([datum([1, 2, 2_000_000_000, 3])], "cross_entropy").result()
    assert client.forward([DATUM], "cross_entropy").result().metrics["loss:sum"] > 0


def test_a_checkpoint_to_sample_from_is_known_while_it_is_there(
    connection: Connection, client: tinker.TrainingClient
) -> None:
    path = client.save_weights_for_sampler("one").result().path
    assert "/sampler_weights/" in path
    assert connection.rest.get_weights_info_by_tinker_path(path).result().base_model == BASE
    connection.rest.delete_checkpoint_from_tinker_path(path).result()
    with pytest.raises(tinker.NotFoundError, match="no checkpoint"):
        connection.rest.get_weights_info_by_tinker_path(path).result()


def test_adapters_are_given_back_without_a_gradient(behind: tuple[str, OlderServer]) -> None:
    address, server = behind
    with dialects.translated(address, KEY) as door:
        for finished in (True, False):
            service = tinker.ServiceClient(base_url=door.base_url, api_key=door.api_key)
            client = service.create_lora_training_client(BASE, rank=4, train_unembed=False).result()
            client.forward_backward([DATUM], "cross_entropy").result()
            assert len(server.held) == 1
            if finished:
                service.close("success").result()
                assert not server.held
    assert not server.held  # the translator's end is that of what nobody finished
    # A gradient that no step used would be the next adapter's.
    assert [step["learning_rate"] for step in server.steps] == [0.0, 0.0]
    service.close("success")


def test_weights_of_a_session_that_ended_are_loaded_again_to_be_sampled_from(
    behind: tuple[str, OlderServer],
) -> None:
    """Where there is a state of the same name, as there is of all that a run saves."""
    prompt = types.ModelInput.from_ints([5, 6, 7, 8])
    with dialects.translated(behind[0], KEY) as door:
        with tinker.ServiceClient(base_url=door.base_url, api_key=door.api_key) as service:
            client = service.create_lora_training_client(BASE, rank=4, train_unembed=False).result()
            client.forward_backward([DATUM], "cross_entropy")
            client.optim_step(types.AdamParams(learning_rate=1e-2)).result()
            client.save_state("both").result()
            paths = [
                client.save_weights_for_sampler(name).result().path for name in ("both", "alone")
            ]
            sampler = service.create_sampling_client(model_path=paths[0]).result()
            values = sampler.compute_logprobs(prompt).result()
        assert not behind[1].held
        with tinker.ServiceClient(base_url=door.base_url, api_key=door.api_key) as service:
            again = service.create_sampling_client(model_path=paths[0]).result()
            assert again.compute_logprobs(prompt).result()[1:] == pytest.approx(values[1:])
            with pytest.raises(tinker.BadRequestError, match="not loaded"):
                service.create_sampling_client(model_path=paths[1]).result()
        assert not behind[1].held


@pytest.mark.parametrize("forgets", [False, True])
def test_a_model_is_not_given_back_where_its_checkpoints_would_go_with_it(
    engine: str, forgets: bool
) -> None:
    def session() -> tinker.ServiceClient:
        return tinker.ServiceClient(base_url=door.base_url, api_key=door.api_key)

    with (
        older(engine, strict=True, forgets=forgets) as (address, server),
        dialects.translated(address, KEY) as door,
    ):
        with session() as service:
            saving, other = (
                service.create_lora_training_client(BASE, rank=4, train_unembed=False).result()
                for _ in range(2)
            )
            path = saving.save_state("kept").result().path
            other.save_weights_and_get_sampling_client().result()
        assert server.held == ({saving.model_id} if forgets else set())
        with session() as service:
            service.create_training_client_from_state(path).result()


# --- what is refused -----------------------------------------------------------------------------

SEVERAL = types.TensorData(data=[1, 2, 3, 4, 5, 6, 7, 8], dtype="int64", shape=[4, 2])
REFUSED = {
    "several targets a position": lambda c: c.forward(
        [datum([5, 6, 7, 8, 9], targets=SEVERAL)], "cross_entropy"
    ),
    "grad_clip_norm": lambda c: c.optim_step(types.AdamParams(grad_clip_norm=1.0)),
    "beta1": lambda c: c.optim_step(types.AdamParams(beta1=0.8)),
    "beta2": lambda c: c.optim_step(types.AdamParams(beta2=0.999)),
    "eps": lambda c: c.optim_step(types.AdamParams(eps=1e-8)),
    "ttl_seconds": lambda c: c.save_state("a", ttl_seconds=3600),
    "overwrite": lambda c: [c.save_state("a", overwrite=True) for _ in range(2)][1],
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_be_without_effect_is_refused_by_name(
    what: str, client: tinker.TrainingClient
) -> None:
    with pytest.raises(tinker.UnprocessableEntityError, match=f"dialect 0.25.*{what}"):
        REFUSED[what](client).result()


@pytest.mark.parametrize("switch", ["train_mlp", "train_attn", "train_unembed"])
def test_a_choice_of_what_is_adapted_is_refused_by_name(
    switch: str, connection: Connection
) -> None:
    with pytest.raises(tinker.UnprocessableEntityError, match=switch):
        trainer(connection, **{switch: switch == "train_unembed"})


def test_samples_with_what_the_dialect_lacks_are_refused_by_name(connection: Connection) -> None:
    sampler = connection.service.create_sampling_client(base_model=BASE).result()
    params = types.SamplingParams(max_tokens=1, stop=[])
    prompt = types.ModelInput.from_ints([5, 6])
    with pytest.raises(tinker.UnprocessableEntityError, match="topk_sample_logprobs"):
        sampler.sample(prompt, 1, params, topk_sample_logprobs=2).result()
    with pytest.raises(tinker.NotFoundError, match=r"dialect 0\.25.*/sessions"):
        connection.rest.list_sessions().result()


def test_a_recipe_that_needs_it_is_refused_without_asking(connection: Connection) -> None:
    missing = connection.missing(["optimizer:grad_clip", "sample"])
    assert list(missing) == ["optimizer:grad_clip"]
    assert "set 'grad_clip: 0'" in missing["optimizer:grad_clip"]
    assert connection.missing(["sample", "load:optimizer"]) == {}


# --- the door, the slots and the whole ------------------------------------------------------------


def test_the_door_is_for_its_clients_alone(behind: tuple[str, OlderServer]) -> None:
    address, server = behind
    server.keys.clear()
    with dialects.translated(address, KEY) as door:
        assert KEY not in repr(door)
        assert door.api_key not in repr(door)

        def status(**headers: str) -> int:
            asked = urllib.request.Request(
                f"{door.base_url}/api/v1/get_server_capabilities",
                headers={name.replace("_", "-"): value for name, value in headers.items()},
            )
            try:
                with urllib.request.urlopen(asked, timeout=10) as got:
                    return int(got.status)
            except urllib.error.HTTPError as error:
                return error.code

        assert status(x_api_key=door.api_key) == 200
        assert status() == 401
        assert status(x_api_key=KEY) == 401
        assert status(x_api_key=door.api_key, host="evil.example") == 403
    assert server.keys == {KEY}
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{door.base_url}/healthz", timeout=10)


@pytest.mark.nightly
def test_the_whole_probe_holds_four_adapters_at_most(
    behind: tuple[str, OlderServer], connection: Connection
) -> None:
    found = {one.name: one for one in probe.probe(connection.service, connection.rest, BASE)}
    assert 2 < behind[1].most <= MOST
    assert not behind[1].held
    expected = {*dialects.LACKS, *probe.EMBEDDED_LACKS, "load:in_place"}
    expected |= {f"checkpoints:{what}" for what in ("ttl", "publish", "copy", "download")}
    lacking = {name for name, one in found.items() if one.verdict != "yes"}
    assert lacking == expected | {"sessions:list"}, {n: found[n].detail for n in lacking ^ expected}


def test_a_server_without_a_free_slot_is_told_as_that(engine: str) -> None:
    with older(engine, slots=0) as (address, _):
        server = Server(Server.Config(base_url=address, api_key="${env:OLDER_KEY}"))
        with server.connect({BASE: BASE}, Path(), Path()) as connection:
            with pytest.raises(PtlError, match="no free slot") as error:
                connection.missing(["train"])
            assert "Maximum number of LoRA adapters (0) reached" in str(error.value.why)
            found = list(probe.probe(connection.service, connection.rest, BASE, ["train"]))
    assert [(one.verdict, one.full) for one in found] == [("untried", True)]
    assert found[0].detail.startswith("the server has no free slot for an adapter: ")


RECIPE = """\
name: whole
model: ptl/nano
lora: {{rank: 4}}
stages:
  - name: one
    dataset: {{use: jsonl, path: {data}/chat.jsonl, limit: 24}}
    method: {{use: sft, learning_rate: 2e-3, batch_size: 8, save_every: 1{clip}}}
    eval: [{{use: nll, dataset: {{use: jsonl, path: {data}/held_out.jsonl, limit: 8}}}}]
  - name: two
    dataset: {{use: jsonl, path: {data}/sums.jsonl, limit: 8}}
    method: {{use: grpo, learning_rate: 2e-3, batch_size: 2, group_size: 2, max_tokens: 4,
             max_steps: 1{clip}}}
    reward: {{use: exact_match}}
"""
DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"


@pytest.mark.nightly
def test_a_whole_run_has_the_numbers_that_it_has_without_the_translator(
    engine: str,
    behind: tuple[str, OlderServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A recipe that says nothing of clipping runs without, and it is told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    address = behind[0]

    def run(at: str, clip: str = "") -> Any:
        Path("whole.yaml").write_text(RECIPE.format(data=DATA, clip=clip))
        spec = f"{{use: server, base_url: '{at}', api_key: '${{env:OLDER_KEY}}'}}"
        return ptl.run("whole.yaml", home="home", overrides=[f"engine={spec}"]).record

    there, here = run(address), run(engine, ", grad_clip: 0")
    assert [stage.status for stage in there.stages] == ["finished", "finished"]
    assert there.resolved["engine"]["dialect"] == "0.25"
    assert here.resolved["engine"]["dialect"] == "current"
    losses = [
        [value for _, value in curves.read(Store(Path("home")).path(run.id), "one")["train/loss"]]
        for run in (there, here)
    ]
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    ends = [run.stages[0].after[0].metrics["nll"].value for run in (there, here)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)
    kept = Path("home").rglob("run.json")
    text = "".join(path.read_text() for path in kept)
    assert KEY not in text
    assert address in text
    with pytest.raises(PtlError, match="optimizer:grad_clip"):
        run(address, ", grad_clip: 0.5")
    assert not behind[1].held
