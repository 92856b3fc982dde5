"""Files whose bytes are not what their name says: compressed, or no text at all."""

from __future__ import annotations

import codecs
import gzip
import zlib
from pathlib import Path

_HEAD = 1024
_GZIP = b"\x1f\x8b"
_MAGIC: dict[bytes, tuple[str, str]] = {
    _GZIP: ("gzip", "name it .gz"),
    b"\x28\xb5\x2f\xfd": ("zstd, which is not read", "unpack it: zstd -d"),
    b"\xfd7zXZ\0": ("xz, which is not read", "unpack it: xz -d"),
    b"PK\x03\x04": ("a zip archive (.xlsx is one too)", "unpack it, or save its rows as CSV"),
    b"PAR1": ("parquet", "name it .parquet"),
    b"ARROW1\0\0": ("Arrow", "save it as parquet"),
    b"SQLite format 3\0": ("an SQLite database", "save its rows as CSV or JSONL"),
    b"\x04\x22\x4d\x18": ("lz4, which is not read", "unpack it: lz4 -d"),
}
_BINARY = ("binary, not text", "save its rows as JSONL, CSV or parquet")
_BOMS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_CONTROLS = bytes(set(range(32)) - set(b"\b\t\n\f\r\x1b"))


def compressed(path: Path) -> bool:
    """Whether the name says that the file is gzip."""
    return path.suffix.lower() == ".gz"


def misnamed(path: Path, form: str | None) -> str | None:
    """What to say of a file that is not what its name says; None: it may well be.

    Args:
        form: how it should be written; None: its name does not tell.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if not head:
        return None
    parquet = form == "parquet"
    if not compressed(path) or not head.startswith(_GZIP):
        found = _what(head)
        if parquet and (found is None or found[0] in ("parquet", _BINARY[0])):
            return None  # pyarrow tells what may be wrong with it
        if found is None and compressed(path):
            return f"is not gzip, though its name ends in {path.suffix}; name it {path.stem}"
        return None if found is None else _said(found)
    if parquet:
        return "is parquet within gzip; unpack it: gunzip"
    try:
        with gzip.open(path) as inside:
            found = _what(inside.read(_HEAD))
    except (EOFError, OSError, zlib.error):
        return None  # the reader tells where it breaks off
    return None if found is None else f"what is in the gzip is {found[0]}; unpack it: gunzip"


def _said(found: tuple[str, str]) -> str:
    return f"the file is {found[0]}; {found[1]}"


def _what(head: bytes) -> tuple[str, str] | None:
    if head[4:10] == b"1AY&SY" and head.startswith(b"BZh"):
        return ("bzip2, which is not read", "unpack it: bzip2 -d")
    for magic, found in _MAGIC.items():
        if head.startswith(magic) and not (magic == b"PAR1" and not _binary(head)):
            return found
    if _binary(head):
        return _BINARY
    return None


def _binary(head: bytes) -> bool:
    """Single stray bytes are faults of their lines; this is a file of them."""
    if not head or head.startswith(_BOMS):
        return False
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if controls * 10 > len(head):
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return b"\0" in head
    return False


def saved_to_disk(folder: Path) -> bool:
    """Whether a directory is what `save_to_disk` of the library `datasets` writes."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
