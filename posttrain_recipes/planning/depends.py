"""What the weights, records and results of a stage depend on.

It is gathered when a plan is made, compared again when it is read, and kept beside the run, so that
two of them tell what changed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain_recipes import content
from posttrain_recipes.errors import UsageError
from posttrain_recipes.options import DatasetRef, ModelRef, RewardRef, effective, references
from posttrain_recipes.plugin import Dataset, Eval, Plugin

SCHEME = 4
"""How fingerprints are made. Raised when they are made otherwise, for then all stages are new."""
UNKNOWN = "its fingerprint was made another way, so what changed since is not known"
"""What is said of a stage where no difference can be told."""
SINCE = {4: "0.1.0"}
"""Since when they are made so."""
_ENCODER = json.JSONEncoder(sort_keys=True, default=str, ensure_ascii=False)


def digest(*parts: Any) -> str:
    """A short hash of plain values."""
    return digest_of_json(as_json(parts))


def as_json(value: Any) -> str:
    """The text of a plain value that digests are made of."""
    return _ENCODER.encode(value)


def digest_of_json(text: str) -> str:
    """The digest of values whose text as one list, by `as_json`, is this."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Dependencies:
    """What a stage depends on, and nothing else."""

    inputs: Mapping[str, Any]
    """As plain values: kept in `run.json`."""

    @classmethod
    def of(cls, inputs: Mapping[str, Any], names: Iterable[str]) -> Dependencies:
        """From what was gathered; `names` are the environment variables that stand in it."""
        return cls(without_environment({"scheme": SCHEME, **inputs}, names))

    @property
    def fingerprint(self) -> str:
        """Equal for two stages that would train the same weights."""
        return digest("stage", usable(self.inputs))


def usable(inputs: Any) -> Any:
    """`inputs` as of data of which every row can be used.

    With `bad_rows: skip` these train the same weights as with `stop`; and what `stop` trained up to
    a row that cannot be used is what `skip` trains too. So who meets one late and sets `skip` loses
    nothing. The other way around `stricter` tells.
    """
    if isinstance(inputs, Mapping):
        return {
            key: "stop" if (key, value) == ("bad_rows", "skip") else usable(value)
            for key, value in inputs.items()
        }
    return [usable(value) for value in inputs] if isinstance(inputs, list | tuple) else inputs


def stricter(earlier: Any, inputs: Any) -> bool:
    """Whether an earlier try left out rows that cannot be used, where this one would stop."""
    if isinstance(earlier, Mapping) and isinstance(inputs, Mapping):
        if (earlier.get("bad_rows"), inputs.get("bad_rows")) == ("skip", "stop"):
            return True
        return any(stricter(held, inputs.get(key)) for key, held in earlier.items())
    if isinstance(earlier, list | tuple) and isinstance(inputs, list | tuple):
        return any(map(stricter, earlier, inputs))
    return False


# --- plugins -------------------------------------------------------------------------------------


def of_plugin(plugin: Plugin) -> dict[str, Any]:
    """What a plugin's work depends on: its code, the options that affect the outcome, the weights,
    rewards and datasets that those refer to, and the files that they name."""
    config = effective(plugin.config)
    for path, _ in references(plugin.config, ModelRef):
        _forget(config, path)
    rewards = {}
    for path, _ in references(plugin.config, RewardRef):
        _forget(config, path)
        where = ".".join(map(str, path))
        if reward := plugin.rewards.get(where):  # otherwise it has a fault of its own
            rewards[where] = of_plugin(reward)
    found = {"use": plugin.name, **plugin.origin, "config": config}
    if rewards:
        found["rewards"] = rewards
    held = plugin.digest()
    sources = {name: [of_plugin(part) for part in parts] for name, parts in _parts(plugin).items()}
    if not isinstance(plugin, Dataset):
        for name in plugin.data_options if isinstance(plugin, Eval) else ():
            config.pop(name, None)
        found |= {"sources": sources} if sources else {}
        return {**found, "content": held} if held else found
    for path, _ in references(plugin.config, DatasetRef):
        config.pop(str(path[0]), None)
    if held is not None:
        # Known by what it holds, wherever that lies.
        for name in ("path", "revision"):
            config.pop(name, None)
    if plugin.reads():
        config.pop("stage", None)
    return {**found, "digest": held, "sources": sources}


def _parts(plugin: Plugin) -> Mapping[str, Sequence[Dataset]]:
    """The datasets within a dataset, or beside the records of an eval."""
    return plugin.sources if isinstance(plugin, Dataset | Eval) else {}


def _forget(options: Any, path: tuple[str | int, ...]) -> None:
    """Leave a reference out of the options: what it refers to stands beside them."""
    *way, last = path
    for part in way:
        if not _has(options, part):
            return
        options = options[part]
    if _has(options, last):
        options[last] = None


def _has(options: Any, part: str | int) -> bool:
    return part in options if isinstance(options, dict) else isinstance(options, list)


# --- compared again ------------------------------------------------------------------------------


def held(plugin: Plugin) -> tuple[str | None, ...]:
    """What the files that a plugin names hold now, and those of the plugins within it."""
    inner: list[Plugin] = [*plugin.rewards.values()]
    inner += [part for parts in _parts(plugin).values() for part in parts]
    return (plugin.digest(), *(one for part in inner for one in held(part)))


def check_held(what: str, plugin: Plugin, planned: tuple[str | None, ...] | None) -> None:
    """Refuse what is not any more what was planned.

    Raises:
        UsageError: its files hold something else.
    """
    if planned is not None and held(plugin) != planned:
        raise changed(what)


def changed(what: str) -> UsageError:
    """What is said of something that was edited between planning and reading."""
    return UsageError(
        f"{what} has changed since this run was planned",
        why="it is not what the stage is known by, so a result of it would be kept under a false "
        "name",
        hint="the same command again plans with what is there now",
        code="changed",
    )


# --- the environment -----------------------------------------------------------------------------


def without_environment(inputs: Any, names: Iterable[str]) -> Any:
    """`inputs` with a keyed hash for what came from the environment, as that may be secret.

    The key is drawn at random and lies with the user, so that nobody else can try values: kept is
    whether it is another value, and nothing by which it can be found.
    """
    values = [value for name in names if (value := os.environ.get(name))]

    def masked(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: masked(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [masked(inner) for inner in value]
        known = isinstance(value, str) and any(one in value for one in values)
        return f"env:{_keyed(value)}" if known else value

    return masked(inputs) if values else inputs


def _keyed(value: str) -> str:
    return hmac.new(_key(), value.encode(), hashlib.sha256).hexdigest()[:16]


_drawn: list[bytes] = []


def _key() -> bytes:
    """The user's key; one of this process where none can be kept."""
    path = content.cache_dir() / "key"
    for attempt in range(2):
        try:
            return bytes.fromhex(path.read_text(encoding="ascii").strip())
        except (OSError, ValueError):
            if not _drawn:
                _drawn.append(secrets.token_bytes(32))
            if not attempt:
                content.write_quietly(path, _drawn[0].hex(), mode=0o600)
    return _drawn[0]


# --- in words ------------------------------------------------------------------------------------


def other_scheme(inputs: Mapping[str, Any]) -> bool:
    """Whether a stage of an earlier run was known by a fingerprint that was made another way."""
    return bool(inputs) and inputs.get("scheme") != SCHEME


def scheme_words() -> str:
    """Why nothing of before is reused."""
    return (
        f"fingerprints are made another way since version {SINCE[SCHEME]}: what was trained before "
        "is trained again"
    )
