"""Files at an address, as `s3://bucket/train.jsonl`: brought here by fsspec, kept by their content.

A copy lies in the user's cache, named by its SHA-256. It is fetched again when what the server says
of the file (its ETag, time or size) has changed; a server that says nothing is read each time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from posttrain_recipes import content
from posttrain_recipes.errors import MissingExtraError, PtlError
from posttrain_recipes.shown import plain, redact

PACKAGES: Mapping[str, tuple[str, str]] = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "https": ("aiohttp", ""),
    "http": ("aiohttp", ""),
    "hf": ("huggingface_hub", ""),
}
"""By the scheme of an address: the module that reads it, and the extra that brings it."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TELLS = (
    "ETag", "etag", "Content-MD5", "md5Hash", "Digest", "generation", "blob_id", "lfs",
    "Last-Modified", "LastModified", "last_modified", "updated", "mtime", "VersionId",
)  # fmt: skip
"""What file systems call that by which one can tell that a file was changed."""


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address, and its copy here."""

    address: str
    path: Path
    sha256: str
    told_by: Literal["server", "cache"]
    why: str = ""
    """Why the server was not asked or did not answer."""

    def __str__(self) -> str:
        said = f"{shown(self.address)}: sha256 {self.sha256[:12]}"
        if self.told_by == "cache" and self.why:
            return f"{said} of the cache, as the server did not answer ({self.why})"
        return said


def shown(address: str) -> str:
    """An address for people: without a password, and without a query, which may hold a key."""
    bare = address.partition("?")[0].partition("#")[0] if "://" in address else address
    return plain(redact(bare))


def fault(address: str) -> str | None:
    """What is wrong with an address, told without asking anybody; None: nothing."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
    except ValueError as error:
        return f"'{shown(address)}' is no address: {error}"
    if parts.scheme not in PACKAGES:
        known = ", ".join(f"{scheme}://" for scheme in PACKAGES if scheme != "http")
        return (
            f"data is not read from {plain(parts.scheme)}://; from a file, or one of {known}; a "
            "data set of the hub is loaded with 'use: huggingface'"
        )
    if parts.scheme in ("s3", "gs") and parts.netloc.rpartition("@")[0]:
        return (
            f"'{shown(address)}': no user or password is read of such an address; sign in as the "
            "service's own tools do (AWS_PROFILE, gcloud)"
        )
    if parts.scheme == "http" and host not in LOOPBACK:
        return f"'{shown(address)}': over http anybody between may change it; write https://"
    if not host or PurePosixPath(parts.path).name in ("", "/"):
        return f"'{shown(address)}' names no file"
    if any(mark in parts.path for mark in "*["):
        return (
            f"'{shown(address)}' is a pattern; name one file, or several as the parts of a 'mix' "
            "data set"
        )
    module, extra = PACKAGES[parts.scheme]
    if importlib.util.find_spec(module) is None:
        wanted = f"posttrain-recipes[{extra}]" if extra else module
        return f"{parts.scheme}:// needs the package {module}; pip install '{wanted}'"
    return None


def kept(address: str) -> RemoteFile | None:
    """The copy that is here, whatever the server has now; None where there is none."""
    known = _known(_folder(address))
    if known is None:
        return None
    return RemoteFile(address, known[1], known[0]["sha256"], "cache")


@cache
def fetch(address: str) -> RemoteFile:
    """The file as it is now, fetched where this machine lacks it; asked once in a process, so that
    all stages of a plan read the same.

    Raises:
        PtlError: there is no such file, or it cannot be had, and no copy of it is here.
        MissingExtraError: a package that reads such addresses is not installed.
    """
    if said := fault(address):
        if "pip install" in said:
            what, _, hint = said.partition("; ")
            raise MissingExtraError(what, hint=hint)
        raise PtlError(said, hint="correct 'path:'", code="wrong-value")
    folder = _folder(address)
    try:
        return _fetched(address, folder)
    except Exception as error:  # each service has its own classes
        why = _why(error)
        gone = isinstance(error, FileNotFoundError) and not _unreachable(error)
        if not gone and (copy := kept(address)) is not None:
            return RemoteFile(address, copy.path, copy.sha256, "cache", why)
        if gone:
            raise PtlError(
                f"there is no file {shown(address)}",
                hint="check the address, and that the one who runs this may see it",
                code="no-such-file",
            ) from None
        raise PtlError(
            f"cannot fetch {shown(address)}",
            why=why,
            hint=_hint(urlsplit(address).scheme),
            code="no-such-file",
        ) from None


def _fetched(address: str, folder: Path) -> RemoteFile:
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {"use_listings_cache": False}
    system, place = url_to_fs(address, **options)
    about = system.info(place)
    if about.get("type") == "directory":
        raise IsADirectoryError(f"{shown(address)} is a directory; name a file in it")
    version = {name: str(about[name]) for name in _TELLS if about.get(name)}
    version |= {"size": str(about.get("size"))}
    known = _known(folder)
    if known is not None and len(version) > 1 and known[0]["version"] == version:
        return RemoteFile(address, known[1], known[0]["sha256"], "server")
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".fetching.")
    os.close(handle)
    try:
        system.get_file(place, temporary)
        size, expected = os.path.getsize(temporary), about.get("size")
        if expected is not None and size != expected:
            raise OSError(f"{size} bytes came, and not {expected}")
        with open(temporary, "rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        target = folder / sha256[:16] / _name(address)
        target.parent.mkdir(exist_ok=True)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    note = {"address": shown(address), "version": version, "sha256": sha256}
    content.write_quietly(folder / "now.json", json.dumps(note))
    return RemoteFile(address, target, sha256, "server")


def unfetched(address: str) -> Path:
    """Where nothing is, with the file's name: in the place of a copy that was not made."""
    return _folder(address) / "not-fetched" / (_name(address) or "none")


def _folder(address: str) -> Path:
    return content.cache_dir() / "data" / hashlib.sha256(address.encode()).hexdigest()[:16]


def _name(address: str) -> str:
    return unquote(PurePosixPath(urlsplit(address).path).name)


def _known(folder: Path) -> tuple[dict[str, Any], Path] | None:
    """What is noted of the copy here, where it is what it was."""
    try:
        note = json.loads((folder / "now.json").read_text(encoding="utf-8"))
        (path,) = (folder / note["sha256"][:16]).iterdir()
        same = content.file_digest(path) == note["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (note, path) if same else None


def _unreachable(error: BaseException | None) -> bool:
    """Whether the network was the cause: fsspec calls that a file that is not there."""
    while error is not None:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _why(error: BaseException) -> str:
    while isinstance(error, FileNotFoundError) and (cause := error.__cause__ or error.__context__):
        error = cause
    said = (str(error).strip().split("\n") or [""])[0] or "no more is told"
    return plain(redact(f"{type(error).__name__}: {said}"))[:300]


_HINTS = {
    "s3": "check AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL "
    "for a service that is not Amazon's",
    "gs": "check 'gcloud auth application-default login'",
    "hf": "check the network; a gated or private data set needs HF_TOKEN",
}


def _hint(scheme: str) -> str:
    return _HINTS.get(scheme, "check the network and the address")
