"""What files hold, as hashes: of one file, of the code that a module stands on, of a package.

Code is read and never run: which modules a file imports is told by its syntax tree.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

LARGE = 64 << 20
"""Hashes of files from this many bytes on are kept on disk, so that each is read once."""
_PACKAGES = ("site-packages", "dist-packages")
_SKIPPED = ("__pycache__",)
_MARK = "__ptl_content__"
_digests: dict[Path, tuple[list[int], str]] = {}
_imports: dict[Path, tuple[str, tuple[tuple[str, int], ...]]] = {}


def cache_dir() -> Path:
    """The user's directory for what can be made again: `$XDG_CACHE_HOME`, else `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "posttrain-recipes"


def make_cache_dir() -> None:
    """Make it, where that can be done: nothing depends on it."""
    with contextlib.suppress(OSError):
        cache_dir().mkdir(parents=True, exist_ok=True)


def write_quietly(path: Path, text: str | bytes, mode: int = 0o644) -> None:
    """Write a file of the cache whole, or not at all: nothing depends on it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except OSError:
        return


# --- files ---------------------------------------------------------------------------------------


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes. It is read again where its size, times or inode are others.

    Raises:
        OSError: it cannot be read.
    """
    path = path.resolve()
    status = path.stat()
    # ctime too: whoever sets mtime back cannot set that one.
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    known = _digests.get(path)
    if known is None and status.st_size >= LARGE:
        known = _kept().get(str(path))
    if known is None or list(known[0]) != state:
        with path.open("rb") as stream:
            known = state, hashlib.file_digest(stream, "sha256").hexdigest()
        if status.st_size >= LARGE:
            write_quietly(_kept_in(), json.dumps({**_kept(), str(path): known}))
    _digests[path] = known
    return known[1]


def _kept_in() -> Path:
    return cache_dir() / "hashes.json"


def _kept() -> dict[str, tuple[list[int], str]]:
    try:
        found = json.loads(_kept_in().read_text(encoding="utf-8"))
        return {path: (list(state), str(digest)) for path, (state, digest) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def tree_digest(folder: Path) -> str:
    """A hash of all files below a directory, by name and content; of a file, its own."""
    return _together((path, path.relative_to(folder)) for path in _files(folder))


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        path for path in found if not set(_SKIPPED) & set(path.parts) and path.suffix != ".pyc"
    )


def _together(files: Iterator[tuple[Path, Path]]) -> str:
    whole = hashlib.sha256()
    for path, name in files:
        whole.update(f"{name.as_posix()}\0{file_digest(path)}\n".encode())
    return whole.hexdigest()


# --- code ----------------------------------------------------------------------------------------


def code_digest(path: Path, root: Path | None = None) -> str:
    """A hash of a module's file and of all that it imports, through however many others.

    Modules of its own directory tree are known by their content; installed ones by the version of
    their distribution, or by content where that is local (editable, or on Python's path).

    Args:
        root: where its own modules are looked for; by default the file's directory.
    """
    path, root = path.resolve(), (root or path.parent).resolve()
    own, others = _closure(path, (path.parent, root))
    lines = [f"{_named(file, root)} {file_digest(file)}" for file in sorted(own)]
    lines += [found for name in sorted(others) if (found := _installed(name))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def own_modules(path: Path) -> dict[str, Path]:
    """What a module imports of its own directory tree, by the names that it imports it by."""
    path = path.resolve()
    found = {}
    for file in _closure(path, (path.parent,))[0] - {path}:
        parts = [*file.relative_to(path.parent).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def installed_digest(module: str, path: Path) -> str:
    """`code_digest` of a module that Python finds; of a released one, its version."""
    names = module.split(".")
    root = path.resolve().parents[len(names) - 1 + (path.name == "__init__.py")]
    if is_local(root / names[0]):
        return code_digest(path, root)
    return hashlib.sha256(f"{module} {_installed(names[0])}".encode()).hexdigest()


def _named(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


def _closure(path: Path, roots: tuple[Path, ...]) -> tuple[set[Path], set[str]]:
    """The files that a module is made of, and the names of what else it imports."""
    own, others, ahead = {path}, set[str](), [path]
    shared = [root for root in roots if root.name in _PACKAGES]
    while ahead:
        file = ahead.pop()
        for name, level in _imported(file):
            places = roots
            if level:
                folder = file.parent
                for _ in range(level - 1):
                    folder = folder.parent
                places = (folder,)
            found = next((files for place in places if (files := _module(place, name))), None)
            # In a folder of installed packages the neighbours are others'.
            if found and any(_package(found[0], root) != _package(path, root) for root in shared):
                found = None
            if found:
                ahead += [one for one in found if one not in own]
                own.update(found)
            elif not level:
                others.add(name.split(".")[0])
    return own, others - sys.stdlib_module_names


def _package(file: Path, root: Path) -> str:
    """What of `root` a file is in, or is; "" where it lies elsewhere."""
    return file.relative_to(root).parts[0] if file.is_relative_to(root) else ""


def _imported(path: Path) -> tuple[tuple[str, int], ...]:
    """What a file imports, as (dotted name, leading dots); wherever in it that is written."""
    digest = file_digest(path)
    known = _imports.get(path)
    if known is None or known[0] != digest:
        known = digest, tuple(dict.fromkeys(_import_names(path)))
        _imports[path] = known
    return known[1]


def _import_names(path: Path) -> Iterator[tuple[str, int]]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # whoever imports it is told so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"{node.module}." if node.module else ""
            if node.module:
                yield node.module, node.level
            # `from package import name`: the name may be a module of the package.
            yield from ((f"{module}{alias.name}", node.level) for alias in node.names)
        elif isinstance(node, ast.Call) and _imports_by_name(node.func) and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value.lstrip("."), 0


def _imports_by_name(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


def _module(place: Path, name: str) -> list[Path]:
    """The files that importing `name` runs, where it lies below `place`: packages on the way too.
    A last part that is no module is a name in one."""
    found: list[Path] = []
    parts = [part for part in name.split(".") if part and part != "*"]
    for number, part in enumerate(parts, 1):
        here = place.joinpath(*parts[:number])
        if (here / "__init__.py").is_file():
            found.append((here / "__init__.py").resolve())
        elif here.with_name(f"{part}.py").is_file():
            found.append(here.with_name(f"{part}.py").resolve())
            break
        elif not here.is_dir():
            break
    return found


def _installed(name: str) -> str:
    """What tells an installed module from another of its name; "" where there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return ""
    place = _place(spec)
    if place is None:
        return ""
    if is_local(place):
        return f"{name} {place_digest(place)}"
    known = [f"{d} {importlib.metadata.version(d)}" for d in sorted(set(_packages().get(name, ())))]
    return f"{name} of {', '.join(known)}" if known else f"{name} {place_digest(place)}"


@cache
def _packages() -> dict[str, list[str]]:
    return {**importlib.metadata.packages_distributions()}


def _place(spec: importlib.machinery.ModuleSpec | None) -> Path | None:
    """The directory of a package, or the file of a module."""
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin and spec.has_location else None


@cache
def _copied() -> frozenset[str]:
    """Top-level modules in site-packages that were copied there from a directory of this machine:
    what is installed again under the same version may be another."""
    found = set()
    for distribution in importlib.metadata.distributions():
        try:
            origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        except ValueError:
            continue
        if str(origin.get("url", "")).startswith("file:"):
            tops = {Path(str(file)).parts[0] for file in distribution.files or ()}
            found |= {top.removesuffix(".py") for top in tops}
    return frozenset(found)


def is_local(place: Path) -> bool:
    """Whether code changes without its version: it is edited in place, or copied from here."""
    installed = bool(set(_PACKAGES) & set(place.parts))
    return not installed or place.name.removesuffix(".py") in _copied()


RESULTS = (
    *("methods", "datasets", "rewards", "evals", "training"),
    *("plugin.py", "options.py", "records.py", "streamed.py", "conversion.py", "context.py"),
    "functions.py",
)
"""The parts of this package that results are made by: a checkout of it is known by these."""


OWN = Path(__file__).resolve().parent
"""This package."""


@cache
def _own_digest() -> str:
    """Of what this process runs: each of the package's plugins stands on all of it."""
    files = (path for part in RESULTS for path in _files(OWN / part))
    return _together((path, path.relative_to(OWN)) for path in files)


def place_digest(place: Path) -> str:
    """A hash of a package (its directory) or a module (its file, and what that imports)."""
    if place == OWN:
        return _own_digest()
    return code_digest(place) if place.is_file() else tree_digest(place)


def plugin_code(module: str) -> str | None:
    """A hash of the code of a plugin's module, where that is local; None for a released one.

    It is that of the code which was imported: a file that is edited afterwards is not what runs.
    """
    top = sys.modules.get(module.split(".")[0])
    own = sys.modules.get(module)
    if top is None or own is None:
        return None
    place = _place(top.__spec__)
    if place is None or not is_local(place):
        return None
    return _once(own, place)


def _once(module: ModuleType, place: Path) -> str:
    known = vars(module).get(_MARK)
    if known is None:
        known = place_digest(place)
        file = getattr(module, "__file__", None)
        # What it imports beside its own package: another one of the same checkout.
        if file and place.is_dir() and place != OWN:
            known += code_digest(Path(file), place.parent)
        known = hashlib.sha256(known.encode()).hexdigest()[:16]
        vars(module)[_MARK] = known
    return str(known)
