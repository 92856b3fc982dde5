"""Files that are there whole, whatever happens while they are written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from posttrain_recipes.errors import PtlError, display_path, writing


def require_writable(folder: Path) -> None:
    """See that files can be made in a directory, which is made where it is not there.

    Raises:
        PtlError: they cannot be, or it is a file.
    """
    require_directory(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def require_directory(folder: Path) -> None:
    """See that no file has the place of a directory, or of one above it. Raises PtlError."""
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                raise PtlError(
                    f"{display_path(path)} is a file, where a directory has to be",
                    hint="move that file away, or keep runs elsewhere, with --home or PTL_HOME",
                    code="not-writable",
                )
            return


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, whatever happens.

    Raises:
        PtlError: it cannot be written, as where the disk is full.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
