"""Functions and classes of the user's own, which a recipe names as `module:name`.

The module is a file beside the recipe, else one that Python can import; or `path/of/file.py:name`,
which is a file alone. Whether it is there, and
takes what the recipe gives it, is read from its source: nothing of the user's runs for that.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain_recipes import content
from posttrain_recipes.errors import UsageError

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


_FILE = ".py"


def checked_call(call: str) -> str:
    """`call`, where it reads module:name. Raises `ValueError` otherwise."""
    module, _, name = call.rpartition(":")
    file = module.endswith(_FILE) and module != _FILE
    if not name.isidentifier() or not (file or all(map(str.isidentifier, module.split(".")))):
        raise ValueError(
            "reads module:function, as my_module:my_function or my_file.py:my_function"
        )
    return call


class UserFunction:
    """What `module:name` names.

    Args:
        call: module:name, or file.py:name.
        base_dir: the recipe's directory, where the module is looked for first.
    """

    def __init__(self, call: str, base_dir: Path) -> None:
        self.module, _, self.name = call.rpartition(":")
        self.base_dir = base_dir
        self.is_file = self.module.endswith(_FILE)
        if self.is_file:
            self.beside = base_dir / os.path.expanduser(self.module)
            self.base_dir = self.beside.parent
        else:
            self.beside = base_dir / Path(*self.module.split(".")).with_suffix(_FILE)

    @cached_property
    def path(self) -> Path | None:
        """The module's file: beside the recipe, else where Python finds it."""
        if self.beside.is_file():
            return self.beside
        if self.is_file:
            return None
        try:
            spec = importlib.util.find_spec(self.module)
        except (ImportError, ValueError):
            return None
        return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None

    def find(self, *kinds: type[Definition]) -> Definition:
        """Its definition, of one of these kinds, without running it.

        Raises:
            UsageError: there is none, or its file is not Python.
        """
        if self.path is None:
            other = "" if self.is_file else f", and no module '{self.module}' is installed"
            raise UsageError(f"there is no {self.beside}{other}", code="bad-function")
        try:
            tree = ast.parse(self.path.read_text(encoding="utf-8"), str(self.path))
        except (SyntaxError, ValueError, OSError) as error:
            raise UsageError(f"{self.path} is not Python: {error}", code="bad-function") from None
        there = [node for node in tree.body if isinstance(node, kinds)]
        found = [node for node in there if node.name == self.name]
        if not found:
            names = ", ".join(node.name for node in there)
            raise UsageError(
                f"{self.path.name} has no function '{self.name}'; it has {names or 'no functions'}",
                code="bad-function",
            )
        return found[-1]

    def digest(self) -> str | None:
        """A hash of the module's file and of all that it imports (see `content.code_digest`)."""
        try:
            if self.path is None:
                return None
            if self.path == self.beside:
                return content.code_digest(self.path, self.base_dir)
            return content.installed_digest(self.module, self.path)
        except OSError:
            return None

    def load(self) -> Any:
        """The function or class itself.

        Raises:
            UsageError: it is not there, or its module cannot be imported.
        """
        if self.path is None:
            what = "file" if self.is_file else "module"
            raise UsageError(f"there is no {what} '{self.module}'", code="bad-function")
        beside = self.path == self.beside
        try:
            module = _load(self.path) if beside else importlib.import_module(self.module)
        except Exception as error:  # the module is the user's, and may do anything
            raise UsageError(
                f"{self.path} cannot be imported",
                why=f"{type(error).__name__}: {error}",
                code="bad-function",
            ) from error
        function = getattr(module, self.name, None)
        if not callable(function):
            raise UsageError(f"{self.path} has no function '{self.name}'", code="bad-function")
        return function


def argument_problems(definition: Definition, given: Collection[str], handed: int) -> Iterator[str]:
    """What is wrong with arguments by name, `handed` more being handed to it by place."""
    if isinstance(definition, ast.ClassDef):  # what a class takes, its bases say too
        return
    args, function = definition.args, definition.name
    names = [argument.arg for argument in (*args.posonlyargs, *args.args)]
    named = set(names[handed:]) | {argument.arg for argument in args.kwonlyargs}
    optional = set(names[len(names) - len(args.defaults) :]) | {
        argument.arg
        for argument, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
        if default is not None
    }
    for name in sorted(set(given) - named):
        if args.kwarg is None:
            yield f"'{function}' takes no argument '{name}'"
    for name in sorted(named - optional - set(given)):
        yield f"'{function}' needs the argument '{name}'"


def parameters(definition: Definition) -> list[str]:
    """The parameters that a function takes by place; none of a class."""
    if isinstance(definition, ast.ClassDef):
        return []
    args = definition.args
    return [argument.arg for argument in (*args.posonlyargs, *args.args)]


_LOADING = threading.Lock()
_NEIGHBOURS: dict[str, str] = {}
"""What the neighbours of modules that were loaded held then, by their names."""


def _load(path: Path) -> ModuleType:
    """The module in a file, whose imports may name its neighbours.

    It is known to Python under a name that no other file has: dataclasses look their module up, and
    two recipes may each have a file of the same name beside them. Its neighbours are imported anew
    where they were edited since, or where another directory's are known by their names.
    """
    path = path.resolve()
    digest = hashlib.sha256(f"{path}\0{content.code_digest(path)}".encode()).hexdigest()
    name = f"{path.stem}_{digest[:16]}"
    with _LOADING:
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        sys.path.insert(0, str(path.parent))
        others = _set_aside(path)
        try:
            importlib.invalidate_caches()
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        finally:
            sys.path.remove(str(path.parent))
            sys.modules.update(others)
    return module


def _set_aside(path: Path) -> dict[str, ModuleType]:
    """Have Python forget modules that are not, or no longer, the neighbours that a file imports.

    Returns those of other directories, which go back to their place.
    """
    own = {n: f for n, f in content.own_modules(path).items() if n not in sys.stdlib_module_names}
    held = {name: f"{file} {content.file_digest(file)}" for name, file in own.items()}
    there = {name: sys.modules[name] for name in own if name in sys.modules}
    others = {
        name: module
        for name, module in there.items()
        if (file := getattr(module, "__file__", None)) and Path(file).resolve() != own[name]
    }
    # One that was edited is known to those that import it: all of them are read again.
    if others or any(_NEIGHBOURS.get(name) != held[name] for name in there):
        for name in there:
            del sys.modules[name]
    _NEIGHBOURS.update(held)
    return others
