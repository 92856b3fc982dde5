"""Recipes that are named instead of lying here: those that ship, those of installed packages, and
files of a git repository at a commit.

    sft_then_dpo                                      ships with posttrain-recipes
    ptl-chess:kqk                                     of the installed package ptl-chess
    git+https://host/team/recipes@COMMIT#rl/kqk.yaml  fetched by git, once
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

from posttrain_recipes import content, shipped
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.language.nodes import Node
from posttrain_recipes.shown import plain, redact

GROUP = "posttrain_recipes"
"""The entry points of plugins, which tell where a package's modules lie."""
_OF_PACKAGE = re.compile(r"(?P<package>[A-Za-z0-9][\w.-]+):(?P<name>[\w-]+(?:\.ya?ml)?)")
_OF_GIT = re.compile(
    r"git\+(?P<url>[a-z]+://[^#\s]+?)(?:@(?P<revision>[^@#/\s]+))?(?:#(?P<path>\S+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
PROTOCOLS = ("https", "ssh", "file")
SECONDS = 300.0
"""How long git may take."""


def find(text: str) -> Path | None:
    """The file of a recipe that is named; None where `text` is the path of a file, or no name.

    Raises:
        UsageError: no such package, recipe or commit, or a branch in the place of a commit.
        PtlError: git cannot fetch it.
    """
    if text.startswith("git+"):
        return _of_git(text)
    try:
        if Path(text).exists():
            return None
    except (OSError, ValueError):  # no path that this machine takes: whoever reads it says why
        return None
    if found := _OF_PACKAGE.fullmatch(text):
        return _of_package(found["package"], found["name"].partition(".")[0])
    if re.fullmatch(r"\w[\w-]*", text):
        return shipped.recipes().get(text)
    return None


def anchored(node: Node, folder: Path, key: str = "") -> Node:
    """A recipe that lies elsewhere, with what it names beside it (data, functions, directories) by
    its whole path: relative ones start from the recipe that is run."""
    value = node.value
    if isinstance(value, dict):
        return replace(node, value={k: anchored(one, folder, k) for k, one in value.items()})
    if isinstance(value, list):
        return replace(node, value=[anchored(one, folder, key) for one in value])
    if not isinstance(value, str) or "\n" in value or len(value) > 1000 or value.startswith("/"):
        return node
    module, colon, name = value.rpartition(":")
    if colon and all(map(str.isidentifier, (*module.split("."), name))):
        file = (folder / module.replace(".", "/")).with_suffix(".py")
        return replace(node, value=f"{file.resolve()}:{name}") if file.is_file() else node
    place = folder / value
    known = (place.is_file() and place.suffix) or (key.endswith("path") and place.is_dir())
    return replace(node, value=str(place.resolve())) if known else node


def of_package(package: str) -> dict[str, Path]:
    """The recipes that an installed package carries, by their name: `recipes/*.yaml` in the module
    of one of its plugins, or, as in a checkout, beside it. Nothing of the package is imported.

    Raises:
        UsageError: it is not installed.
    """
    if package.replace("_", "-").lower() == "posttrain-recipes":
        return shipped.recipes()
    try:
        points = importlib.metadata.distribution(package).entry_points.select(group=GROUP)
    except importlib.metadata.PackageNotFoundError:
        known = sorted(
            {p.dist.name for p in importlib.metadata.entry_points(group=GROUP) if p.dist}
        )
        near = difflib.get_close_matches(package, known, n=1)
        raise UsageError(
            f"no package {plain(package)} is installed",
            hint=f"did you mean {near[0]}?" if near else f"pip install {plain(package)}",
            code="unknown-name",
        ) from None
    found: dict[str, Path] = {}
    for module in {point.value.partition(":")[0].partition(".")[0] for point in points}:
        spec = importlib.util.find_spec(module)
        for place in map(Path, (spec and spec.submodule_search_locations) or ()):
            folder = place / "recipes"
            if not folder.is_dir() and (place.parent / "pyproject.toml").is_file():
                folder = place.parent / "recipes"
            found |= {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return found


def _of_package(package: str, name: str) -> Path:
    there = of_package(package)
    if name not in there:
        near = difflib.get_close_matches(name, there, n=1)
        hint = f"did you mean {package}:{near[0]}?" if near else f"it has: {', '.join(there)}"
        raise UsageError(
            f"the package {package} has no recipe '{name}'",
            hint=hint if there else "it carries no recipes",
            code="unknown-name",
        )
    return there[name]


def _of_git(text: str) -> Path:
    found = _OF_GIT.fullmatch(text)
    shown = plain(redact(text))
    form = "write git+https://HOST/REPOSITORY@COMMIT#path/of/recipe.yaml"
    if found is None or not found["path"]:
        raise UsageError(f"'{shown}' names no recipe", hint=form, code="wrong-value")
    url, revision, path = found["url"], found["revision"], PurePosixPath(found["path"])
    scheme = url.partition("://")[0]
    if scheme not in PROTOCOLS:
        known = ", ".join(f"git+{one}://" for one in PROTOCOLS)
        raise UsageError(f"'{shown}': one of {known}", hint=form, code="wrong-value")
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(f"'{shown}': a path in the repository", hint=form, code="wrong-value")
    if not revision or not _COMMIT.fullmatch(revision):
        raise UsageError(
            f"'{shown}' names no commit: what a branch or a tag holds may change at any time",
            hint=_commit_now(url, revision or "HEAD") or form,
            code="wrong-value",
        )
    folder = content.cache_dir() / "git" / hashlib.sha256(url.encode()).hexdigest()[:16] / revision
    if not folder.is_dir():
        _fetch(url, revision, folder, shown)
    file = folder / path
    if not file.is_file():
        there = sorted(str(one.relative_to(folder)) for one in folder.rglob("*.yaml"))
        near = difflib.get_close_matches(str(path), there, n=1)
        hint = f"did you mean '{plain(near[0])}'?" if near else "look at the repository"
        raise UsageError(
            f"that commit has no file '{plain(str(path))}'", hint=hint, code="no-such-file"
        )
    return file


def _fetch(url: str, commit: str, folder: Path, shown: str) -> None:
    """The files of a commit, whole or not at all. Links of the repository become plain files, as
    they might lead anywhere."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        there = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".fetching."))
    except OSError as error:
        raise PtlError(
            f"cannot write {folder.parent}", why=str(error), code="cannot-write"
        ) from None
    try:
        _git(there, "init", "--quiet")
        _git(there, "config", "core.symlinks", "false")
        _git(there, "fetch", "--quiet", "--depth", "1", "--no-tags", "--", url, commit)
        _git(there, "-c", "advice.detachedHead=false", "checkout", "--quiet", commit)
        shutil.rmtree(there / ".git")
        os.replace(there, folder)
    except subprocess.SubprocessError as error:
        if not folder.is_dir():  # of another process that was faster
            raise PtlError(
                f"cannot fetch {shown}",
                why=_said(error),
                hint="check the address and the commit, and that git may sign in without asking",
                code="no-such-file",
            ) from None
    except OSError as error:
        if not folder.is_dir():
            raise PtlError(
                f"cannot fetch {shown}",
                why=error.strerror or str(error),
                hint="git is needed for it: install it",
                code="no-such-file",
            ) from None
    finally:
        shutil.rmtree(there, ignore_errors=True)


def _commit_now(url: str, name: str) -> str | None:
    """What to write in the place of a branch or a tag: the commit that it is now."""
    try:
        listed = _git(Path.cwd(), "ls-remote", "--", url, name, f"{name}^{{}}").split()
    except (OSError, subprocess.SubprocessError):
        return None
    commits = [word for word in listed if _COMMIT.fullmatch(word)]
    return f"'{plain(name)}' is {commits[-1]} now: write that" if commits else None


def _git(there: Path, *words: str) -> str:
    environment = {
        **os.environ,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": ":".join(PROTOCOLS),
        "LC_ALL": "C",
    }
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        environment.pop(name, None)
    done = subprocess.run(
        ["git", *words],
        cwd=there,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=SECONDS,
        check=True,
    )
    return done.stdout


def _said(error: subprocess.SubprocessError) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"git took more than {SECONDS:g} s"
    lines = [line for line in str(getattr(error, "stderr", "")).splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("fatal: ")]
    return plain(redact((fatal or lines or ["git told nothing"])[0].removeprefix("fatal: ")))
