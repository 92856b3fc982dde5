"""`ptl export --push`, against a stand-in of the hub, with the real client."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub.constants
import pytest
import yaml
from click.testing import CliRunner, Result

from posttrain_recipes import models
from posttrain_recipes.cli.export import export
from posttrain_recipes.errors import PtlError
from posttrain_recipes.exporting import card
from posttrain_recipes.exporting.merged import ADAPTER
from tests import exported
from tests import hub as stand_in
from tests.hub import Hub

TOKEN = "hf_" + "s3cr3t" * 5
NAME = "ada/demo"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with stand_in.serving() as hub:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        for module in ("constants", "hf_api", "lfs", "_commit_api", "utils._http"):
            found = __import__(f"huggingface_hub.{module}", fromlist=["x"])
            if hasattr(found, "ENDPOINT"):
                monkeypatch.setattr(found, "ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.chdir(tmp_path)
        yield hub


@pytest.fixture
def home(tmp_path: Path) -> Path:
    base = exported.saved(tmp_path / "base")
    exported.checkpoint(tmp_path / "home", str(base), exported.model("llama"))
    exported.run(tmp_path / "home", str(base))
    return tmp_path / "home"


def ptl(home: Path, *words: str) -> Result:
    return CliRunner().invoke(export, [*words, "--home", str(home)])


def front(text: str) -> Any:
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize(
    ("options", "files", "library"),
    [
        ([], {"adapter_config.json", "adapter_model.safetensors"}, "peft"),
        (["--merge"], {"config.json", "model.safetensors", "tokenizer.json"}, "transformers"),
        (["--gguf", "f16"], {"model.gguf", "Modelfile"}, "gguf"),
    ],
)
def test_what_is_written_is_on_the_hub_with_a_card(
    hub: Hub, home: Path, options: list[str], files: set[str], library: str
) -> None:
    result = ptl(home, "demo-1", "out", *options, "--push", NAME, "--private")
    assert result.exit_code == 0, str(result.exception)
    assert f"at {hub.address}/{NAME}" in result.output
    assert "private" in (made := hub.repositories[NAME]) or made["visibility"] == "private"
    assert {*files, "README.md"} <= set(hub.files)
    for name, content in hub.files.items():
        if name != "adapter_config.json":
            assert (Path("out") / name).read_bytes() == content, name
    text = hub.files["README.md"].decode()
    assert front(text)["library_name"] == library
    assert "| sft | right | 40 | 10.0% ±10.0 | 50.0% ±10.0 |" in text
    assert {token for *_, token in hub.asked} <= {TOKEN, ""}
    assert TOKEN not in result.output + text


@pytest.mark.parametrize("options", [[], ["--merge"], ["--gguf", "f16"]])
def test_whoever_may_read_this_users_files_may_read_what_is_written(
    hub: Hub, home: Path, tmp_path: Path, options: list[str]
) -> None:
    assert ptl(home, "demo-1", "out", *options).exit_code == 0
    (plain := tmp_path / "plain").write_text("")
    modes = {file.name: file.stat().st_mode for file in Path("out").iterdir()}
    assert modes == dict.fromkeys(modes, plain.stat().st_mode)


def test_an_empty_directory_stays_the_one_that_it_is(hub: Hub, home: Path) -> None:
    """It may be where somebody is, or where a disk is mounted; its parent may be another's."""
    (out := Path("others") / "out").mkdir(parents=True)
    before = out.stat().st_ino
    result = ptl(home, "demo-1", str(out))
    assert result.exit_code == 0, str(result.exception)
    assert out.stat().st_ino == before
    assert {file.name for file in out.iterdir()} == {*ADAPTER}
    assert [entry.name for entry in Path("others").iterdir()] == ["out"]


def test_what_fails_leaves_an_empty_directory_as_it_was(
    hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(adapter: Path, out: Path, dtype: str | None) -> None:
        (out / "model.safetensors").write_text("half")
        raise PtlError("no more")

    monkeypatch.setattr("posttrain_recipes.exporting.writing._merge", fails)
    Path("out").mkdir()
    assert isinstance(ptl(home, "demo-1", "out", "--merge").exception, PtlError)
    assert list(Path("out").iterdir()) == []
    assert isinstance(ptl(home, "demo-1", "new", "--merge").exception, PtlError)
    assert not Path("new").exists()


def test_without_a_directory_only_the_hub_has_it(hub: Hub, home: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    result = ptl(home, "demo-1", "--push", NAME)
    assert result.exit_code == 0, str(result.exception)
    assert set(tmp_path.iterdir()) == before
    assert "private" not in str(hub.repositories[NAME])
    config = json.loads(hub.files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "base", "not where it lies on this machine"
    assert str(tmp_path) not in "".join(map(repr, hub.files.values()))


def test_a_checkpoint_that_no_run_names_has_a_card_of_what_is_unknown(hub: Hub, home: Path) -> None:
    (home / "runs" / "demo-1" / "run.json").unlink()
    assert ptl(home, str(exported.PATH), "--push", NAME).exit_code == 0
    text = hub.files["README.md"].decode()
    assert "the data, the recipe and the results are unknown" in text
    assert str(exported.PATH) in text
    assert front(text)["license"] == "unknown"
    assert "licence is unknown" in text


@pytest.mark.parametrize(
    ("refuses", "says", "next_"),
    [
        ({"whoami": (401, "Invalid user token")}, "does not accept the token", "HF_TOKEN"),
        ({"create": (401, "Invalid user token")}, "does not accept the token", "HF_TOKEN"),
        ({"create": (403, "no rights")}, "the token may not write to ada/demo", "your own USER"),
        ({"preupload": (403, "no rights")}, "may not write to ada/demo", "stays in out"),
        ({"commit": (400, "bad card")}, "the Hugging Face hub refused it", "stays in out"),
        (
            {"create": (409, "You already")},
            "ada/demo is on the Hugging Face hub already",
            "another",
        ),
    ],
)
def test_what_the_hub_refuses_is_told_with_what_to_do(
    hub: Hub, home: Path, refuses: dict[str, tuple[int, str]], says: str, next_: str
) -> None:
    hub.refuses = {part: (code, f"{words} {TOKEN}") for part, (code, words) in refuses.items()}
    result = ptl(home, "demo-1", "out", "--push", NAME)
    assert isinstance(result.exception, PtlError)
    told = str(result.exception)
    assert says in told
    assert next_ in told.partition("next: ")[2]
    assert TOKEN not in told
    assert Path("out").exists() is ("whoami" not in refuses)


@pytest.mark.parametrize("refuses", [{}, {"api/models/": (500, "no")}])
def test_a_repository_with_files_is_left_alone(
    hub: Hub, home: Path, refuses: dict[str, tuple[int, str]]
) -> None:
    hub.repositories[NAME] = {"files": ["README.md"]}
    hub.refuses = refuses
    result = ptl(home, "demo-1", "--push", NAME)
    assert "is on the Hugging Face hub already" in str(result.exception)
    assert "stays in" not in str(result.exception)
    assert hub.files == {}


def test_a_repository_with_files_is_told_before_anything_is_made(hub: Hub, home: Path) -> None:
    hub.repositories[NAME] = {"files": ["README.md"]}
    result = ptl(home, "demo-1", "out", "--merge", "--push", NAME)
    assert "is on the Hugging Face hub already" in str(result.exception)
    assert not Path("out").exists()


@pytest.mark.parametrize("part", ["preupload", "objects/batch", "/lfs/", "/commit/"])
@pytest.mark.parametrize("options", [[], ["--private"]])
def test_what_failed_after_the_repository_was_made_goes_on(
    hub: Hub, home: Path, part: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.refuses = {part: (403, "not now")}
    result = ptl(home, "demo-1", "--push", NAME, *options)
    assert f"{NAME} stands there without files: the same command goes on" in (
        told := str(result.exception)
    )
    assert "stays in" not in told, "an adapter is made again in no time"
    there = str(ptl(home, "demo-1", "out", "--push", NAME, *options).exception)
    assert "the same command without a directory goes on" in there
    assert hub.files == {}
    hub.refuses = {}
    other = [] if options else ["--private"]
    refused = str(ptl(home, "demo-1", "--push", NAME, *other).exception)
    assert f"already, empty and {'private' if options else 'public'}" in refused
    assert hub.files == {}
    result = ptl(home, "demo-1", "--push", NAME, *options)
    assert result.exit_code == 0, str(result.exception)
    assert f"at {hub.address}/{NAME}" in result.output
    assert {*ADAPTER, "README.md"} == set(hub.files)


def test_of_a_commit_whose_answer_is_lost_nothing_is_claimed(
    hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loses(self: Any, *_: Any, **__: Any) -> None:
        raise httpx.ReadError("connection reset")

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", loses)
    told = str(ptl(home, "demo-1", "--push", NAME).exception)
    assert "the Hugging Face hub is not reached" in told
    assert f"{NAME} stands there: where it has no files, the same command goes on" in told


def test_what_another_one_puts_there_meanwhile_is_not_joined(
    hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain_recipes.exporting import hub as pushing

    hub.repositories[NAME] = {}
    looked = pushing._require_empty

    def then_moved(*words: Any) -> str | None:
        found = looked(*words)
        hub.repositories[NAME]["sha"] = "2" * 40
        return found

    monkeypatch.setattr(pushing, "_require_empty", then_moved)
    hub.repositories[NAME]["sha"] = "1" * 40
    monkeypatch.setattr(pushing, "check", lambda *_: None)
    assert isinstance(ptl(home, "demo-1", "--push", NAME).exception, PtlError)
    assert hub.files == {}


@pytest.mark.parametrize("options", [["--merge"], ["--gguf", "f16"]])
def test_a_model_that_took_long_to_make_outlasts_a_push_that_fails(
    hub: Hub, home: Path, tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    hub.refuses = {"/commit/": (403, "not now")}
    told = str(ptl(home, "demo-1", *options, "--push", NAME).exception)
    (kept,) = (tmp_path / "temporary").iterdir()
    assert f"what was written stays in temporary/{kept.name}/model" in told
    assert f"'hf upload {NAME} temporary/{kept.name}/model' goes on with it" in told
    assert any((kept / "model").glob("model.*"))
    assert (kept / "model" / "README.md").is_file()
    hub.refuses = {}
    assert ptl(home, "demo-1", *options, "--push", NAME).exit_code == 0
    assert list((tmp_path / "temporary").iterdir()) == [kept], "what was pushed is not kept too"


def test_a_hub_that_is_not_there_is_told(
    hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:1")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:1")
    result = ptl(home, "demo-1", "out", "--push", NAME)
    assert isinstance(result.exception, PtlError)
    assert "the Hugging Face hub is not reached" in str(result.exception)
    assert not Path("out").exists(), "nothing is made before"


def test_without_a_token_nothing_is_begun(
    hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    result = ptl(home, "demo-1", "out", "--push", NAME)
    assert "there is no token" in str(result.exception)
    assert "HF_TOKEN" in str(result.exception)
    assert not Path("out").exists()
    assert hub.asked == []


@pytest.mark.parametrize("token", ["hf_tök3n", "hf_a b", "hf_\x7f", "hf_🙂"])
def test_a_token_that_is_none_is_told_and_not_shown(
    hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    result = ptl(home, "demo-1", "out", "--push", NAME)
    assert "the token for the Hugging Face hub is malformed" in str(result.exception)
    assert token[3:] not in str(result.exception)
    assert hub.asked == []
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["demo", "a/b/c", "a/../b", "a b/c", "", "a/b\nc", "https://x/y"])
def test_what_names_no_repository_is_refused(hub: Hub, home: Path, name: str) -> None:
    result = ptl(home, "demo-1", "out", "--push", name)
    assert "--push names no repository" in str(result.exception)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["demo-1"], "there is no DIRECTORY"),
        (["demo-1", "out", "--private"], "--private is of what --push puts"),
        (["demo-1", "out", "--merge", "--gguf", "f16"], "writes a merged model already"),
        (["demo-1", "out", "--dtype", "float16"], "--dtype is of the weights that --merge writes"),
    ],
)
def test_options_that_do_not_go_together_are_told(home: Path, words: list[str], says: str) -> None:
    assert says in str(ptl(home, *words).exception)


# --- the card ------------------------------------------------------------------------------------

NASTY = 'x"\n---\nlicense: mit\n# H\n```\n| a |`<script>'


def test_nothing_of_a_run_breaks_out_of_its_place_in_the_card(tmp_path: Path) -> None:
    run = exported.run(tmp_path, "org/base")
    run.id, run.preset, run.version = NASTY, NASTY, NASTY
    stage = run.stages[0]
    stage.name = stage.method = NASTY
    stage.after[0].name = stage.before[0].name = NASTY
    run.resolved["stages"][0].update(name=NASTY, dataset={"use": NASTY, "path": NASTY})
    text = card.write(run, NASTY, "org/base", "adapter", "tinker://x")
    assert front(text) == {
        "base_model": "org/base", "base_model_relation": "adapter", "library_name": "peft",
        "license": "unknown", "pipeline_tag": "text-generation",
        "tags": ["posttrain-recipes", "lora"],
    }  # fmt: skip
    body = text.split("---\n", 2)[2]
    outside = re.sub(r"(?ms)^(`{3,})yaml\n.*?^\1$", "", body)
    assert "<script>" not in re.sub(r"`[^`\n]*`", "", outside)
    assert "---\nlicense" not in outside
    headings = [line for line in outside.splitlines() if line.startswith("#")]
    assert [line[:6] for line in headings[1:]] == ["## Lic", "## Tra", "## Res", "## Rep"]
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    fence = re.findall(r"(?ms)^(`{3,})yaml\n(.*?)^\1$", body)
    assert yaml.safe_load(fence[0][1])["stages"][0]["name"] == NASTY


def test_the_card_names_the_licences_of_the_data_and_which_are_unknown(
    hub: Hub, tmp_path: Path
) -> None:
    from posttrain_recipes.exporting import hub as pushing

    hub.licenses["datasets/org/rows"] = "cc-by-4.0"
    run = exported.run(tmp_path, "org/base")
    parts = [
        {"use": "huggingface", "path": "org/rows"},
        {"use": "jsonl", "path": "/home/ada/mine.jsonl"},
        {"use": "jsonl", "path": "hf://datasets/org/rows@main/a.jsonl"},
        {"use": "jsonl", "path": "https://host/far.jsonl?token=hunter2"},
    ]
    run.resolved["stages"][0]["dataset"] = {"use": "mix", "parts": parts}
    used = card.data_of(run, "sft")
    assert used == ["org/rows", "mine.jsonl", "https://host/far.jsonl"]
    licences = pushing.data_licences(used)
    text = card.write(run, "sft", "org/base", "adapter", "tinker://x", None, licences)
    assert front(text)["datasets"] == ["org/rows"]
    assert "- `org/rows`: `cc-by-4.0`" in text
    assert "- `mine.jsonl`: unknown to the program" in text
    assert "hunter2" not in text
    assert [path for _, path, _ in hub.asked] == ["/api/datasets/org/rows"]


def test_the_card_does_not_tell_where_things_lie_on_this_machine(tmp_path: Path) -> None:
    run = exported.run(tmp_path, str(tmp_path / "secret" / "base"))
    text = card.write(run, "sft", str(tmp_path / "secret" / "base"), "model", "tinker://x")
    assert str(tmp_path) not in text
    assert "/home/ada" not in text
    assert "path: rows.jsonl" in text
    assert "is not on the hub" in text
    assert "base_model" not in front(text)


@pytest.mark.parametrize(
    ("value", "shared"),
    [
        ("/no_think", "/no_think"), ("/a/b/c.jsonl", "c.jsonl"), ("~/x/y", "y"), ("a/b", "a/b"),
        ("/a/b\nc", "/a/b\nc"), (r"C:\Users\ada\x.jsonl", "x.jsonl"), (["/a/b"], ["b"]), (3, 3),
        ("C:/Users/ada/x.jsonl", "x.jsonl"), (r"\\host\ada\x.jsonl", "x.jsonl"), ("~ada/x", "x"),
        ("file:///home/ada/x", "x"), ("FILE:/home/ada/x", "x"), ("/home/ada/x\n", "x"),
        (" /home/ada/x", "x"), ("file:///C:/Users/ada/x", "x"), ("s3://bucket/a", "s3://bucket/a"),
        ("~", "~"), ("/", "/"), ("Q: a/b", "Q: a/b"), ("", ""),
    ],
)  # fmt: skip
def test_of_an_absolute_path_the_last_part_is_shared(value: Any, shared: Any) -> None:
    assert card.shareable(value) == shared


def test_the_licence_is_that_of_the_base_where_it_is_known(hub: Hub, tmp_path: Path) -> None:
    from posttrain_recipes.exporting import hub as pushing

    hub.licenses["org/base"] = "apache-2.0"
    assert pushing.license_of("org/base") == "apache-2.0"
    assert pushing.license_of("org/other") is None
    assert card.license_of("ptl/tiny") == "mit"
    assert card.license_of(str(models.BUNDLED["ptl/nano"])) == "mit"
    assert card.base_name(str(models.BUNDLED["ptl/nano"])) == "ptl/nano"
    (tmp_path / "README.md").write_text("---\nlicense: [a, b]\n---\n")
    assert card.license_of(str(tmp_path)) is None
