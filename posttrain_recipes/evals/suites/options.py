"""Options of evals by name: where the records are, and how replies to them are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from pydantic import Field

from posttrain_recipes.plugin import PluginConfig

FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".gz")
"""How the name of a file ends; another `path` is a data set of the hub, or a directory."""


@dataclass(frozen=True)
class Published:
    """A data set of the hub, as its authors split it."""

    path: str
    subset: str | None
    split: str
    examples: str = ""
    """The split with the examples, `{count}` of them; empty where the suite takes none."""


class SuiteConfig(PluginConfig):
    """Which records; by default the published ones on the hub."""

    path: str | None = None
    """A file in the published form, relative to the recipe, or another data set of the hub."""
    subset: str | None = None
    """Of the hub's data set, where it has several."""
    split: str | None = None
    """Of the hub's data set."""
    revision: str | None = None
    """Of the hub's data set: a branch, a tag or a commit."""
    limit: int | None = Field(default=None, ge=1)
    """Use at most this many records, the first ones."""


class FewShotConfig(SuiteConfig):
    """Which records, and examples before each of them."""

    num_fewshot: int = Field(default=0, ge=0)
    """Solved examples before each question."""
    fewshot: str | None = None
    """A file of examples, of which the first are taken; by default the hub's of the suite."""


class SampledConfig(PluginConfig):
    """How replies are sampled."""

    max_tokens: int = Field(default=512, ge=1)
    """Longest reply in tokens."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token each time."""


def is_file(path: str) -> bool:
    """Whether a `path` names a file of rows, by its end."""
    return PurePath(path.partition("?")[0]).suffix.lower() in FILES
