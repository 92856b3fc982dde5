"""The verbs of the command line from a program, on one run; and that run in a real notebook."""

from __future__ import annotations

import hashlib
import json
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import posttrain_recipes as ptl
from posttrain_recipes import engines
from posttrain_recipes import typed as t

SUITE = [t.eval.nll(name="chat", dataset=t.dataset.jsonl(path="held_out.jsonl"))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("api")
    for name, numbers in (("train", range(1, 9)), ("held_out", range(9, 13))):
        rows = [{"prompt": f"Say {n}.", "completion": str(n)} for n in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch, engines.kept_running():
        patch.chdir(folder)
        patch.setenv("PTL_HOME", str(folder / "home"))
        yield folder


@pytest.fixture(scope="module")
def recipe() -> Any:
    return t.recipe(
        name="counted",
        model="ptl/nano",
        stages=[
            t.stage(
                name="sft",
                dataset=t.dataset.jsonl(path="train.jsonl"),
                method=t.method.sft(learning_rate=1e-3, max_steps=2, batch_size=4),
                eval=SUITE,
            )
        ],
    )


@pytest.fixture(scope="module")
def result(place: Path, recipe: Any) -> ptl.Result:
    return ptl.run(recipe)


def test_an_archive_of_a_run_is_read_and_run_elsewhere(
    result: ptl.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = ptl.pack(result, tmp_path / "counted.zip")
    assert packed.notes == []
    with pytest.raises(ptl.UsageError, match="already there"):
        ptl.pack(result, tmp_path / "counted.zip")
    with zipfile.ZipFile(packed.path) as archive:
        archive.extractall(tmp_path)
    there = tmp_path / result.run_id
    about = json.loads((there / "pack.json").read_text())
    for name, digest in about["files"].items():
        assert hashlib.sha256((there / name).read_bytes()).hexdigest() == digest, name
    assert {"recipe.yaml", "recipe.lock", "report.html", "README.md", "data/train.jsonl"} <= set(
        about["files"]
    )
    assert (there / "adapters" / "sft" / "adapter_model.safetensors").is_file()
    bare = ptl.pack(result, tmp_path / "bare.zip", data=False, weights=False)
    assert any(
        "train.jsonl" in note and "is not in it, as was asked" in note for note in bare.notes
    )
    assert not [name for name in bare.files if name.startswith(("data/", "adapters/"))]
    # On another machine: nothing of the first one is there but the archive.
    monkeypatch.chdir(there)
    again = ptl.run("recipe.yaml", locked=True, home=tmp_path / "elsewhere")
    # Threads of a busy machine add float32 up in another order.
    there_again, here = (r["sft"].after["chat"]["nll"].value for r in (again, result))
    assert there_again == pytest.approx(here, abs=1e-5)
    (there / "data" / "train.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    with pytest.raises(ptl.UsageError, match="is not what recipe.lock locks"):
        ptl.run("recipe.yaml", locked=True, home=tmp_path / "elsewhere")


def test_a_run_is_silent_unless_it_is_asked_to_tell(
    result: ptl.Result, recipe: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ptl.run(recipe).run_id == result.run_id
    assert capsys.readouterr().out == ""
    ptl.run(recipe, progress=True)
    assert "already finished with these inputs" in capsys.readouterr().out


def test_what_a_program_measures_is_what_the_run_measured(result: ptl.Result) -> None:
    base, trained = ptl.eval("ptl/nano", result, suite=SUITE, bounds={"chat": "> 0"})
    (found,) = base.stages.values()
    assert found.after["chat"]["nll"].value == pytest.approx(
        result["sft"].before["chat"]["nll"].value, abs=1e-5
    )
    (again,) = trained.stages.values()
    assert again.after["chat"]["nll"].value == pytest.approx(
        result["sft"].after["chat"]["nll"].value, abs=1e-5
    )
    assert [gate.passed for gate in trained.gates] == [True]
    frame = ptl.compare(base, trained).to_frame()
    assert set(frame["metric"]) == {"nll"}
    with pytest.raises(ptl.UsageError, match="nothing to measure"):
        ptl.eval(suite=SUITE)


def test_what_a_program_exports_says_what_it_is(result: ptl.Result, place: Path) -> None:
    made = ptl.export(result, place / "adapter")
    assert made.path == (place / "adapter").resolve()
    assert (made.said, made.form, made.notes) == (f"{result.run_id}/sft", "adapter", [])
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        file.name for file in made.path.iterdir()
    }
    with pytest.raises(ptl.UsageError, match="is there already"):
        ptl.export(result, place / "adapter")
    with pytest.raises(ptl.UsageError, match="no directory"):
        ptl.export(result)


def test_a_program_talks_to_what_it_trained(result: ptl.Result) -> None:
    with ptl.chat(result, temperature=0.0, max_tokens=8) as talk:
        said = talk("Say 3.")
        assert said == "".join(talk.messages[-1]["content"])
        assert [message["role"] for message in talk.messages] == ["user", "assistant"]
        talk.reset()
        assert talk("Say 3.") == said
    with pytest.raises(ptl.PtlError, match="cannot be reached"):
        talk("Say 3.")


def test_a_program_serves_models_and_ends_the_server(place: Path) -> None:
    with ptl.serve("ptl/nano") as server:
        assert server.api_key not in repr(server)
        assert server.environ["OPENAI_BASE_URL"] == server.openai_base_url
        request = urllib.request.Request(
            f"{server.openai_base_url}/models",
            headers={"Authorization": f"Bearer {server.api_key}"},
        )
        opened = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)
        assert "ptl/nano" in [model["id"] for model in json.load(opened)["data"]]
    with pytest.raises(OSError, match=r"refused|reset"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)


def test_a_program_reproduces_a_run(result: ptl.Result, place: Path) -> None:
    again = ptl.reproduce(result)
    assert again.reproduced
    assert again.changed == []
    assert "reproduced: " in str(again)
    assert "of 2 results identical" in str(again)
    data = place / "train.jsonl"
    data.write_text(data.read_text().replace("Say 1.", "Tell 1."))
    with pytest.raises(ptl.UsageError, match="has changed"):
        ptl.reproduce(result)


@pytest.mark.nightly
def test_a_notebook_shows_a_run_and_its_table(place: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    first = (
        "import posttrain_recipes as ptl\n"
        "from posttrain_recipes import typed as t\n"
        "data = t.dataset.jsonl(path='held_out.jsonl')\n"
        "stage = t.stage(name='sft', dataset=data,\n"
        "    method=t.method.sft(learning_rate=1e-3, max_steps=1, batch_size=4))\n"
        "result = ptl.run(t.recipe(name='cell', model='ptl/nano', stages=[stage]))\n"
    )
    cells = [nbformat.v4.new_code_cell(source) for source in (first, "result", "result.curves")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": place}}).execute()
    shown = [[o.get("data", {}).get("text/html", "") for o in c.outputs] for c in notebook.cells]
    assert len(shown[0]) == 1, notebook.cells[0].outputs
    (progress,) = shown[0]
    assert '<progress value="1" max="1">' in progress
    assert "done in" in progress
    assert "ptl-table" in shown[1][0]
    assert "train/loss" in shown[2][0]
