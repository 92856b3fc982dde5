"""Data at an address: fetched once and where they changed; from the cache where nobody answers."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain_recipes.datasets import remote
from posttrain_recipes.errors import PtlError
from tests.conftest import Project, Ptl, flat

ROWS = '{"prompt": "1 + 1?", "completion": "2"}\n{"prompt": "2 + 2?", "completion": "4"}\n'
RECIPE = """\
name: far
model: ptl/nano
stages:
  - name: sft
    dataset: {use: jsonl, path: "ADDRESS"}
    method: {use: sft, max_steps: 1, learning_rate: 1e-3}
"""


class Files(http.server.SimpleHTTPRequestHandler):
    """Serves a directory and keeps what was asked."""

    asked: list[str]

    def log_message(self, form: str, *args: object) -> None:
        self.asked.append(self.command)

    def __init__(self, *args: object, asked: list[str], **more: object) -> None:
        self.asked = asked
        super().__init__(*args, **more)  # type: ignore[arg-type]


class Served:
    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []  # type: Path, list[str]
        handler = functools.partial(Files, asked=self.asked, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}/rows.jsonl"

    def write(self, text: str, second: int) -> None:
        path = self.folder / "rows.jsonl"
        path.write_text(text)
        os.utime(path, (second, second))

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remote.fetch.cache_clear()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "served").mkdir()
    found = Served(tmp_path / "served")
    found.write(ROWS, 1_000_000)
    yield found
    found.stop()


def test_it_is_fetched_once_and_again_where_it_changed(served: Served) -> None:
    first = remote.fetch(served.address)
    assert (first.path.read_text(), first.path.name) == (ROWS, "rows.jsonl")
    remote.fetch.cache_clear()
    assert remote.fetch(served.address) == first
    assert served.asked == ["HEAD", "GET", "HEAD"]
    served.write(ROWS * 2, 2_000_000)
    remote.fetch.cache_clear()
    second = remote.fetch(served.address)
    assert second.path.read_text() == ROWS * 2
    assert second.sha256 != first.sha256
    assert first.path.read_text() == ROWS, "what another run still reads stays"


def test_where_nobody_answers_the_copy_is_taken_and_told_of(served: Served) -> None:
    first = remote.fetch(served.address)
    served.stop()
    remote.fetch.cache_clear()
    again = remote.fetch(served.address)
    assert (again.path, again.told_by) == (first.path, "cache")
    assert "of the cache, as the server did not answer" in str(again)
    first.path.write_text("spoilt")
    remote.fetch.cache_clear()
    with pytest.raises(PtlError, match="cannot fetch"):
        remote.fetch(served.address)


def test_what_is_not_there_any_more_is_not_taken_from_the_cache(served: Served) -> None:
    remote.fetch(served.address)
    (served.folder / "rows.jsonl").unlink()
    remote.fetch.cache_clear()
    with pytest.raises(PtlError, match="there is no file http://127.0.0.1"):
        remote.fetch(served.address)


def test_a_recipe_names_it_and_validate_asks_nobody(
    project: Project, ptl: Ptl, served: Served
) -> None:
    project.write("far.yaml", RECIPE.replace("ADDRESS", served.address))
    assert ptl("validate", "far.yaml").code == 0
    assert served.asked == []
    said = ptl("plan", "far.yaml").out
    assert f"{served.address}: sha256 " in said
    assert "as Conversation records" in said
    assert f"{served.address}: ok, 2 records" in ptl("data", "check", served.address).out
    shown = ptl("data", "show", "far.yaml", "-n", "1").out
    assert f"1. {served.address}:1" in shown
    served.write("no json\n", 3_000_000)
    remote.fetch.cache_clear()
    said = ptl("plan", "far.yaml")
    assert said.code == 2
    assert f"{served.address}:1  " in said.err


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ftp://h/x.jsonl", "data is not read from ftp://"),
        ("http://example.com/x.jsonl", "write https://"),
        ("https://example.com/", "names no file"),
        ("s3://bucket", "names no file"),
        ("s3://bucket/part-*.jsonl", "is a pattern"),
        ("https://[::1/x.jsonl", "is no address"),
    ],
)
def test_an_address_that_cannot_be_read_is_a_fault_of_the_recipe(
    project: Project, ptl: Ptl, address: str, said: str
) -> None:
    project.write("far.yaml", RECIPE.replace("ADDRESS", address))
    found = ptl("validate", "far.yaml")
    assert found.code == 2
    assert said in flat(found.out)
    assert "far.yaml:5:" in found.out


def test_a_key_in_an_address_is_refused_and_not_repeated(project: Project, ptl: Ptl) -> None:
    for address in ("https://me:hunter2@h/x.jsonl", "https://h/x.jsonl?X-Amz-Signature=hunter2"):
        project.write("far.yaml", RECIPE.replace("ADDRESS", address))
        found = ptl("validate", "far.yaml")
        assert found.code == 2
        assert "hunter2" not in found.out + found.err


def test_a_signed_address_of_the_environment_stands_nowhere(
    project: Project, ptl: Ptl, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNED_URL", f"{served.address}?X-Amz-Signature=hunter2&sig=hunter3")
    project.write("far.yaml", RECIPE.replace("ADDRESS", "${env:SIGNED_URL}"))
    for command in (("plan", "far.yaml"), ("plan", "far.yaml", "--json")):
        said = ptl(*command)
        assert said.code == 0, said.err
        assert "hunter" not in said.out + said.err
    for note in (project.path / "cache").rglob("now.json"):
        assert "hunter" not in note.read_text()


def test_a_bucket_of_a_server_that_speaks_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "mine-alone",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket="rows")
        client.put_object(Bucket="rows", Key="a/train.jsonl", Body=ROWS)
        first = remote.fetch("s3://rows/a/train.jsonl")
        assert first.path.read_text() == ROWS
        client.put_object(Bucket="rows", Key="a/train.jsonl", Body=ROWS * 2)
        remote.fetch.cache_clear()
        assert remote.fetch("s3://rows/a/train.jsonl").path.read_text() == ROWS * 2
        with pytest.raises(PtlError, match="there is no file s3://rows/none.jsonl"):
            remote.fetch("s3://rows/none.jsonl")
    finally:
        server.stop()
