"""No message of any command repeats a secret: what is printed is looked through at one place."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from posttrain_recipes import shown
from posttrain_recipes.cli.options import check_host
from posttrain_recipes.engine import __main__ as engine_main
from posttrain_recipes.engine.model.base import BaseModel
from posttrain_recipes.engine.wire import RequestError
from posttrain_recipes.errors import UsageError
from posttrain_recipes.tracking import mlstore
from tests.conftest import Project, Ptl, flat

SECRET = "hunter2-do-not-tell"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *[(name, True) for name in ("DB_PASS", "PASS", "PWD_X", "MYSQL_PWD", "DBPASS", "pass")],
        *[(name, True) for name in ("GPG_PASSPHRASE", "OPENAI_API_KEY", "MYAPIKEY", "PGPASSWORD")],
        *[(name, False) for name in ("PWD", "OLDPWD", "GIT_ASKPASS", "TOKENIZERS_PARALLELISM")],
        *[(name, False) for name in ("COMPASS", "KEYBOARD", "BYPASS_CACHE")],
    ],
)
def test_what_the_environment_keeps_secret_is_known_by_its_name(name: str, secret: bool) -> None:
    told = "at ***" if secret else "at six666"
    assert shown.redact("at six666", {name: "six666"}) == told
    assert shown.redact("at short", {name: "short"}) == "at short"


def test_a_secret_that_is_a_part_of_another_leaves_nothing_of_it() -> None:
    assert shown.redact("abcdefgh!", {"A_KEY": "abcdef", "B_KEY": "abcdefgh"}) == "***!"


DATA = f"https://user:{SECRET}@h/x.jsonl"
SHOWN = """\
name: a
model: ./model
stages: [{name: s, dataset: {use: jsonl, path: PATH}, method: {use: sft}}]
"""


@pytest.mark.parametrize("json_", [(), ("--json",)])
def test_what_any_command_prints_is_without_secrets(
    ptl: Ptl, project: Project, monkeypatch: pytest.MonkeyPatch, json_: tuple[str, ...]
) -> None:
    project.write("in_it.yaml", SHOWN.replace("PATH", DATA))
    project.write("mine.yaml", SHOWN.replace("PATH", "chat.jsonl"))
    for words in (
        ("validate", "in_it.yaml"),
        ("plan", "in_it.yaml"),
        ("preflight", "in_it.yaml", "--offline"),
        ("data", "check", DATA),
        ("data", "show", "in_it.yaml"),
        ("validate", "mine.yaml", "--set", f"stages.s.dataset.path={DATA}"),
        ("validate", "mine.yaml", "--set", f"stages.{DATA}=1"),
        ("plan", "mine.yaml", "--set", f"stages.s.dataset.path={DATA}"),
        ("data", "show", "mine.yaml", "--set", f"stages.s.method.learning_rate={DATA}"),
    ):
        said = ptl(*words, *json_)
        assert said.code != 0
        assert SECRET not in said.out + said.err
        refused = "would stand in files and logs"  # without being repeated
        assert "***" in said.out + said.err or refused in flat(said.out + said.err)
    # The environment's too, wherever it comes from, and what is printed stays JSON.
    monkeypatch.setenv("DB_PASS", "recipe")
    monkeypatch.setenv("X_TOKEN", "sadly-secret")
    text = SHOWN.replace("PATH", "chat.jsonl")
    project.write("named.yaml", text.replace("name: a", "name: sadly-secret"))
    said = ptl("plan", "named.yaml", *json_)
    assert said.code == 0
    assert "sadly-secret" not in said.out
    if json_:
        assert json.loads(said.out)["recipe"] == "***"
    assert json.loads(ptl("schema").out)["title"]


def test_records_are_shown_as_they_are(ptl: Ptl, project: Project) -> None:
    row = {"messages": [{"role": "user", "content": DATA}, {"role": "assistant", "content": "2"}]}
    project.write("chat.jsonl", json.dumps(row) + "\n")
    project.write("mine.yaml", SHOWN.replace("PATH", "chat.jsonl").replace("./model", "ptl/tiny"))
    for words in ((), ("--json",)):
        assert DATA in "".join(ptl("data", "show", "mine.yaml", *words).out.split("\n   | "))


@pytest.mark.parametrize(
    "model", [f"https://user:{SECRET}@h/m", f"HTTP:user:{SECRET}@h", f"x://{SECRET}"]
)
def test_an_address_is_no_model_and_is_not_repeated(
    ptl: Ptl, project: Project, model: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    project.write("mine.yaml", f"name: a\nmodel: {json.dumps(model)}\nstages: []\n")
    for words in (
        ("serve", "--model", f"x={model}"),
        ("serve", "--model", model),
        ("chat", model, "--prompt", "x"),
        ("export", model, "out"),
        ("data", "check", "chat.jsonl", "--model", model),
        ("engines", "check", "--model", model),
        ("validate", "mine.yaml"),
    ):
        said = ptl(*words)
        assert said.code == 2, words
        assert SECRET not in said.out + said.err
        assert "is an address" in said.out + said.err
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTL_ENGINE_TOKEN", "tml-0123456789abcdef")
        told = ["--data-dir", str(tmp_path / "engine"), "--model", f"x={model}"]
        assert engine_main.main(told) == 2
    said_ = capfd.readouterr()
    assert "--model is an address" in said_.err
    assert SECRET not in said_.err
    with pytest.raises(RequestError) as caught:
        BaseModel("x", model, torch.device("cpu"))
    assert SECRET not in str(caught.value)


HOSTS = [f"me:{SECRET}@h", f"http://{SECRET}", "a b", "h/x", f"h:{SECRET}"]


@pytest.mark.parametrize("host", HOSTS)
def test_what_is_no_host_is_refused_and_not_repeated(ptl: Ptl, host: str) -> None:
    for command in ("serve", "ui"):
        said = ptl(command, "--host", host)
        assert said.code == 2
        assert "--host is no host" in said.err
        assert SECRET not in said.out + said.err


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "fe80::1%eth0", "a-b.c", ""])
def test_what_is_a_host_is_one(host: str) -> None:
    check_host(host)


@pytest.mark.parametrize(
    "address",
    [
        f"mysql+x://u:p/w%2f{SECRET}@h",
        f"postgresql://u:12/{SECRET}@h/db",
        f"http://u:{SECRET[:3]}/{SECRET}@h",
        f"postgresql://u:p@h:{SECRET}",
        f"http://[{SECRET}@h",
    ],
)
def test_an_address_of_tracking_that_cannot_be_read_is_not_told_in_part(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UsageError) as caught:
        mlstore.configured_uri()
    told = shown.redact(str(caught.value))
    assert "u:" not in told
    assert "'p'" not in told
    assert "host and port cannot be read" in told or "%2F" in told


def test_a_log_is_without_secrets() -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "at %s", (DATA,), None)
    assert shown.PlainFormatter("%(message)s").format(record) == "at https://***@h/x.jsonl"


@pytest.mark.parametrize("part", ["a-", "a.", "http://", "u:p@h ", "?token"])
def test_a_long_text_is_looked_through_to_its_end(part: str) -> None:
    """A pattern that began anew at each character would take hours."""
    text = "@" + part * (300_000 // len(part))
    assert len(shown.redact(text, {})) <= len(text)
