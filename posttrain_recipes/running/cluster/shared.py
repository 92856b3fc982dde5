"""The part of a home of runs that every node of a cluster sees: the same tree below one URL."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.shown import redact

MARK = ".ptl-shared"
"""The file by which a node sees that the URL leads to the same place there."""


class SharedHome:
    """Copies files between a home on this machine and the URL, keeping their places.

    Args:
        url: any URL that fsspec knows, as `s3://bucket/runs`, or a directory that all see.
        home: the home on this machine.
    """

    def __init__(self, url: str, home: Path) -> None:
        import fsspec

        self.url, self.home = url, home
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:  # s3fs is not installed; no such protocol
            raise UsageError(
                f"nothing can be shared below {redact(url)}",
                why=str(error),
                hint="install what fsspec names for it, on each node too, or name a directory that "
                "every node sees",
                code="cluster",
            ) from None
        self._sent: dict[str, tuple[int, int]] = {}
        self._known: dict[str, Any] = {}

    def mark(self, word: str) -> None:
        """Leave a word there that `check` looks for. Raises `PtlError` where nothing can be
        written."""
        with self._reached():
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(self._at(MARK), word.encode())

    def check(self, word: str) -> None:
        """Raise `PtlError` where the URL leads elsewhere on this machine than on the driver's."""
        with self._reached():
            there = self._files.exists(self._at(MARK))
            found = self._files.cat_file(self._at(MARK)).decode() if there else None
        if found != word:
            raise PtlError(
                f"{redact(self.url)} is not the same place on every node",
                why="a file that the driver wrote there is not seen here",
                hint="name one that all of them see, as --shared s3://bucket/folder or a directory "
                "that is mounted on each",
                code="cluster",
            )

    def push(self, *names: str) -> None:
        """Copy files of the home, and all files of directories; those that have not changed since
        are left. A file is there in full or not at all."""
        for name in self._local(names):
            path = self.home / name
            stat = path.stat()
            now = stat.st_mtime_ns, stat.st_size
            if self._sent.get(name) == now:
                continue
            with self._reached():
                to = self._at(name)
                self._files.makedirs(to.rpartition("/")[0], exist_ok=True)
                # Several stages may push the same checkpoint at once.
                part = f"{to}.{secrets.token_hex(4)}.part"
                try:
                    self._files.put_file(str(path), part)
                    self._files.mv(part, to)
                except BaseException:  # a disk that is full has no room for halves of files
                    with contextlib.suppress(Exception):
                        self._files.rm_file(part)
                    raise
            self._sent[name] = now

    def _local(self, names: Iterable[str]) -> Iterator[str]:
        for name in names:
            place = self.home / name
            files = sorted(place.rglob("*")) if place.is_dir() else [place]
            # A checkpoint's description is the last of its files: where it is, the others are.
            files.sort(key=lambda file: file.name == "checkpoint.json")
            yield from (str(file.relative_to(self.home)) for file in files if file.is_file())

    def pull(self, *names: str) -> None:
        """Bring files, and all files of directories, into the home; those that did not change since
        they were brought are left, and what is not there is passed over."""
        for name in names:
            with self._reached():
                self._files.invalidate_cache()
                found = self._files.find(self._at(name), detail=True)
            for at, info in sorted(found.items()):
                if at.endswith(".part"):
                    continue
                own = at[len(self._root) :].lstrip("/")
                told = {k: v for k, v in info.items() if k in ("size", "mtime", "ETag", "updated")}
                if self._known.get(own) == told and (self.home / own).is_file():
                    continue
                if self._bring(at, self.home / own):
                    self._known[own] = told

    def _bring(self, at: str, to: Path) -> bool:
        """Whether it was still there: a node deletes what it does not need any more."""
        to.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=".pull-", dir=to.parent)
        os.close(handle)
        try:
            with self._reached():
                try:
                    self._files.get_file(at, part)
                except FileNotFoundError:
                    return False
            os.replace(part, to)
            return True
        finally:
            Path(part).unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        """A file that is there; None where it is not."""
        with self._reached():
            self._files.invalidate_cache()
            at = self._at(name)
            return self._files.cat_file(at) if self._files.exists(at) else None

    def pull_checkpoint(self, names: Sequence[str]) -> None:
        """Bring what `Engine.files` names, below the home: a directory, which never changes, and
        files beside it."""
        for name in names[:1]:
            self._pull_whole(name)
        self.pull(*names[1:])

    def _pull_whole(self, name: str) -> None:
        """Bring a directory, which appears in full or not at all; one that is there is left."""
        place = self.home / name
        if place.is_dir():
            return
        with self._reached():
            self._files.invalidate_cache()
            found = [at for at in self._files.find(self._at(name)) if not at.endswith(".part")]
        if not found:
            return
        aside = self.home / ".pull"
        aside.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=aside))
        try:
            places = {at: part / at[len(self._at(name)) :].lstrip("/") for at in found}
            if all(self._bring(at, to) for at, to in places.items()):
                place.parent.mkdir(parents=True, exist_ok=True)
                part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def remove(self, name: str = "") -> None:
        """Delete a file or directory there, if it is there; all of it by default. What is left by a
        failure costs space and nothing else."""
        at = self._at(name).rstrip("/")
        try:
            if self._files.exists(at):
                self._files.rm(at, recursive=True)
        except Exception as error:
            raise PtlError(
                f"{redact(at)} was not deleted", why=str(error), code="cluster"
            ) from None

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        # Each of fsspec's file systems raises what its own library does.
        try:
            yield
        except PtlError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise PtlError(
                f"{redact(self.url)} cannot be read or written", why=redact(why), code="cluster"
            ) from error
