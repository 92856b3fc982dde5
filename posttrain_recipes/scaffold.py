"""The first version of a plugin package, that conforms as it is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from posttrain_recipes.errors import UsageError, display_path
from posttrain_recipes.plugin import API_VERSION
from posttrain_recipes.registry import KINDS
from posttrain_recipes.store import write_atomic
from posttrain_recipes.testing import badge
from posttrain_recipes.version import __version__

_USAGE = {
    "dataset": "dataset: {use: $name, count: 200, test_size: 32}",
    "method": "method: {use: $name, learning_rate: 1e-3}",
    "reward": "reward: {use: $name, floor: 3}",
    "eval": "eval:\n  - {use: $name, dataset: {use: jsonl, path: prompts.jsonl}}",
    "engine": "engine: {use: $name, base_url: http://127.0.0.1:8000}",
    "tracker": "trackers: [$name]",
}


_DATA = {
    "dataset": (),
    "method": ("sums.jsonl",),
    "reward": ("prompts.jsonl",),
    "eval": ("sums.jsonl", "prompts.jsonl"),
    "engine": ("sums.jsonl",),
    "tracker": ("sums.jsonl",),
}
"""Files beside the recipe of a new package."""


def files(kind: str, name: str) -> dict[str, str]:
    """The files of a new plugin package: path within it -> text.

    Raises:
        UsageError: an unknown kind, or a name that is no lower-case word.
    """
    if kind not in _USAGE:
        raise UsageError(f"there is no kind '{kind}'", hint=f"kinds: {', '.join(_USAGE)}")
    if not name.isidentifier() or name != name.lower():
        raise UsageError(
            f"'{name}' cannot be a plugin's name",
            hint="use a lower-case word of letters, digits and _, such as my_method",
        )
    words = {
        "kind": kind,
        "name": name,
        "package": f"ptl_{name}",
        "distribution": f"ptl-{name.replace('_', '-')}",
        "cls": _class_name(name, KINDS[kind].__name__),
        "upper": name.upper(),
        "api": str(API_VERSION),
        "version": __version__,
        "needs": ", with the server at hand," if kind == "engine" else "",
        "usage": Template(_USAGE[kind]).substitute(name=name),
    }
    source = resources.files("posttrain_recipes") / "templates" / "plugin"
    layout = {
        "pyproject.toml": "pyproject.toml.txt",
        "README.md": "README.md.txt",
        ".github/workflows/test.yml": "test.yml.txt",
        ".github/workflows/release.yml": "release.yml.txt",
        ".gitignore": "gitignore.txt",
        "LICENSE": "LICENSE.txt",
        "results.py": "results.py.txt",
        f"ptl_{name}/__init__.py": f"{kind}.py.txt",
        f"ptl_{name}/recipes/{name}.yaml": f"recipe_{kind}.yaml.txt",
        f"tests/test_{name}.py": f"test_{kind}.py.txt",
    }
    made = {
        path: Template((source / template).read_text(encoding="utf-8")).substitute(words)
        for path, template in layout.items()
    }
    for data in _DATA[kind]:
        made[f"ptl_{name}/recipes/{data}"] = "".join(json.dumps(row) + "\n" for row in _sums(data))
    return {**made, "conformance.svg": badge.svg(badge.UNKNOWN)}


def _sums(data: str) -> Iterator[dict[str, Any]]:
    """Sums up to 9 + 9 and some over: to imitate (`sums.jsonl`), or to be asked."""
    for number in range(200):
        a, b = number * 7 % 20, number // 10
        asked, answer = f"{a} + {b} =", str(a + b)
        if data == "sums.jsonl":
            said = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            yield {"messages": said}
        else:
            yield {"prompt": asked, "answer": answer}


def _class_name(name: str, base: str) -> str:
    camel = "".join(part.capitalize() for part in name.split("_"))
    return camel if camel.endswith(base) and camel != base else camel + base


def write(kind: str, name: str, directory: Path | None = None) -> list[Path]:
    """Write a new plugin package, by default into `ptl-NAME` here; returns what was written.

    Raises:
        UsageError: as `files`, or the directory is there and not empty.
    """
    texts = files(kind, name)
    folder = directory or Path(f"ptl-{name.replace('_', '-')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{display_path(folder)} is already there; nothing was written",
            hint="name another directory: ptl plugins new KIND NAME DIR",
            code="already-there",
        )
    written = []
    for path, text in texts.items():
        target = folder / path
        write_atomic(target, text)
        written.append(target)
    return written
