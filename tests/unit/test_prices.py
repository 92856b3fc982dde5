"""`ptl prices`: the table that plans go by, the published one, and what is told of prices."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.planning import costs, pricing
from posttrain_recipes.running import preflight
from posttrain_recipes.running.metering import Meter
from posttrain_recipes.store import Spent
from posttrain_recipes.training.loops import token_counts
from posttrain_recipes.workload import Usage
from tests.conftest import Project, Ptl

ROW = {
    "name": "Made up 8B",
    "tinker_id": "made/up-8B",
    "type": "Hybrid",
    "arch": "Dense",
    "size": "Small",
    "context": "32K",
    "prefill": "$0.20",
    "cached_prefill": "$0.04",
    "sample": "$0.60",
    "train": "$1,000.50",
    "note": "Half price, retiring July 12",
}
SAMPLED = {**ROW, "tinker_id": "made/sampled", "train": "—", "note": None}


@dataclass
class Site:
    """A local server in the place of the one that publishes."""

    address: str
    body: str = ""
    status: int = 200
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            self.send_response(made.status)
            self.end_headers()
            self.wfile.write(made.body.encode())

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Site(f"http://127.0.0.1:{server.server_port}/tinker/models.json")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(ptl: Ptl) -> Call:
    """`ptl WORD...`: its exit code, and what it prints."""

    def run(*words: str) -> tuple[int, str, str]:
        said = ptl(*words)
        return said.code, said.out, said.err

    return run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    return made


@pytest.fixture(autouse=True)
def no_table_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(pricing.VARIABLE, raising=False)


def test_the_published_table_is_read(home: Path, site: Site, call: Call) -> None:
    site.body = json.dumps([ROW, SAMPLED])
    code, out, _ = call("prices", "--refresh", "--from", site.address, "--home", str(home))
    assert code == 0
    assert site.asked == ["/tinker/models.json"]
    found = pricing.load(home)
    note = "Half price, retiring July 12"
    expected = pricing.Price(prefill=0.2, sample=0.6, train=1000.5, note=note)
    assert found.of("made/up-8B") == expected
    assert found.of("made/sampled") == pricing.Price(prefill=0.2, sample=0.6)
    assert found.of("Qwen/Qwen3-8B").train == 0.44
    assert "made/up-8B" in out
    assert note in out
    assert f"{found.note}; USD per million tokens" in out
    assert [file.name for file in home.iterdir()] == ["prices.yaml"]
    code, _, _ = call("prices", "--refresh", "--from", site.address, "--home", str(home))
    assert code == 0


def test_the_table_is_shown_with_its_date(home: Path, call: Call) -> None:
    code, out, _ = call("prices", "--home", str(home))
    assert code == 0
    assert "prices of 2026-10-07, https://tinker-docs" in out
    [row] = [line for line in out.splitlines() if line.startswith("Qwen/Qwen3.6-35B-A3B")]
    assert row.split()[1] == "?"
    assert "storage of checkpoints: $0.10 per GB and month" in out
    code, out, _ = call("prices", "--json", "--home", str(home))
    assert json.loads(out)["models"]["Qwen/Qwen3-8B"]["train"] == 0.44


WRONG = {
    "no JSON": "<html>",
    "deep": "[" * 100_000,
    "no list": '{"error": "gone"}',
    "empty": "[]",
    "no rows": "[1]",
    "no name": json.dumps([{**ROW, "tinker_id": None}]),
    "no price": json.dumps([{**ROW, "train": "cheap"}]),
    "less than nothing": json.dumps([{**ROW, "train": "-1"}]),
    "not a number": json.dumps([{**ROW, "train": "nan"}]),
    "a truth": json.dumps([{**ROW, "train": True}]),
    "too dear": json.dumps([{**ROW, "sample": "$1e9"}]),
    "twice": json.dumps([ROW, ROW]),
    "no prices at all": json.dumps([{"tinker_id": "a/b"}]),
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_nonsense_is_refused_and_nothing_written(
    home: Path, site: Site, call: Call, body: str
) -> None:
    site.body = body
    kept = f"date: 2026-01-01\nsource: {site.address}\nmodels: {{a/b: {{train: 1}}}}\n"
    (home / "prices.yaml").write_text(kept)
    code, _, err = call("prices", "--refresh", "--from", site.address, "--home", str(home))
    assert code == 1
    assert "is no table of prices" in err
    assert "Traceback" not in err
    assert (home / "prices.yaml").read_text() == kept
    assert len(list(home.iterdir())) == 1


def test_a_site_that_does_not_answer_is_told_in_one_sentence(
    home: Path, site: Site, call: Call
) -> None:
    where = ["--home", str(home)]
    site.status = 503
    code, _, err = call("prices", "--refresh", "--from", site.address, *where)
    assert (code, "answers 503" in err) == (1, True)
    code, _, err = call("prices", "--refresh", "--from", "http://127.0.0.1:1/models.json", *where)
    assert (code, err.count("\n")) == (1, 2)  # and what explains it
    assert "cannot be reached (" in err
    assert call("prices", "--refresh", "--from", "file:///etc/passwd", *where)[0] == 2
    assert call("prices", "--from", site.address, *where)[0] == 2
    assert not list(home.iterdir())


def test_a_table_of_ones_own_is_left(home: Path, site: Site, call: Call) -> None:
    site.body = json.dumps([ROW])
    mine = "date: 2026-01-01\nsource: my contract\nmodels: {a/b: {train: 1}}\n"
    (home / "prices.yaml").write_text(mine)
    code, _, err = call("prices", "--refresh", "--from", site.address, "--home", str(home))
    assert (code, "a table of your own (source: my contract)" in err) == (2, True)
    assert (home / "prices.yaml").read_text() == mine
    assert not site.asked


# --- what is told of them ------------------------------------------------------------------------

RECIPE = """\
name: demo
model: MODEL
engine: tinker
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl, test_size: 1}
    method: {use: sft, learning_rate: 1e-4}
    eval: [{use: nll}]
"""
UNKNOWN = "no price of training of Qwen/Qwen3.6-35B-A3B is known"


def test_a_training_price_that_is_missing_is_told(project: Project, call: Call) -> None:
    text = RECIPE.replace("MODEL", "Qwen/Qwen3.6-35B-A3B")
    plan = project.plan(text)
    code, out, _ = call("plan", "mine.yaml")
    assert (code, UNKNOWN in out) == (0, True)
    found = [one for one in preflight.cheap(plan, project.path) if one.check == "prices"]
    assert [(one.verdict, one.message[: len(UNKNOWN)]) for one in found] == [("warning", UNKNOWN)]
    assert found[0].hint == "'ptl prices --refresh' reads the published table"
    only = text.replace("    method: {use: sft, learning_rate: 1e-4}\n", "")
    assert not costs.unpriced(project.plan(only), pricing.load(project.path))
    assert not costs.unpriced(project.plan(text.replace("tinker", "local")), pricing.load(Path()))


def test_a_discount_is_told_with_its_day(project: Project) -> None:
    text = RECIPE.replace("MODEL", "thinkingmachines/Inkling")
    project.write("own.jinja", "{{ messages[0].content }}")
    plan = project.plan(f"{text}renderer: {{chat_template: own.jinja}}\n")
    assert costs.unpriced(plan, pricing.load(project.path)) == [
        "prices of thinkingmachines/Inkling: half price for a limited time, as of 2026-10-07"
    ]


@pytest.mark.parametrize(("engine", "told"), [("tinker", True), ("local", False)])
def test_what_a_stage_leaves_is_billed(
    project: Project, call: Call, engine: str, told: bool
) -> None:
    model = "Qwen/Qwen3-8B" if told else "ptl/nano"
    project.plan(RECIPE.replace("MODEL", model).replace("tinker", engine))
    _, out, _ = call("plan", "mine.yaml")
    line = "leaves  2 checkpoints, a state and its sampler; the service bills their storage, $0.10"
    assert (f"{line} per GB and month" in out) == told


def test_storage_without_a_price(project: Project) -> None:
    plan = project.plan(RECIPE.replace("MODEL", "Qwen/Qwen3-8B"))
    unknown = pricing.Prices({}, "")
    assert "at a price that is not in the table" in str(
        costs.storage(plan, plan.stages[0], unknown)
    )
    own = "date: 2026-01-01\nsource: mine\nstorage: 0.5\nmodels: {}\n"
    project.write("prices.yaml", own)
    assert pricing.load(project.path).storage == 0.5


# --- a loss of one's own -------------------------------------------------------------------------


def test_a_forward_pass_of_training_counts_as_the_dearer() -> None:
    usage = Usage(train=10**6, prefill=3 * 10**6, forward=10**6)
    assert pricing.Price(prefill=1, train=4).usd(usage) == pytest.approx(4 + 2 + 4)
    assert pricing.Price(prefill=5, train=4).usd(usage) == pytest.approx(4 + 10 + 5)
    assert pricing.Price(prefill=5).usd(Usage(prefill=9, forward=9)) is None
    assert usage.tokens == 4 * 10**6
    assert usage.scaled(0.5).forward == (usage + usage).forward // 4
    spent = Spent(1.0, 1, 2, 3, 2)
    assert (spent + spent - spent) == spent
    assert spent.usage.forward == 2


def test_methods_with_a_loss_of_their_own_say_what_they_read(project: Project) -> None:
    head = "name: demo\nmodel: ptl/nano\nstages:\n  - name: one\n"
    pairs = "    dataset: {use: jsonl, path: pairs.jsonl}\n    method: {use: METHOD}\n"
    asked = "    dataset: {use: jsonl, path: questions.jsonl}\n    reward: {use: exact_match}\n"
    rl = "    method: {use: grpo, max_tokens: 8OWN}\n"
    found = {}
    for name, stage in {
        "dpo": pairs.replace("METHOD", "dpo"),
        "reward_model": pairs.replace("METHOD", "reward_model"),
        "sft": pairs.replace("METHOD", "sft").replace("pairs", "chat"),
        "grpo": asked + rl.replace("OWN", ""),
        "kl": asked + rl.replace("OWN", ", kl_beta: 0.1, kl_in: loss"),
    }.items():
        plan = project.plan(head + stage)
        estimator = costs.Estimator(plan, pricing.load(project.path))
        work, _ = estimator._training(plan.stages[0])
        assert work is not None
        found[name] = work.usage
    assert {name for name, usage in found.items() if usage.forward} == {
        "dpo",
        "reward_model",
        "kl",
    }
    assert all(usage.forward in (0, usage.train) for usage in found.values())
    assert found["kl"].prefill - found["kl"].forward >= found["grpo"].prefill


def test_a_budget_of_tokens_takes_its_share_of_it() -> None:
    assert token_counts.Usage is Usage
    assert Usage(train=4, prefill=8, forward=4).scaled(0.5) == Usage(2, 4, 0, 2)


def test_the_meter_tells_forward_passes_apart() -> None:
    class Datum:
        class model_input:
            length = 7

    meter, spent = Meter(), Spent()
    data: Any = [Datum, Datum]
    with meter.into(spent):
        meter._forwarded(None, data)
        meter._read_and_trained(None, data)
        meter._trained(None, data)
    assert (spent.train, spent.prefill, spent.forward) == (28, 28, 28)
