"""A directory as a new repository on the Hugging Face hub."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from posttrain_recipes.errors import PtlError, UsageError, display_path
from posttrain_recipes.exporting import card
from posttrain_recipes.exporting.merged import ADAPTER
from posttrain_recipes.shown import plain, redact

SECONDS = 20.0
BORN_WITH = {".gitattributes"}
"""The files of a repository that nobody put anything into."""
TOKENS = "https://huggingface.co/settings/tokens"


def check(name: str, hidden: bool) -> None:
    """See, before anything is written, that there can be such a repository.

    Args:
        hidden: only its owner is to see it.

    Raises:
        UsageError: it is no name of one.
        PtlError: there is no token, the hub refuses it or has files in such a repository, or it is
            not reached.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if name.count("/") != 1:
        raise UsageError(
            "--push names no repository of the hub",
            hint="write USER/NAME or ORGANISATION/NAME: letters, digits, '-', '_' and '.'",
        )
    if not (token := get_token()):
        raise PtlError(
            "there is no token for the Hugging Face hub",
            hint=f"make one that may write at {TOKENS}, and set HF_TOKEN, or run 'hf auth login'",
            code="bad-key",
        )
    if not re.fullmatch(r"[!-~]+", token):  # else it is no header, and the client fails on that
        raise PtlError(
            "the token for the Hugging Face hub is malformed",
            why="it has a letter that is not ASCII, or white space in it, which no token has",
            hint=f"copy it once more from {TOKENS} to HF_TOKEN, or run 'hf auth login'",
            code="bad-key",
        )
    with _told(name):
        try:
            HfApi().whoami()
        except HfHubHTTPError as error:
            # The hub itself always answers this one; a mirror may not have it.
            if _status(error) in (401, 403):
                raise
        with contextlib.suppress(HfHubHTTPError):  # it is not there, or making it tells why not
            _require_empty(name, hidden)


def license_of(base: str) -> str | None:
    """The licence that the hub names for a base model; None where it names none or is not asked."""
    return _license("model", base) if card.on_hub(base) else None


def data_licences(used: Sequence[str]) -> dict[str, str]:
    """The licences that the hub names for data sets of it, by their id; those that are known."""
    ids = [one for one in used if re.fullmatch(r"[\w.-]+/[\w.-]+", one)]
    found = {one: _license("dataset", one) for one in ids}
    return {one: name for one, name in found.items() if name}


def _license(kind: Literal["dataset", "model"], name: str) -> str | None:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        about = api.dataset_info if kind == "dataset" else api.model_info
        found = about(name, timeout=SECONDS).card_data
        license = getattr(found, "license", None)
    except Exception:  # what is not there, the network: the card says that it is unknown
        return None
    several = license if isinstance(license, list) else [license]
    known = [one for one in several if isinstance(one, str) and re.fullmatch(r"[\w.-]+", one)]
    return ", ".join(known) or None


def push(directory: Path, name: str, hidden: bool, *, kept: bool) -> str:
    """Put all files of `directory` into a repository that is new, or has none yet; its address.

    An adapter's config names its base by a place on this machine where that is local: the name
    alone is put there.

    Args:
        hidden: only its owner sees it.
        kept: the directory stays where the push fails, which is told.

    Raises:
        PtlError: the hub refuses it, has files in such a repository already, or is not reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi()
    place = directory if kept else None
    head = None
    with _told(name, place):
        try:
            address = str(api.create_repo(name, private=hidden, exist_ok=False))
        except HfHubHTTPError as error:
            if _status(error) != 409:
                raise
            try:
                head = _require_empty(name, hidden, place)
            except HfHubHTTPError:  # what it says of its own is less than that it is there
                raise error from None
            address = f"{api.endpoint}/{name}"
    with _told(name, place, made=True):
        files = [file for file in sorted(directory.rglob("*")) if file.is_file()]
        api.create_commit(
            name,
            [CommitOperationAdd(str(file.relative_to(directory)), _shared(file)) for file in files],
            commit_message="Add what ptl export wrote",
            parent_commit=head,  # so that what another one puts there meanwhile is not joined
        )
    return address


def _require_empty(name: str, hidden: bool, place: Path | None = None) -> str | None:
    """See that a repository that is there has no files, as one of a push that failed, and is seen
    by whom it is meant for; its last commit.

    Raises:
        PtlError: it has some, or others see it.
        HfHubHTTPError: there is none, or the hub does not say.
    """
    from huggingface_hub import HfApi

    found = HfApi().model_info(name, timeout=SECONDS)
    kept = _stays(place)
    if {one.rfilename for one in found.siblings or ()} - BORN_WITH:
        raise _there_already(name, kept)
    if bool(found.private) is not hidden:
        seen, option = ("private", "give") if found.private else ("public", "leave out")
        raise PtlError(
            f"{name} is on the Hugging Face hub already, empty and {seen}",
            hint=f"{option} --private, or delete that repository in its settings there{kept}",
            code="hub",
        )
    return found.sha


def _there_already(name: str, kept: str) -> PtlError:
    return PtlError(
        f"{name} is on the Hugging Face hub already",
        hint="name another, or delete that repository in its settings there: nothing in it was "
        f"changed{kept}",
        code="hub",
    )


def _goes_on(name: str, directory: Path | None) -> str:
    if directory is None:
        return "the same command goes on with it"
    if (directory / ADAPTER[0]).is_file():  # whose config is changed on the way
        return "the same command without a directory goes on with it"
    return f"'{shlex.join(['hf', 'upload', name, display_path(directory)])}' goes on with it"


def _stays(directory: Path | None) -> str:
    return f"; what was written stays in {display_path(directory)}" if directory else ""


def _shared(file: Path) -> Any:
    if file.name != ADAPTER[0]:
        return str(file)
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = card.base_name(config["base_model_name_or_path"])
    return json.dumps(config, indent=2, sort_keys=True).encode()


def _status(error: Any) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


@contextmanager
def _told(name: str, directory: Path | None = None, *, made: bool = False) -> Iterator[None]:
    """Say what the hub's errors mean. What it answers is told without secrets.

    Args:
        directory: what stays there.
        made: the repository stands on the hub without files by now.
    """
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    kept = _stays(directory)
    lost = kept
    if made:
        goes_on = _goes_on(name, directory)
        kept = f"; {name} stands there without files: {goes_on}{kept}"
        # An answer that is lost may be that of a commit that was made.
        lost = f"; {name} stands there: where it has no files, {goes_on}{lost}"
    try:
        yield
    except HfHubHTTPError as error:
        status = _status(error)
        if status == 409 and not made:
            raise _there_already(name, kept) from None
        what, hint = {
            401: (
                "the Hugging Face hub does not accept the token",
                f"make one that may write at {TOKENS}, and set HF_TOKEN, or run 'hf auth login'",
            ),
            403: (
                f"the token may not write to {name} on the Hugging Face hub",
                f"name your own USER/NAME, or make a token that may write there at {TOKENS}",
            ),
        }.get(
            status or 0,
            (
                "the Hugging Face hub refused it",
                "try again later; status.huggingface.co tells more",
            ),
        )
        server = str(getattr(error, "server_message", None) or "").strip()
        why = f"it answered {status}" + (f": {redact(plain(server))[:300]}" if server else "")
        raise PtlError(what, why=why, hint=hint + kept, code="hub") from None
    except OfflineModeIsEnabled:
        raise PtlError(
            "nothing is pushed: HF_HUB_OFFLINE is set",
            hint=f"unset it for --push{kept}",
            code="hub",
        ) from None
    except (httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        reached = isinstance(error, RuntimeError | ValueError)  # what moves large files raises them
        raise PtlError(
            "the push did not succeed" if reached else "the Hugging Face hub is not reached",
            why=redact(plain(str(error).strip())).splitlines()[0][:300]
            if str(error).strip()
            else None,
            hint=f"look at the network, and at HF_ENDPOINT where that is set{lost}",
            code="hub",
        ) from None
