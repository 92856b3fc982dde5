"""Records from the Hugging Face hub, or from a directory that `datasets` can load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from posttrain_recipes import content, hub
from posttrain_recipes.datasets.formats import RowParser, column_problems
from posttrain_recipes.datasets.misnamed import saved_to_disk
from posttrain_recipes.datasets.numbers import without_exponent
from posttrain_recipes.datasets.options import RowsConfig, records
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.plugin import Affects, Dataset, Record

if TYPE_CHECKING:
    from posttrain_recipes.datasets.json_rows import Line


class HuggingFace(Dataset):
    """Records of a Hugging Face dataset; its columns tell what they are, as with `jsonl`.

    A branch or a tag is looked up when a plan is made: the commit that it is then is what is read,
    and part of what the stage depends on. `ptl plan` tells it.
    """

    name = "huggingface"
    requires = ("datasets",)

    class Config(RowsConfig):
        """Options of a Hugging Face dataset."""

        path: str
        """Its id on the hub, as `openai/gsm8k`, or a local directory relative to the recipe."""
        name: str | None = None
        """Its configuration (subset), where it has several."""
        split: str = "train"
        """Which split; slices such as `train[:1000]` work too, except when streaming."""
        revision: str | None = None
        """A branch, a tag or a commit hash; a hash makes the run reproducible."""
        streaming: Annotated[bool, Affects.COST] = False
        """Read over the network as needed, rather than download all of it first."""

    config: Config
    _wants: type[Record] | None = None
    _commit: str | None = None
    """What `revision` is, once it was looked up."""

    def bind(self, made: Callable[[str], Path], wants: type[Record]) -> None:
        """Remember what the records are for."""
        self._wants = wants

    @property
    def _local(self) -> Path | None:
        try:
            path = self.base_dir / Path(os.path.expanduser(self.config.path))
            return path.resolve() if path.exists() else None
        except (OSError, RuntimeError, ValueError):  # too long, ~nobody, NUL
            return None

    def problems(self) -> Iterable[tuple[str, str]]:
        """What can be told without the network."""
        for problem in column_problems(self.config.columns):
            yield "columns", problem
        if self._local is None and self.config.path.startswith((".", "/", "~")):
            yield "path", f"there is no directory '{self.config.path}'"

    def pin(self, *, ask: bool) -> str | None:
        """Look up the commit that `revision` is on the hub."""
        if self._local is not None or self.config.path.startswith((".", "/", "~")):
            return None
        found = hub.revision("dataset", self.config.path, self.config.revision, ask=ask)
        self._commit = found.commit
        return None if found.told_by == "recipe" else f"{self.config.path}: {found}"

    def digest(self) -> str | None:
        """The content of a local directory, or the commit; None where that is not known."""
        config = self.config
        if self._local is not None:
            return f"{content.tree_digest(self._local)}/{config.name}/{config.split}"
        commit = self._commit or config.revision
        if commit is None or not hub.COMMIT.fullmatch(commit):
            return None
        return f"{config.path}@{commit}/{config.name}/{config.split}"

    def load(self) -> Iterator[Record]:
        """The records, in the order of the split; downloads what is not in the cache."""
        parser = RowParser(
            f"{self.config.path}/{self.config.split}", self.config.columns, self.config.system
        )
        hint = "name its fields with 'columns:', or leave such rows out with 'bad_rows: skip'"
        yield from records(self._rows(), parser, self.config, hint, self._wants)

    def _rows(self) -> Iterator[Line]:
        # The rows come over the network when streaming, so failures come here as well.
        try:
            for number, row in enumerate(self._open(), 1):
                yield number, {key: _written(value) for key, value in row.items()}
        except PtlError:
            raise
        except Exception as error:  # the hub, the network and the file readers: many classes
            raise self._failed(error) from error

    def _open(self) -> Iterable[dict[str, Any]]:
        import datasets

        config = self.config
        if self._local is not None and saved_to_disk(self._local):
            return self._saved(datasets)
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(
            str(self._local or config.path),
            config.name,
            split=config.split,
            revision=self._commit or config.revision,
            streaming=config.streaming,
        )
        return rows

    def _saved(self, datasets: Any) -> Iterable[dict[str, Any]]:
        """What `save_to_disk` wrote: one split, or several by name."""
        config, found = self.config, datasets.load_from_disk(str(self._local))
        for option in ("name", "revision"):
            if getattr(config, option):
                raise UsageError(
                    f"'{config.path}' was written by save_to_disk, which keeps no '{option}'",
                    hint=f"remove '{option}:'",
                    code="wrong-value",
                )
        name, _, part = config.split.partition("[")
        whole = type(self.config).model_fields["split"].default
        if not isinstance(found, datasets.DatasetDict) and name != whole:
            raise UsageError(
                f"'{config.path}' has no splits", hint="remove 'split:'", code="wrong-value"
            )
        if isinstance(found, datasets.DatasetDict):
            if name not in found:
                raise UsageError(
                    f"'{config.path}' has no split '{name}'",
                    hint=f"there is: {', '.join(found)}",
                    code="wrong-value",
                )
            found = found[name]
        if part:
            raise UsageError(
                f"'{config.path}' was written by save_to_disk, of which no part can be named",
                hint=f"write 'split: {name}', and 'limit:' for its first records",
                code="wrong-value",
            )
        rows: Iterable[dict[str, Any]] = found
        return rows

    def _failed(self, error: Exception) -> PtlError:
        config = self.config
        reason = (str(error).strip().split("\n") or [""])[0]
        what = f"cannot load the dataset {config.path} (split {config.split})"
        why = f"{type(error).__name__}: {reason}"
        if isinstance(error, ValueError):
            hint = "check 'split:' and 'name:' against the dataset's page"
        elif self._local is not None:
            hint = "check that the directory holds JSONL, CSV or parquet files"
        elif isinstance(error, ConnectionError):
            hint = "check the network and HF_HUB_OFFLINE, or download it and name the directory"
        else:
            hint = (
                f"check the id on https://huggingface.co/datasets/{config.path}; "
                "a gated or private one needs HF_TOKEN"
            )
        return PtlError(what, why=why, hint=hint, code="hub")


def _written(value: Any) -> Any:
    return without_exponent(value) if type(value) is float else value
