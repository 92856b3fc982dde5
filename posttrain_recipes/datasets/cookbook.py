"""Environments written for tinker-cookbook."""

from __future__ import annotations

import ast
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from posttrain_recipes.functions import (
    UserFunction,
    argument_problems,
    checked_call,
    parameters,
)
from posttrain_recipes.plugin import (
    Dataset,
    DatasetConfig,
    Episode,
    Record,
    Task,
    UsageError,
)

if TYPE_CHECKING:
    from tinker_cookbook.rl.types import Env


class Cookbook(Dataset):
    """Environments of tinker-cookbook: message environments, others, and its own recipes'.

    `call` names a function that returns what makes them, one for each task: functions without
    arguments that return a `MessageEnv` or an `Env`, or `EnvGroupBuilder`s; or an `RLDataset` or
    `RLDatasetBuilder`, which may be named itself.
    """

    name = "cookbook"
    requires = ("tinker_cookbook",)
    extra = "posttrain-recipes[cookbook]"

    class Config(DatasetConfig):
        """Options of tinker-cookbook's environments."""

        call: Annotated[str, AfterValidator(checked_call)]
        """The function, or the RLDatasetBuilder, as module:name."""
        arguments: dict[str, Any] = Field(default_factory=dict)
        """Its arguments by name; the renderer and the model that it may ask for are both `ptl`."""
        split: Literal["train", "test"] = "train"
        """Of an RLDatasetBuilder: which of the two datasets that it builds."""

    config: Config

    def record_type(self) -> type[Record]:
        """Tasks."""
        return Task

    @cached_property
    def _user(self) -> UserFunction:
        return UserFunction(self.config.call, self.base_dir)

    def problems(self) -> Iterable[tuple[str, str]]:
        """No such module or function, or one that takes something else. Nothing is run for it."""
        try:
            found = self._user.find(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        except UsageError as error:
            yield "call", error.what
            return
        handed = int(parameters(found)[:1] == ["renderer"])
        for problem in argument_problems(found, self.config.arguments, handed):
            yield "arguments", problem

    def digest(self) -> str | None:
        """A hash of the module's file, and the version of tinker-cookbook."""
        version = importlib.metadata.version("tinker-cookbook")
        return f"{self._user.digest()} tinker-cookbook {version}"

    def load(self) -> Iterator[Record]:
        """One task for each environment, in their order."""
        from posttrain_recipes.datasets import cookbook_envs

        function = self._user.load()
        made = cookbook_envs.made(function, self.config.arguments, self.config.split)
        for number, make in enumerate(made):
            yield CookbookTask(source=f"{self.config.call}:{number}", make=make)


@dataclass(frozen=True, kw_only=True)
class CookbookTask(Task):
    """One environment, which is made anew for each episode."""

    concurrent: ClassVar[bool] = True

    make: Callable[[], Env]

    def start(self) -> Episode:
        """Make it, and have it say how it begins."""
        from posttrain_recipes.datasets.cookbook_envs import CookbookEpisode

        return CookbookEpisode(self.make())
