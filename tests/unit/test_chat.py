"""`ptl chat` and `ptl export` before an engine is there: what a target means, what a talk keeps."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from posttrain_recipes.cli.chat import _converse, chat
from posttrain_recipes.cli.export import export
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.inference import target as targets
from posttrain_recipes.inference.conversation import ChatClient, Talk
from posttrain_recipes.records import Checkpoint
from posttrain_recipes.store import RunRecord, StageRecord, Store


def stage(name: str, saved: bool = True) -> StageRecord:
    path = f"tinker://{name}:train:0/sampler_weights/final"
    checkpoint = Checkpoint("ptl/nano", path, path) if saved else None
    status = "finished" if saved else "failed"
    return StageRecord(name, name, "sft", status=status, checkpoint=checkpoint)


def save(home: Path, run: str, *stages: StageRecord, engine: str = "local") -> None:
    record = RunRecord(
        run, run.rpartition("-")[0], "f", "ptl/nano", engine, "r.yaml", None, 0, {},
        f"2026-01-0{run[-1]}", list(stages), status="finished",
    )  # fmt: skip
    with Store(home).open(record) as directory:
        directory.save()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    save(tmp_path, "a-1", stage("sft"), stage("dpo"), stage("last", saved=False))
    save(tmp_path, "a-2", stage("sft"))
    save(tmp_path, "far-3", stage("sft"), engine="tinker")
    save(tmp_path, "none-4", stage("sft", saved=False))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a-1", "a-1/dpo"), ("a-1/sft", "a-1/sft"), ("a", "a-2/sft"), (None, "a-2/sft"),
        ("far-3", "far-3/sft"), ("ptl/tiny", "ptl/tiny"), ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
    ],
)  # fmt: skip
def test_what_a_target_means(home: Path, text: str | None, said: str) -> None:
    found = targets.find(text, home)
    assert found.said == said
    if "-" in said and "Qwen" not in said:
        name = said.partition("/")[2]
        assert found.model == f"tinker://{name}:train:0/sampler_weights/final"
        assert found.base == "ptl/nano"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a-1/last", "no checkpoint of its stage 'last'"), ("a-1/x", "no stage 'x'"),
        ("none-4", "no checkpoint: no stage of it has ended"), ("nope", "is no run in"),
        ("./nope", "no directory"), ("nine-4/last", "'nine-4' is no run in"),
    ],
)  # fmt: skip
def test_what_is_no_target_is_told(home: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        targets.find(text, home)


def test_where_nothing_was_run_the_bundled_model_talks(tmp_path: Path) -> None:
    assert targets.find(None, tmp_path / "none").model == "ptl/tiny"
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_that_is_elsewhere_is_told_before_anything_starts(home: Path) -> None:
    far = "tinker://far:train:0/sampler_weights/x"
    asked = (
        (chat, ["far-3", "-p", "x"]),
        (chat, [far, "-p", "x"]),
        (export, [far, str(home / "out")]),
    )
    for command, words in asked:
        result: Result = CliRunner().invoke(command, [*words, "--home", str(home)])
        assert isinstance(result.exception, UsageError)
        assert "is not in" in str(result.exception)
        assert "--base-url" in str(result.exception)


def test_the_export_of_a_hosted_run_asks_for_the_key(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    words = ["far-3", str(home / "out"), "--home", str(home)]
    result: Result = CliRunner().invoke(export, words)
    assert "TINKER_API_KEY is not set" in str(result.exception)
    assert not (home / "out").exists()


class Fake(http.server.BaseHTTPRequestHandler):
    """Says back what it was asked, one character an event."""

    asked: list[dict[str, Any]] = []
    keys: list[str | None] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "first"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        self.keys.append(self.headers["Authorization"])
        text = body["messages"][-1]["content"]
        self.send_response(400 if text == "bad" else 200)
        self.end_headers()
        if text == "bad":
            self.wfile.write(b'{"error": {"message": "it exceeds the context window"}}')
            return
        for part in text:
            event = {"choices": [{"delta": {"content": part}}]}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        if text == "late":
            self.wfile.write(b'data: {"error": {"message": "it broke"}}\n\n')
        self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture
def server() -> Iterator[str]:
    Fake.asked, Fake.keys = [], []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fake) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def run(server: str, *words: str, **more: Any) -> Result:
    return CliRunner().invoke(chat, ["--base-url", server, "--api-key", "key", *words], **more)


def test_one_question_from_an_option_or_a_pipe(server: str, tmp_path: Path) -> None:
    words = ["m", "--system", "be brief", "--temperature", "0", "--max-tokens", "5", "--seed", "3"]
    result = run(server, *words, "-p", "héllo\nthere", "--home", str(tmp_path))
    assert (result.exit_code, result.stdout) == (0, "héllo\nthere\n")
    assert Fake.asked[0] == {
        "model": "m", "temperature": 0.0, "max_tokens": 5, "seed": 3, "stream": True,
        "messages": [{"role": "system", "content": "be brief"},
                     {"role": "user", "content": "héllo\nthere"}],
    }  # fmt: skip
    assert Fake.keys == ["Bearer key"]
    assert run(server, input="piped\n").stdout == "piped\n"
    assert Fake.asked[1]["model"] == "first"
    nothing = run(server, input="  \n")
    assert isinstance(nothing.exception, UsageError)


def test_a_run_on_another_server_is_its_checkpoint(server: str, home: Path) -> None:
    run(server, "a-1/sft", "-p", "x", "--home", str(home))
    run(server, "gpt-x", "-p", "x", "--home", str(home))
    assert [body["model"] for body in Fake.asked] == [
        "tinker://sft:train:0/sampler_weights/final", "gpt-x"
    ]  # fmt: skip


def test_what_the_server_says_went_wrong_is_told(server: str) -> None:
    for text, says in (("bad", "context window"), ("late", "it broke")):
        result = run(server, "m", "-p", text)
        assert isinstance(result.exception, PtlError)
        assert says in str(result.exception)
    gone = run("http://127.0.0.1:9", "m", "-p", "x")
    assert "cannot be reached" in str(gone.exception)
    assert isinstance(run("nonsense", "m", "-p", "x").exception, UsageError)


def test_a_conversation_remembers_until_it_is_told_to_forget(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["one", "", "bad", "two", "/help", "/system you are a cat", "three", "/reset",
                  "four", "/exit"])  # fmt: skip
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    _converse(Talk(ChatClient(server, "k"), "m", {}, said="said"))
    out = capsys.readouterr().out
    assert [body["messages"] for body in Fake.asked] == [
        said("one"), said("one", "one", "bad"), said("one", "one", "two"),
        [{"role": "system", "content": "you are a cat"}, *said("three")],
        [{"role": "system", "content": "you are a cat"}, *said("four")],
    ]  # fmt: skip
    assert "/reset forgets what was said" in out
    assert "Ctrl-C stops a reply" in out
    monkeypatch.setattr("builtins.input", lambda _: (_ for _ in ()).throw(EOFError))
    _converse(Talk(ChatClient(server, "k"), "m", {}, said="said"))


def said(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def test_a_reply_that_is_stopped_is_remembered_as_far_as_it_was_heard(server: str) -> None:
    talk = Talk(ChatClient(server, "k"), "m", {})
    parts = talk.say("hello")
    assert [next(parts), next(parts)] == ["h", "e"]
    parts.close()  # type: ignore[attr-defined]
    assert talk.messages == said("hello", "he")


def test_an_adapter_alone_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="is an adapter, and no whole model"):
        targets.find(str(tmp_path / "out"), tmp_path / "home")
