"""Whether a reply is JSON that fits a schema."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from posttrain_recipes import content
from posttrain_recipes.plugin import PluginConfig, Reward, Sample
from posttrain_recipes.training.text.answer_extraction import fenced


class JsonSchema(Reward):
    """1 where the reply is JSON that a JSON Schema accepts; else 0.

    A reply may stand in a fenced block; anything beside the JSON makes it wrong.
    """

    name = "json_schema"

    class Config(PluginConfig):
        """Options of the reward."""

        path: str | None = None
        """A file with the JSON Schema."""
        inline: dict[str, Any] | None = None
        """The JSON Schema itself, in place of a path."""
        parses: float = Field(default=0.0, ge=0, le=1)
        """What a reply is worth that is JSON and not of the form."""

    config: Config

    def problems(self) -> Iterable[tuple[str, str]]:
        """A file that cannot be read, or a schema that is none."""
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError

        if (self.config.path is None) == (self.config.inline is None):
            yield "use", "needs one of 'path' and 'inline', which is the JSON Schema"
            return
        option = "inline" if self.config.path is None else "path"
        try:
            Draft202012Validator.check_schema(self._schema)
        except (OSError, ValueError) as error:
            yield option, f"cannot be read: {error}"
        except SchemaError as error:
            yield option, f"is not a JSON Schema: {error.message}"

    def digest(self) -> str | None:
        """A hash of the schema's file."""
        path = self._path
        if path is None or not path.is_file():
            return None
        return content.file_digest(path)

    @property
    def _path(self) -> Path | None:
        path = self.config.path
        return None if path is None else self.base_dir / Path(os.path.expanduser(path))

    @cached_property
    def _schema(self) -> Any:
        if self._path is None:
            return self.config.inline
        return json.loads(self._path.read_text(encoding="utf-8"))

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """Every reply has a score."""
        from jsonschema import Draft202012Validator

        validator = Draft202012Validator(self._schema)
        scores: list[float | None] = []
        for sample in samples:
            try:
                value = json.loads(fenced(sample.completion))
            except (ValueError, RecursionError):
                scores.append(0.0)
                continue
            scores.append(1.0 if validator.is_valid(value) else self.config.parses)
        return scores
