"""A reward that is a function of the user's own."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field, field_validator

from posttrain_recipes.plugin import PluginConfig, Reward, Sample, UsageError


class Function(Reward):
    """What a function of your own says: `{use: function, call: "my_rewards:score"}`.

    `score(sample)` is given one `Sample`, with its `completion`, `prompt`, `answer` and `metadata`,
    and returns a number, or None to abstain; `score(samples)` is given a list and returns one. It
    stands in `my_rewards.py` beside the recipe, or in a module that Python can import.
    """

    name = "function"

    class Config(PluginConfig):
        """Options of the reward."""

        call: str
        """The function, as module:function."""
        arguments: dict[str, Any] = Field(default_factory=dict)
        """Further arguments of the function, by name."""

        @field_validator("call")
        @classmethod
        def _has_both(cls, call: str) -> str:
            module, _, function = call.partition(":")
            parts = [*module.split("."), function]
            if not all(part.isidentifier() for part in parts):
                raise ValueError("reads module:function, as my_rewards:score")
            return call

    config: Config

    @property
    def label(self) -> str:
        """The function's name."""
        return self._function_name

    @property
    def _module_name(self) -> str:
        return self.config.call.partition(":")[0]

    @property
    def _function_name(self) -> str:
        return self.config.call.partition(":")[2]

    @cached_property
    def _path(self) -> Path | None:
        """The module's file: beside the recipe, else where Python finds it."""
        beside = self.base_dir / Path(*self._module_name.split(".")).with_suffix(".py")
        if beside.is_file():
            return beside
        try:
            spec = importlib.util.find_spec(self._module_name)
        except (ImportError, ValueError):
            return None
        return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None

    def problems(self) -> Iterable[tuple[str, str]]:
        """No such module or function, or one that takes something else. Nothing is run for it."""
        if self._path is None:
            beside = self.base_dir / f"{self._module_name.replace('.', '/')}.py"
            yield "call", f"there is no {beside}, and no module '{self._module_name}' is installed"
            return
        try:
            tree = ast.parse(self._path.read_text(encoding="utf-8"), str(self._path))
        except (SyntaxError, ValueError, OSError) as error:
            yield "call", f"{self._path} is not Python: {error}"
            return
        found = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == self._function_name
        ]
        if not found:
            names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
            there = f"it has {', '.join(names)}" if names else "it has no functions"
            yield "call", f"{self._path.name} has no function '{self._function_name}'; {there}"
            return
        yield from self._signature(found[-1].args)

    def _signature(self, given: ast.arguments) -> Iterable[tuple[str, str]]:
        names = [argument.arg for argument in (*given.posonlyargs, *given.args)]
        if not names or names[0] not in ("sample", "samples"):
            yield (
                "call",
                f"the first parameter of '{self._function_name}' has to be 'sample' (one at a "
                "time) or 'samples' (a list)",
            )
            return
        named = set(names[1:]) | {argument.arg for argument in given.kwonlyargs}
        optional = set(names[len(names) - len(given.defaults) :]) | {
            argument.arg
            for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
            if default is not None
        }
        for name in sorted(set(self.config.arguments) - named):
            if given.kwarg is None:
                yield "arguments", f"'{self._function_name}' takes no argument '{name}'"
        for name in sorted(named - optional - set(self.config.arguments)):
            yield "arguments", f"'{self._function_name}' needs the argument '{name}'"

    def digest(self) -> str | None:
        """A hash of the module's file."""
        if self._path is None or not self._path.is_file():
            return None
        return hashlib.sha256(self._path.read_bytes()).hexdigest()

    @cached_property
    def _function(self) -> Callable[..., Any]:
        if self._path is None:
            raise UsageError(f"there is no module '{self._module_name}'")
        function = getattr(_load(self._path, self._module_name), self._function_name, None)
        if not callable(function):
            raise UsageError(f"{self._path} has no function '{self._function_name}'")
        return function  # type: ignore[no-any-return]

    @cached_property
    def _batched(self) -> bool:
        import inspect

        return next(iter(inspect.signature(self._function).parameters)) == "samples"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """What the function says; it is called by one thread at a time."""
        with _CALLING:
            if self._batched:
                return list(self._function(list(samples), **self.config.arguments))
            return [self._function(sample, **self.config.arguments) for sample in samples]


_LOADING, _CALLING = threading.Lock(), threading.RLock()


def _load(path: Path, name: str) -> ModuleType:
    """The module in a file, whose imports may name its neighbours."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    with _LOADING:
        sys.path.insert(0, folder)
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(folder)
    return module
