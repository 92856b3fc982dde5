"""The index of plugin packages that `ptl plugins search` reads: a file of this repository.

docs/plugin-index.md says how a package comes to be listed. Nothing is asked of the network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posttrain_recipes.errors import UsageError, display_path
from posttrain_recipes.plugin import API_VERSION
from posttrain_recipes.registry import KINDS
from posttrain_recipes.shipped import INDEX

_Line = Annotated[str, Field(min_length=10, max_length=160, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ListedPlugin(_Entry):
    """A plugin of a listed package."""

    kind: Annotated[str, Field(pattern=f"^({'|'.join(KINDS)})$")]
    """What it is: dataset, method, reward, eval, engine or tracker."""
    name: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$")]
    """What a recipe says after `use:`."""
    summary: _Line
    """What it does, in one sentence: the first line of the class's docstring."""


class ListedPackage(_Entry):
    """A package that can be installed."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    """What `pip install` takes."""
    summary: _Line
    """What it is, in one sentence."""
    license: Annotated[str, Field(min_length=2, max_length=60, pattern=r"^[\w.+() -]+$")]
    """An SPDX expression, as `MIT`."""
    source: Annotated[str, Field(pattern=r"^(https://[\w./~-]+|plugins/[\w-]+)$")]
    """Where its source is: an address, or a folder of this repository."""
    api: Annotated[int, Field(ge=1)]
    """The version of the plugin API that it is written for: its PTL_API."""
    plugins: Annotated[list[ListedPlugin], Field(min_length=1)]
    """The plugins in it."""

    def matches(self, words: Sequence[str], kind: str | None) -> bool:
        """Whether it has a plugin of that kind, and all of the words somewhere."""
        if kind is not None and all(one.kind != kind for one in self.plugins):
            return False
        told = [self.name, self.summary, *(f"{p.kind} {p.name} {p.summary}" for p in self.plugins)]
        text = " ".join(told).lower()
        return all(word.lower() in text for word in words)


class PluginIndex(_Entry):
    """Packages with plugins for posttrain_recipes, by name."""

    packages: list[ListedPackage]
    """Sorted by name."""


def read(path: Path = INDEX) -> PluginIndex:
    """An index file.

    Raises:
        UsageError: there is none, or it is not as the schema says; all of what is wrong is told.
    """
    try:
        index = PluginIndex.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(
            f"{display_path(path)} cannot be read", why=error.strerror, code="no-such-file"
        ) from error
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise UsageError(
            f"{display_path(path)} is no index of plugins",
            why="; ".join(faults),
            hint="'ptl schema --plugins' prints its form",
        ) from error
    except ValueError as error:
        raise UsageError(f"{display_path(path)} is no JSON", why=str(error)) from error
    names = [package.name for package in index.packages]
    if names != sorted(set(names)):
        raise UsageError(
            f"{display_path(path)} is not sorted by name, or names a package twice",
            hint="sort 'packages' by 'name'",
        )
    return index


def schema() -> dict[str, Any]:
    """The JSON Schema of an index file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **PluginIndex.model_json_schema(),
    }


def usable(package: ListedPackage) -> bool:
    """Whether this version of `ptl` has the API that the package says it is written for."""
    return package.api <= API_VERSION
