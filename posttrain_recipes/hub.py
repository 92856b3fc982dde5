"""Which commit a name on the Hugging Face hub stands for now: a branch may move at any time."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from posttrain_recipes import content

Kind = Literal["dataset", "model"]
COMMIT = re.compile(r"[0-9a-f]{40}")
SECONDS = 10.0
"""How long the hub may take to say it."""


@dataclass(frozen=True)
class Revision:
    """The commit of a name on the hub, and who says so."""

    commit: str | None
    """None: not known."""
    told_by: Literal["recipe", "hub", "cache", ""]

    def __str__(self) -> str:
        if self.commit is None:
            return "revision not known: the hub does not answer, and nothing of it is in the cache"
        if self.told_by == "cache":
            return f"revision {self.commit} of the cache: the hub was not asked or did not answer"
        return f"revision {self.commit}"


def revision(kind: Kind, name: str, wanted: str | None, *, ask: bool) -> Revision:
    """The commit that `wanted` (a branch, a tag or a commit; `main` where None) is.

    Args:
        ask: ask the hub; else, and where it does not answer, the local cache tells.
    """
    if wanted and COMMIT.fullmatch(wanted):
        return Revision(wanted, "recipe")
    if ask and (found := _of_hub(kind, name, wanted)):
        return Revision(found, "hub")
    found = _of_cache(kind, name, wanted)
    return Revision(found, "cache" if found else "")


@cache
def _of_hub(kind: Kind, name: str, wanted: str | None) -> str | None:
    """Asked once: all stages of a plan are to read the same."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        about = api.dataset_info if kind == "dataset" else api.model_info
        found = about(name, revision=wanted, timeout=SECONDS).sha
    except Exception:  # the network, the hub, a name that is not there: whoever loads it tells
        return None
    return found if found and COMMIT.fullmatch(found) else None


@cache
def fetch_tokenizer(name: str) -> None:
    """Bring a model's tokenizer here, where the hub answers."""
    _fetch(name, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@cache
def fetch_config(name: str) -> None:
    """Bring a model's `config.json` here, where the hub answers."""
    _fetch(name, "config.json")


def _fetch(name: str, *files: str) -> None:
    if not _of_hub("model", name, None):
        return
    from huggingface_hub import snapshot_download

    with contextlib.suppress(Exception):  # whoever loads it tells
        snapshot_download(name, allow_patterns=list(files))


def cached(kind: Kind, name: str, file: str) -> Path | None:
    """A file of a name on the hub that was downloaded before: that of its branch `main`, else the
    newest; None where there is none."""
    folder = _cache_dir() / f"{kind}s--{name.replace('/', '--')}" / "snapshots"
    main = folder / (_of_cache(kind, name, None) or "") / file
    if main.is_file():
        return main
    try:
        found = [path for path in folder.glob(f"*/{file}") if path.is_file()]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)
    except (OSError, ValueError):
        return None


def _of_cache(kind: Kind, name: str, wanted: str | None) -> str | None:
    folder = _cache_dir() / f"{kind}s--{name.replace('/', '--')}" / "refs"
    try:
        found = (folder / (wanted or "main")).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return found if COMMIT.fullmatch(found) else None


def _cache_dir() -> Path:
    """Where `huggingface_hub` keeps what it downloads, by the same variables as it."""
    if given := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expanduser(given))
    home = os.environ.get("HF_HOME") or content.cache_dir().parent / "huggingface"
    return Path(os.path.expanduser(home)) / "hub"
