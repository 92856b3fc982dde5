"""A checkpoint of a service as files: exported there, downloaded, its export deleted again.

The SDK downloads external weights alone, which a training makes of its own weights
(`TrainingClient.save_weights_external`): the state is loaded into a new training, as `tinker
checkpoint download` does. Names of weights are the service's. Where they are not those of the base
model, tinker-cookbook's `weights.build_lora_adapter` makes a PEFT adapter of them.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import urlopen

from posttrain_recipes import models
from posttrain_recipes.errors import MissingExtraError, PtlError
from posttrain_recipes.exporting.merged import ADAPTER
from posttrain_recipes.planning import tokens
from posttrain_recipes.plugin import Connection, Waiter
from posttrain_recipes.pretrained import in_a_line
from posttrain_recipes.waiting import in_thread

if TYPE_CHECKING:
    import tinker

NAME = "ptl-export"
TTL_S = 3600
"""How long an export lies there where its deletion fails: the shortest that the SDK takes."""
ANSWER_S = 60.0
STATE, SAMPLER, EXTERNAL = "/weights/", "/sampler_weights/", "/external_weights/"
_PLAIN = re.compile(r"\.(q|k|v|o|gate|up|down)_proj$|\.lm_head$")
"""Weights that every decoder has by the same names; others are made of several, or of experts."""


def download(connection: Connection, uri: str, out: Path, wait: Waiter) -> str:
    """Write the adapter behind a `tinker://` path to an empty directory, as PEFT's.

    Returns:
        The base model, as the service calls it.

    Raises:
        PtlError: the service lacks it, it cannot be fetched, or its files are no adapter.
        MissingExtraError: its weights have names that tinker-cookbook alone knows.
    """
    # A sampler cannot be downloaded; what a stage saves has a state of the same name.
    state = uri.replace(SAMPLER, STATE)
    base = str(wait(connection.rest.get_weights_info_by_tinker_path(state)).base_model)
    if EXTERNAL in state:
        _fetch(connection.rest, state, out, wait)
    else:
        create = connection.service.create_training_client_from_state
        client: tinker.TrainingClient = wait(in_thread(lambda: create(state).result()))
        exported = _exported(client, wait)
        try:
            _fetch(connection.rest, exported, out, wait)
        finally:
            with suppress(PtlError):  # it expires
                wait(connection.rest.delete_checkpoint_from_tinker_path(exported))
    missing = [name for name in ADAPTER if not (out / name).is_file()]
    if missing:
        raise PtlError(f"what the service gives of {uri} is no adapter: it lacks {missing[0]}")
    as_peft(out, models.resolve(base))
    return base


def _exported(client: tinker.TrainingClient, wait: Waiter) -> str:
    import tinker

    try:
        return str(wait(client.save_weights_external(NAME, ttl_seconds=TTL_S)).path)
    except PtlError as error:
        if not isinstance(error.__cause__, tinker.ConflictError):
            raise
        # The answer was lost and the SDK asked again: no other of this training has the name.
        return f"tinker://{client.get_info().model_id}{EXTERNAL}{NAME}"


def as_peft(adapter: Path, base: str) -> None:
    """Have an adapter's weights named as PEFT does for its base model, and name that.

    Raises:
        MissingExtraError: that needs tinker-cookbook, which is not installed.
        PtlError: tinker-cookbook cannot do it.
    """
    try:
        names = _modules(adapter)
        config = json.loads((adapter / ADAPTER[0]).read_text(encoding="utf-8"))
    except Exception as error:  # safetensors has an error of its own
        raise PtlError("the adapter of the service cannot be read", why=in_a_line(error)) from None
    if odd := [name for name in names if not _known(name, base)]:
        _convert(adapter, base, odd)
    else:
        config["base_model_name_or_path"] = base
        (adapter / ADAPTER[0]).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _modules(adapter: Path) -> list[str]:
    """What an adapter changes, by the names of the base model."""
    from safetensors import safe_open

    with safe_open(adapter / ADAPTER[1], "np") as held:
        keys = [re.sub(r"\.lora_[AB](\.default)?\.weight$", "", key) for key in held.keys()]  # noqa: SIM118
    return sorted({key.removeprefix("base_model.model.") for key in keys})


def _known(name: str, base: str) -> bool:
    """Whether the base model has a weight of that name; by the usual ones where it is not here."""
    if ".experts" in name or not _PLAIN.search(f".{name}"):
        return False
    held = _weights(base)
    return held is None or _is_of(name, held)


def _is_of(name: str, held: set[str]) -> bool:
    """Whether a base model with these weights has one that an adapter changes: experts are named by
    themselves, and an output layer may be tied."""
    return f"{name}.weight" in held or name == "lm_head" or ".experts" in name


def _weights(base: str) -> set[str] | None:
    """The names of a base model's weights; None where it is not on this machine."""
    from safetensors import safe_open

    folder = tokens.folder(base)
    files = sorted(folder.glob("*.safetensors")) if folder else []
    found: set[str] = set()
    for file in files:
        with safe_open(file, "np") as held:
            found |= set(held.keys())
    return found or None


def _convert(adapter: Path, base: str, odd: Sequence[str]) -> None:
    try:
        from tinker_cookbook import weights
    except ImportError:
        raise MissingExtraError(
            f"the service names weights otherwise than the base model does ({odd[0]}): it needs "
            "tinker-cookbook to make a PEFT adapter of them",
            hint="pip install 'posttrain-recipes[cookbook]'",
        ) from None
    with tempfile.TemporaryDirectory(prefix="ptl-peft-", dir=adapter.parent) as folder:
        made = Path(folder) / "adapter"
        try:
            weights.build_lora_adapter(
                base_model=base, adapter_path=str(adapter), output_path=str(made)
            )
        except Exception as error:  # of the hub, of files and of its own
            raise PtlError(
                "tinker-cookbook cannot make a PEFT adapter of what the service gives",
                why=in_a_line(error),
            ) from None
        for file in adapter.iterdir():
            file.unlink()
        for file in made.iterdir():
            shutil.move(file, adapter / file.name)
    held = _weights(base) or set()
    lost = [name for name in _modules(adapter) if held and not _is_of(name, held)]
    if lost:
        raise PtlError(
            f"the adapter that the service gives does not fit its base model: {base} has no "
            f"{lost[0]}, and tinker-cookbook knows no other name for it"
        )


def _fetch(rest: Any, uri: str, out: Path, wait: Waiter) -> None:
    """Every file of external weights. Raises PtlError for one that would lie elsewhere."""
    for name, address in sorted(wait(rest.get_external_weights_urls(uri)).urls.items()):
        place = (out / name).resolve()
        if not place.is_relative_to(out.resolve()) or place == out.resolve():
            raise PtlError(f"the service names a file outside of the checkpoint: {name!r}")
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with urlopen(address, timeout=ANSWER_S) as answer, place.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except URLError as error:
            raise PtlError(f"{name} of {uri} cannot be downloaded", why=str(error.reason)) from None
