"""The notebooks of the learning path run from an empty directory, with the installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = sorted((ROOT / "docs" / "learn").glob("*.ipynb"))
PLUGINS = {"01_rl_foundations": ("ptl_gymnasium", "ptl_chess")}
# What a run takes is for the nightly tests: mlflow alone takes seconds to set up.
SMALLEST = """\
import posttrain_recipes as ptl

!ptl init . --recipe sft
stage = {
    "name": "sft",
    "dataset": {"use": "jsonl", "path": "data/chat.jsonl", "limit": 8},
    "method": {"use": "sft", "batch_size": 8, "learning_rate": 1e-3},
}
print("warnings:", ptl.validate({"name": "small", "model": "ptl/nano", "stages": [stage]}))
"""


def _tool() -> Any:
    spec = importlib.util.spec_from_file_location(
        "run_notebooks", ROOT / "tools" / "run_notebooks.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _written(path: Path, code: str) -> Path:
    import nbformat

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbformat.write(notebook, path)
    return path


def test_a_notebook_runs_and_its_outputs_are_elsewhere(tmp_path: Path) -> None:
    import nbformat

    notebook = _written(tmp_path / "small.ipynb", SMALLEST)
    kept = notebook.read_bytes()
    assert _tool().main([str(notebook), "--output", str(tmp_path / "done")]) == 0
    assert notebook.read_bytes() == kept
    executed = nbformat.read(tmp_path / "done" / "small.ipynb", as_version=4)
    assert "warnings: []" in str(executed.cells[0].outputs)


def test_a_failed_cell_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = _written(tmp_path / "wrong.ipynb", "assert False, 'as it should'")
    assert _tool().main([str(notebook)]) == 1
    assert "as it should" in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_all(notebook: Path, tmp_path: Path) -> None:
    for plugin in PLUGINS.get(notebook.stem, ()):
        pytest.importorskip(plugin)
    assert _tool().main([str(notebook), "--output", str(tmp_path)]) == 0
