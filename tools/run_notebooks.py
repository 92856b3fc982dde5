"""Execute the notebooks of the learning path, each in a directory that is empty at first.

    python tools/run_notebooks.py                          # all of docs/learn
    python tools/run_notebooks.py docs/learn/02_sft.ipynb --output DIR

Prints the seconds that each takes and exits with 1 where a cell fails. Nothing is written to the
notebooks themselves: they are kept without outputs, and --output is where executed copies go.
Needs nbclient, ipykernel and matplotlib; 01_rl_foundations also plugins/ptl-gymnasium and
plugins/ptl-chess.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).resolve().parent.parent / "docs" / "learn"
CELL_SECONDS = 900


def found(places: Sequence[Path]) -> list[Path]:
    """The notebooks that are named, or lie in directories that are, in the order of the path."""
    return [
        notebook
        for place in places
        for notebook in (sorted(place.glob("*.ipynb")) if place.is_dir() else [place])
    ]


def environment() -> Mapping[str, str]:
    """The kernel's environment: `ptl` of this Python, and runs kept where the notebook runs."""
    env = {name: value for name, value in os.environ.items() if name != "PTL_HOME"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    # tqdm, which transformers brings, asks for ipywidgets in every notebook; none are used here.
    env.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    return env


def execute(notebook: Path, workdir: Path) -> Any:
    """The notebook with the outputs that it has when it runs in `workdir`.

    Raises:
        CellExecutionError: a cell failed; `notebook` on disk is as it was.
    """
    content = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        content,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(workdir)}},
    )
    return client.execute(env=dict(environment()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("notebooks", nargs="*", type=Path, default=[NOTEBOOKS])
    parser.add_argument("--output", type=Path, help="where executed copies are written")
    chosen = parser.parse_args(arguments)
    notebooks = found(chosen.notebooks)
    if not notebooks:
        print(f"no notebooks in {', '.join(map(str, chosen.notebooks))}", file=sys.stderr)
        return 1
    failed = []
    for notebook in notebooks:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix=f"{notebook.stem}-") as workdir:
            try:
                executed = execute(notebook, Path(workdir))
            except CellExecutionError as error:
                failed.append(notebook.name)
                print(f"{notebook.name}: {error}", file=sys.stderr)
            else:
                if chosen.output:
                    chosen.output.mkdir(parents=True, exist_ok=True)
                    nbformat.write(executed, chosen.output / notebook.name)
        print(f"{notebook.name}: {time.perf_counter() - begun:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
