"""Secrets: what a run leaves is its user's alone, and no message repeats a key or a password."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from posttrain_recipes import private, shown
from posttrain_recipes.cli.serve import serve
from posttrain_recipes.engine import __main__ as engine_main
from posttrain_recipes.engine import launch
from posttrain_recipes.errors import PtlError, RecipeError, UsageError
from posttrain_recipes.language import recipe
from posttrain_recipes.options import without_password
from posttrain_recipes.plugin import Message, Sample
from posttrain_recipes.store import Store
from posttrain_recipes.tracking import mlstore
from posttrain_recipes.tracking.curves import CurveWriter
from posttrain_recipes.watching import Pauses, Watch
from tests.conftest import Project, Ptl
from tests.unit.test_cli import finished

SECRET = "hunter2-do-not-tell"


@pytest.fixture(params=[0o000, 0o022, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(private, "_holders", 0)  # threads that an earlier test left behind
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """What is not 700 or 600."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if not path.is_symlink() and mode != (0o700 if path.is_dir() else 0o600):
            found[str(path.relative_to(folder))] = oct(mode)
    return found


# --- who may read --------------------------------------------------------------------------------


def test_a_home_is_its_users_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    home = tmp_path / ".ptl"
    store = Store(home)
    with store.choosing():
        store.next_id("demo")
    mlstore.create_database(home)
    with store.open(finished()) as directory:
        directory.save()
        directory.save_samples("sft", "e", "after", (Sample((Message("user", "a"),), "b", "c"),))
        CurveWriter(directory.path, "sft").close()
        (home / "artifacts" / "0" / "x").mkdir(parents=True)
        (home / "artifacts" / "0" / "x" / "report.html").write_text("of mlflow")
    assert modes(home) == {}
    assert os.umask(umask) == umask


def test_an_engine_has_the_umask_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def serve_(*_: object) -> None:
        seen.append(os.umask(private.UMASK))

    monkeypatch.setattr(engine_main, "_serve", serve_)
    engine_main.run_server({}, tmp_path, "tml-x")
    assert seen == [private.UMASK]
    home = tmp_path / ".ptl"

    def spawn(*_: object, **__: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(launch.subprocess, "Popen", spawn)
    with pytest.raises(InterruptedError):
        launch.start({}, home / "engine", home / "runs/demo-1/engine.log")
    assert modes(home) == {}


def test_the_umask_of_threads_side_by_side_is_set_back_once(umask: int) -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with private.files():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=other)
    with private.files():
        thread.start()
        inside.wait(20)
    assert os.umask(private.UMASK) == private.UMASK, "the other still works"
    leave.set()
    thread.join()
    assert os.umask(umask) == umask


def open_to_all(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o777 if path.is_dir() else 0o666)


def of_an_older_version(home: Path) -> None:
    for name in ("runs/demo-1/run.json", "runs/demo-1/samples/sft/e-after.jsonl", "mlflow.db",
                 "mlflow.db-wal", "runs/.lock", "artifacts/0/x.html", "engine/runs/a/b.st",
                 "cache/verdicts.sqlite"):  # fmt: skip
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("{}")


@pytest.mark.parametrize("name", [".ptl", "kept"])
def test_an_older_home_is_tightened_when_it_is_opened(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    of_an_older_version(home)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(home / "engine" / "s"))
        beside = tmp_path / "beside"
        beside.write_text("mine")
        (home / "runs" / "link").symlink_to(beside)
        open_to_all(tmp_path)
        assert Store(home).runs() == []
    assert modes(home) == {}
    assert stat.S_IMODE(beside.stat().st_mode) == 0o666, "links are not followed"


def test_a_home_among_the_users_own_things_leaves_those_alone(tmp_path: Path) -> None:
    of_an_older_version(tmp_path)
    for name in ("public_html/index.html", "runs/tensorboard/events", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    open_to_all(tmp_path)
    Store(tmp_path).runs()
    loose = set(modes(tmp_path))
    assert loose == {
        ".",
        "notes.txt",
        "public_html",
        "public_html/index.html",
        "runs/tensorboard",
        "runs/tensorboard/events",
    }


def test_what_belongs_to_another_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_an_older_version(tmp_path / ".ptl")
    open_to_all(tmp_path / ".ptl")
    monkeypatch.setattr(os, "geteuid", lambda: 12345678)
    private.tighten(tmp_path / ".ptl", again=True)
    assert len(modes(tmp_path / ".ptl")) > 8


# --- files that are no recipe --------------------------------------------------------------------

OTHER = {
    "shadow": f"root:$6${SECRET}:19000:0:99999:7:::\n",
    ".env": f"PASSWORD: {SECRET}\n",
    "env": f"{SECRET}: 1\nB: @\n",
    "status": f"Name:\t{SECRET}\n",
    "data.jsonl": f'{{"prompt": "{SECRET}"}}\n{{"prompt": "x"}}\n',
    "one.json": f'{{"{SECRET}": "{SECRET}"}}\n',
    "alias": f"a: *{SECRET}\n",
    "tag": f"a: !{SECRET} 1\n",
    "twice": f"{SECRET}: 1\n{SECRET}: 2\n",
    "environ": f"A={SECRET}\0B=1\0",
    "list": f"- {SECRET}\n",
    "latin": f"caf\udce9 {SECRET}",
    "empty": "",
    "stages": f"stages: [1]\n{SECRET}: {{}}\n",
}


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("link", [False, True])
def test_a_file_that_is_no_recipe_is_not_told_of(project: Project, name: str, link: bool) -> None:
    (project.path / name).write_bytes(OTHER[name].encode("utf-8", "surrogateescape"))
    base = name
    if link:
        (project.path / "base.yaml").symlink_to(name)
        base = "base.yaml"
    project.write("mine.yaml", f"extends: {base}\nname: a\nmodel: ./model\nstages: []\n")
    with pytest.raises((RecipeError, UsageError)) as caught:
        project.plan((project.path / "mine.yaml").read_text())
    assert SECRET not in str(caught.value)
    assert name in str(caught.value)


def test_a_recipe_by_another_name_is_one(project: Project) -> None:
    project.write("base", "model: ./model\nseed: 3\n")
    project.write("mine.yaml", "extends: base\nname: a\n")
    assert recipe.load(Path("mine.yaml")).data["seed"] == 3


# --- keys and passwords --------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["option", "file", "environment", "made"])
def test_serve_repeats_no_token_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    token, used = f"tml-{SECRET}", []

    def run(models: object, folder: object, key: str, *, on_ready: object, **_: object) -> None:
        used.append(key)
        on_ready("http://127.0.0.1:1")  # type: ignore[operator]

    monkeypatch.setattr(engine_main, "run_server", run)
    monkeypatch.delenv("PTL_ENGINE_TOKEN", raising=False)
    words = ["--home", str(tmp_path / ".ptl")]
    if way == "option":
        words += ["--token", token]
    elif way == "file":
        (tmp_path / "token").write_text(token)
        words += ["--token-file", str(tmp_path / "token")]
    elif way == "environment":
        monkeypatch.setenv("PTL_ENGINE_TOKEN", token)
    said = CliRunner().invoke(serve, words)
    assert said.exit_code == 0, said.output
    assert "TINKER_BASE_URL=http://127.0.0.1:1" in said.output
    assert SECRET not in said.output
    assert (used[0] in said.output) == (way == "made")


ADDRESSES = [
    f"http://me:{SECRET}@127.0.0.1:9",
    f"https://{SECRET}@127.0.0.1:9/v1",
    f"http://me:a@{SECRET}@127.0.0.1:9",
    f"http://[{SECRET}@127.0.0.1:9",
]
FIELDS = {
    "server": "engine: {use: server, base_url: URL}",
    "tinker": "engine: {use: tinker, base_url: URL}",
    **{
        use: "stages: [{name: a, dataset: {use: jsonl, path: questions.jsonl}, "
        f"method: {{use: grpo}}, reward: {{use: {use}, endpoint: {{base_url: URL, model: m}}}}}}]"
        for use in ("judge", "rubric")
    },
}


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("field", FIELDS)
def test_an_address_with_a_password_is_refused_and_not_repeated(
    ptl: Ptl, project: Project, field: str, address: str
) -> None:
    stages = "" if "stages" in FIELDS[field] else "stages: []\n"
    text = FIELDS[field].replace("URL", f"'{address}'")
    project.write("mine.yaml", f"name: a\nmodel: ./model\n{stages}{text}\n")
    said = ptl("validate", "mine.yaml")
    assert said.code == 2
    assert SECRET not in said.out + said.err
    assert "base_url" in said.out


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_of_a_command_or_the_environment_is_not_repeated(
    ptl: Ptl, project: Project, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    from posttrain_recipes import engines

    for words in (
        ("chat", "--base-url", address, "--prompt", "x"),
        ("engines", "check", "--base-url", address),
        ("sync", "--tracking-uri", address),
        ("reproduce", "0" * 32, "--tracking-uri", address.replace("http", "sqlite")),
    ):
        said = ptl(*words)
        assert said.code != 0
        assert SECRET not in said.out + said.err
    monkeypatch.setenv("TINKER_BASE_URL", address)
    with pytest.raises(PtlError) as caught, engines._remote(None, "tml-x", {}):
        pass
    assert SECRET not in str(caught.value)


def test_the_watch_of_an_engine_shows_no_password() -> None:
    for watched in (Watch(ADDRESSES[0], "tml-x"), Pauses(ADDRESSES[0])):
        assert SECRET not in watched.base_url
        assert "127.0.0.1:9" in watched.base_url
    odd = Watch("http://[", f"a\n{SECRET}")
    assert odd._ask()
    assert SECRET not in odd._ask()


@pytest.mark.parametrize("key", [f"{SECRET}\nx", f"{SECRET}é", f"{SECRET}\0"])
def test_a_key_that_no_request_can_carry_is_not_repeated(
    ptl: Ptl, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    from posttrain_recipes.connecting import key_of

    said = ptl("chat", "--base-url", "http://127.0.0.1:9", "--prompt", "x", "--api-key", key)
    assert said.code == 2
    assert SECRET not in said.out + said.err
    with pytest.raises(PtlError) as caught:
        key_of(key)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://u:p@h/x", "http://***@h/x"),
        ("https://token@h", "https://***@h"),
        ("http://u:pa/ss@h/x", "http://***@h/x"),
        ("HTTPS://u:p?w@h and more", "HTTPS://***@h and more"),
        ("tinker://a:train:0/weights/x@1", "tinker://a:train:0/weights/x@1"),
        ("http://u:p@ss@h:1/x?a=b@c", "http://***@h:1/x?a=b@c"),
        ("at postgresql+psycopg://u:p/w@h/db and", "at postgresql+psycopg://***@h/db and"),
        ("http://h:80/x@y mail a@b", "http://h:80/x@y mail a@b"),
        ("sqlite:////a/b:c@d.db", "sqlite:////a/b:c@d.db"),
        ("https://h/x?sig=1&access_token=abc&b=2", "https://h/x?sig=***&access_token=***&b=2"),
        ("hf_abcdefgh said", "*** said"),
        ("no recipe https:/u:pw@h/r.yaml", "no recipe https:/***@h/r.yaml"),
        ("http:u:pw@h", "http:***@h"),
        ("http:///u:pw@h", "http:///***@h"),
        ("http:\\\\u:pw@h", "http:\\\\***@h"),
        ("--host u:pw@h", "--host ***@h"),
        ("http://h/#token=abc", "http://h/#token=***"),
        ("mine.yaml:14:17 stage sft@beta=0.1", "mine.yaml:14:17 stage sft@beta=0.1"),
        ("a:sft@beta=0.1", "a:sft@beta=0.1"),
        ("me@example.org", "me@example.org"),
    ],
)
def test_what_is_left_out_of_messages(text: str, expected: str) -> None:
    assert shown.redact(text, {"HF_TOKEN": "hf_abcdefgh", "SHORT_KEY": "x"}) == expected


def test_errors_of_every_command_are_without_what_the_environment_keeps_secret(
    ptl: Ptl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    said = ptl("show", f"x{SECRET}")
    assert said.code == 2
    assert SECRET not in said.err


@pytest.mark.parametrize(
    "text",
    [
        "see https://user:hunter2@h/doc",
        "https://h/x?token=hunter2",
        "http://h/#api_key=hunter2",
        "postgresql://u:hunter2@h/db",
    ],
)
def test_an_address_with_a_secret_is_refused_wherever_it_stands(
    project: Project, text: str
) -> None:
    recipe = f"name: demo\ndescription: '{text}'\nmodel: ./model\nstages:\n  - name: sft\n"
    recipe += "    dataset: {use: jsonl, path: chat.jsonl}\n    method: {use: sft}\n"
    with pytest.raises(RecipeError) as caught:
        project.plan(recipe)
    assert "hunter2" not in str(caught.value)
    assert "in it, which would stand in files" in str(caught.value)
    if text.startswith("http"):
        with pytest.raises(ValueError, match="in it, which would stand in files"):
            without_password(text.removeprefix("see "))
