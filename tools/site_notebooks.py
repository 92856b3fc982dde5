"""Notebooks of `docs/learn/` as pages of the site.

With `PTL_SITE_EXECUTE=1` each is run by nbclient in a directory of its own, and a cell that fails
ends the build; else its page says that it was not executed. What a run gave is kept by the
notebook's content in `.cache/site/`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "site"
VARIABLE = "PTL_SITE_EXECUTE"
SECONDS = 1800
"""That a cell may take: it trains on two cores."""
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
NOT_EXECUTED = (
    '!!! note "Not executed in this build"\n'
    f"    Outputs are missing: the site was built without `{VARIABLE}=1`.\n"
)


def title(path: Path) -> str:
    """The first heading of a notebook, else its name."""
    for cell in _read(path).cells:
        if cell.cell_type == "markdown" and (found := re.search(r"^# (.+)$", cell.source, re.M)):
            return found[1].strip()
    return path.stem


def page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by file name.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    from nbconvert import MarkdownExporter

    execute = os.environ.get(VARIABLE) == "1"
    notebook = _executed(path) if execute else _read(path)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            _plain(output)
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    pictures: dict[str, bytes] = {}
    for name, data in resources.get("outputs", {}).items():
        own = f"{path.stem}_{Path(name).name}"
        pictures[own] = data
        text = text.replace(f"({name})", f"({own})")
    text = re.sub(r"!\[[^\]]*\]\(data:image/(\w+);base64,([^)]+)\)", _inline(path, pictures), text)
    head, rest = _after_title(text)
    download = f"[Download this page as a notebook]({path.name}){{ download }}\n"
    return "\n".join([head, "", download, "" if execute else NOT_EXECUTED, rest]), pictures


def _after_title(text: str) -> tuple[str, str]:
    first, _, rest = text.lstrip().partition("\n")
    return (first, rest) if first.startswith("# ") else ("", text)


def _inline(path: Path, pictures: dict[str, bytes]) -> Any:
    def written(match: re.Match[str]) -> str:
        name = f"{path.stem}_inline{len(pictures)}.{match[1]}"
        pictures[name] = base64.b64decode(match[2])
        return f"![]({name})"

    return written


def _plain(output: Any) -> None:
    """Without the colours of a terminal, and without what only a live page can draw."""
    data = output.get("data", {})
    for kind in [kind for kind in data if kind.startswith("application/")]:
        del data[kind]
    if "text" in output:
        text = output.pop("text")
        output.pop("name", None)
        output.update(output_type="display_data", metadata={}, data={"text/markdown": _told(text)})
    elif set(data) == {"text/plain"}:
        output["data"] = {"text/markdown": _told(data["text/plain"])}


def _told(text: str) -> str:
    """What a cell printed, as a block; of a line that was written over, the last."""
    lines = [line.rsplit("\r", 1)[-1] for line in _ANSI.sub("", text).rstrip().split("\n")]
    fence = "`" * max(3, 1 + max((len(m) for m in re.findall("`+", text)), default=0))
    return "\n".join([f'{fence}text title="Output"', *lines, fence])


def _read(path: Path) -> Any:
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.setdefault("language_info", {"name": "python"})
    return notebook


def _executed(path: Path) -> Any:
    import nbformat

    version = ROOT.joinpath("posttrain_recipes", "version.py").read_bytes()
    known = hashlib.sha256(path.read_bytes() + version).hexdigest()[:32]
    kept = CACHE / f"{path.stem}-{known}.ipynb"
    if kept.is_file():
        return _read(kept)
    from nbclient import NotebookClient

    notebook = _read(path)
    with tempfile.TemporaryDirectory(prefix="ptl-site-") as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
        )
        # Cells call the `ptl` of this environment, whether or not it is activated.
        here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        client.execute(env={**os.environ, "PATH": here})
    CACHE.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, kept)
    return notebook
