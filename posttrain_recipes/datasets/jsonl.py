"""Records from files on this machine."""

from __future__ import annotations

import contextlib
import difflib
import os
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path

from posttrain_recipes import content
from posttrain_recipes.datasets import remote
from posttrain_recipes.datasets.faults import FileError, RowError
from posttrain_recipes.datasets.formats import RowParser, column_problems
from posttrain_recipes.datasets.json_rows import json_line
from posttrain_recipes.datasets.line_index import LineIndex, file_state, indexable
from posttrain_recipes.datasets.misnamed import compressed, misnamed, saved_to_disk
from posttrain_recipes.datasets.options import RowsConfig, records, tell_unused
from posttrain_recipes.datasets.reading import FileFormat, file_format, read_rows
from posttrain_recipes.errors import MissingExtraError, PtlError, UsageError, display_path
from posttrain_recipes.plugin import Dataset, Record, Streamed
from posttrain_recipes.shown import is_address

HELD = 20_000
"""Rows of a JSONL file up to which all of them are read and held; of more, one at a time."""
_LEADING = 1000
"""Rows of a larger one that are read first: they tell its form, and fields that are not used; those
that come up later are told then."""
_indexes: dict[Path, LineIndex] = {}


class Jsonl(Dataset):
    """Records of a JSONL, JSON, CSV, TSV or parquet file; its fields tell what they are.

    The file lies on this machine, or at an address: `s3://`, `gs://`, `https://`, `hf://`. That is
    fetched into a cache when a plan is made; its content then is what the stage depends on.

    Known fields: messages; prompt and completion (or response); instruction, input and output;
    conversations (ShareGPT); prompt, chosen and rejected; prompt, completion and label; question
    and answer; prompt and answer; prompt. Others are named with `columns`. The text formats may be
    compressed (`.gz`).
    """

    name = "jsonl"

    class Config(RowsConfig):
        """Options of a file."""

        path: str
        """The file, relative to the recipe, or its address, as `s3://bucket/train.jsonl`."""
        format: FileFormat | None = None
        """How the file is written; by its suffix where not given."""

    config: Config
    _wants: type[Record] | None = None
    _fetched: remote.RemoteFile | None = None
    _unfetched: PtlError | None = None
    """Why it could not be fetched."""

    def pin(self, *, ask: bool) -> str | None:
        """Fetch a file at an address as it is now; without `ask`, take the copy of the cache."""
        address = self.config.path
        if not is_address(address) or remote.fault(address):
            return None
        if not ask:
            self._fetched = remote.kept(address)
            return None
        try:
            self._fetched = remote.fetch(address)
        except PtlError as error:
            self._unfetched = error
            return None
        return str(self._fetched)

    def bind(self, made: Callable[[str], Path], wants: type[Record]) -> None:
        """Remember what the records are for."""
        self._wants = wants

    @property
    def path(self) -> Path:
        """Where the file lies, or the copy of one at an address; where that would be, if it was
        not fetched."""
        if is_address(self.config.path):
            return self._fetched.path if self._fetched else remote.unfetched(self.config.path)
        return Path(os.path.realpath(self._named))  # no error for a link in a circle

    @property
    def _lacks(self) -> bool:
        """Whether it is at an address, and no copy is here."""
        return is_address(self.config.path) and self._fetched is None

    @property
    def _label(self) -> str:
        """The file as people are told of it."""
        address = self.config.path
        return remote.shown(address) if is_address(address) else display_path(self.path)

    @property
    def _named(self) -> Path:
        return self.base_dir / os.path.expanduser(self.config.path)

    def problems(self) -> Iterable[tuple[str, str]]:
        """What the first row and the file's name tell; `ptl data check` reads all of it."""
        if is_address(self.config.path):
            if said := remote.fault(self.config.path):
                return [("path", said)]
            if (error := self._unfetched) is not None:
                return [("path", "; ".join(filter(None, (error.what, error.why, error.hint))))]
            if self._fetched is None:  # nobody asked for it: what is in it is not known
                return [("columns", problem) for problem in column_problems(self.config.columns)]
        elif missing := missing_file(self._named, self.config.path):
            return [("path", missing)]
        if self.config.format is None and file_format(self.path) is None:
            if said := misnamed(self.path, None):
                return [("path", f"{self._label}  {said}")]
            return [("path", f"cannot tell the format of '{self.path.name}'; add 'format: jsonl'")]
        if problems := column_problems(self.config.columns):
            return [("columns", problem) for problem in problems]
        try:
            next(self._first())
        except StopIteration:
            return [("path", f"{self._label} has no records")]
        except _FirstRowError as error:
            blame = "columns" if error.of_columns else "path"
            where = self._label + (f":{error.line}" if error.line else "")
            return [(blame, f"{where}  {error}")]
        except MissingExtraError as error:
            return [("path", f"{error.what}; {error.hint}")]
        return []

    def record_type(self) -> type[Record] | None:
        """The type of the first row's record."""
        if self._lacks:
            return None
        try:
            return next((type(record) for record in self._first()), None)
        except (_FirstRowError, PtlError):
            return None

    def digest(self) -> str | None:
        """SHA-256 of the file's bytes."""
        try:
            return content.file_digest(self.path)
        except OSError:
            return None

    def size(self) -> int | None:
        """Lines of a plain JSONL file; other forms have to be read to be counted."""
        form = self.config.format or file_format(self.path)
        if (
            self._lacks
            or form != "jsonl"
            or compressed(self.path)
            or self.config.bad_rows == "skip"
        ):
            return None
        return line_count(self.path)

    def streamed(self) -> Streamed[Record] | None:
        """The rows of a plain JSONL file of more than `HELD`."""
        form = self.config.format or file_format(self.path)
        if self._lacks or form != "jsonl" or compressed(self.path):
            return None
        if (self.config.limit or HELD + 1) <= HELD:
            return None
        try:
            index = _index(self.path)
        except OSError:
            return None  # `load` says why
        if index is None:
            return None
        parser, wants = self._parser(), self._wants
        hint = f"{self._hint}; with 'bad_rows: skip' the run goes on without such rows"
        told: set[str] | None = None

        def make(place: int) -> Record:
            nonlocal told
            row, line = json_line(index.read(place)), index.line(place)
            try:
                if isinstance(row, RowError):
                    raise row
                record = parser.parse(row, line)
            except RowError as error:
                raise UsageError(
                    f"{parser.name}:{line}  {error}", hint=hint, code="bad-row"
                ) from None
            if told is not None and len(parser.unused) + len(parser.metadata) > len(told):
                tell_unused(parser, wants, told)
                told = {*parser.unused, *parser.metadata}
            return record

        for place in range(min(_LEADING, len(index))):
            with contextlib.suppress(UsageError):  # told when it is asked for
                make(place)
        tell_unused(parser, wants)
        told = {*parser.unused, *parser.metadata}
        return Streamed(len(index), make, index.size)

    def load(self) -> Iterator[Record]:
        """The records, one after the other."""
        if self._lacks:
            address = remote.shown(self.config.path)
            raise self._unfetched or PtlError(f"{address} was not fetched", code="no-such-file")
        rows = read_rows(self.path, self.config.format)
        yield from records(rows, self._parser(), self.config, self._hint, self._wants)

    @property
    def _hint(self) -> str:
        name = self._label
        return f"`{check_command(name, self.config.columns, self.config.format)}` lists all of it"

    def _parser(self) -> RowParser:
        form = self.config.format or file_format(self.path)
        return RowParser(
            self._label,
            self.config.columns,
            self.config.system,
            text_only=form in ("csv", "tsv"),
        )

    def _first(self) -> Iterator[Record]:
        parser = self._parser()
        for line, row in read_rows(self.path, self.config.format):
            try:
                if isinstance(row, RowError):
                    raise row
                yield parser.parse(row, line)
            except RowError as error:
                if self.config.bad_rows == "skip" and line and not isinstance(error, FileError):
                    continue
                of_columns = not isinstance(row, RowError) and any(
                    theirs not in row for theirs in self.config.columns.values()
                )
                raise _FirstRowError(str(error), line, of_columns) from None


def _index(path: Path) -> LineIndex | None:
    """Where the rows of a large file begin, looked for once; None: it is small, or no JSON lines.

    Raises:
        OSError: it cannot be read.
    """
    known = _indexes.get(path)
    if known is None or known.changed:
        _indexes.pop(path, None)
        if misnamed(path, "jsonl") or not indexable(path) or not _is_large(path):
            return None
        known = LineIndex(path)
        if len(known) > HELD:
            _indexes[path] = known
    return known if len(known) > HELD else None


def _is_large(path: Path) -> bool:
    """Whether there are more lines than are held."""
    with path.open("rb") as stream:
        return next(islice(stream, HELD, None), None) is not None


class _FirstRowError(Exception):
    def __init__(self, message: str, line: int, of_columns: bool) -> None:
        super().__init__(message)
        self.line = line
        self.of_columns = of_columns


def check_command(
    name: str, columns: Mapping[str, str] | None = None, form: FileFormat | None = None
) -> str:
    """The command that lists everything that is wrong with a file."""
    words = ["ptl", "data", "check", name]
    for ours, theirs in (columns or {}).items():
        words += ["--columns", f"{ours}={theirs}"]
    if form is not None:
        words += ["--format", form]
    return shlex.join(words)


def missing_file(path: Path, given: str) -> str | None:
    """What to say where `path` is no file, and what it is, or the nearest name; None: it is one."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            return f"'{given}' is a link to {path.readlink()}, which is not there"
    except (OSError, ValueError) as error:  # not ours to see, a link in a circle, no path at all
        return f"'{given}' cannot be read: {getattr(error, 'strerror', None) or error}"
    else:
        return _no_file(path, given, mode)
    if is_address(given):
        return f"'{remote.shown(given)}' is an address; download it"
    folder = path.parent
    if any(mark in given for mark in "*?["):
        return (
            f"'{given}' is a pattern, and names no file; name one, several as the parts of a 'mix' "
            "data set, or write them into one file"
        )
    if not folder.is_dir():
        return f"there is no file '{given}', nor its directory {display_path(folder)}"
    names = sorted(
        other.name for other in folder.iterdir() if other.is_file() and file_format(other)
    )
    near = difflib.get_close_matches(path.name, names, n=1)
    if near:
        return f"there is no file '{given}'; did you mean '{Path(given).with_name(near[0])}'?"
    beside = f"; there is: {', '.join(names[:8])}" if names else ""
    return f"there is no file '{given}'{beside}"


_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _no_file(path: Path, given: str, mode: int) -> str | None:
    """What to say of what is there and no file."""
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        if saved_to_disk(path):
            return f"'{given}' was written by save_to_disk; load it with 'use: huggingface'"
        return f"'{given}' is a directory; name a file in it"
    kind = _KINDS.get(stat.S_IFMT(mode), "no file")
    return f"'{given}' is {kind}, and records are read more than once: save them to a file first"


def line_count(path: Path) -> int:
    """Lines of a file, counted again where it was edited; the last may lack its newline."""
    return _lines(path, file_state(path.stat()))


@lru_cache
def _lines(path: Path, state: tuple[int, ...]) -> int:
    count, last = 0, b"\n"
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")
