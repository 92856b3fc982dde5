"""A recipe as it is written: its file, what it extends, a preset and `--set`, merged into one tree.

Every value keeps the place it was written at, through all merging, so that an error found later
can point at file, line and column. Nothing here knows what the keys mean.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
import select
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import yaml

from posttrain_recipes import shipped
from posttrain_recipes.errors import (
    Fault,
    Location,
    PtlError,
    RecipeError,
    UsageError,
    display_path,
)
from posttrain_recipes.language import named
from posttrain_recipes.language.given import dumped
from posttrain_recipes.language.nodes import NESTED, Key, Node, merge, name_of
from posttrain_recipes.language.parsing import MAX_BYTES, parse, parse_value, placed
from posttrain_recipes.options import is_key
from posttrain_recipes.registry import suggest

_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Recipe:
    """A recipe after `extends`, preset and overrides, not yet validated."""

    root: Node
    path: Path
    preset: str | None = None
    source: Recipe | None = None
    """The recipe as it is written, where this one is its expansion to a flat list of stages."""
    keys: tuple[Key, ...] = ()
    """By stage of the expansion: where the source has it."""

    @cached_property
    def data(self) -> dict[str, Any]:
        """The resolved recipe as plain values, to be read: what is hashed, logged and
        reproducible."""
        return self.root.plain()

    @property
    def base_dir(self) -> Path:
        """What relative paths in the recipe start from."""
        return self.path.parent

    def locate(self, key: Key, *, of_key: bool = False) -> Location:
        """Where the value at `key` stands, or the nearest one above it that does.

        `of_key` asks for the place of the key itself: an unknown option, say.
        """
        node = self.root
        for part in key:
            child = node.child(part)
            if child is None:
                return node.key_at or node.at
            node = child
        return node.key_at if of_key and node.key_at else node.at

    def fault(
        self, key: Key, message: str, *, of_key: bool = False, code: str = "wrong-value"
    ) -> Fault:
        """A fault at `key`; stages are named by their name, not their number."""
        return Fault(self.locate(key, of_key=of_key), self.show_key(key), message, code)

    def show_key(self, key: Key) -> str:
        """`key` as a person writes it: `stages.sft.method.learning_rate`, `eval[0]`."""
        if self.source is not None and key[:1] == ("stages",) and len(key) > 1:
            index = key[1]
            written = self.keys[index] if isinstance(index, int) else ()
            return self.source.show_key((*written, *key[2:]))
        shown = ""
        node: Node | None = self.root
        for place, part in enumerate(key):
            node = node.child(part) if node else None
            if isinstance(part, str):
                shown += f".{part}" if shown else part
                continue
            words = [p for p in key[:place] if isinstance(p, str)]
            name = name_of(node) if node and words[:1] == ["stages"] else None
            if name and all(word in NESTED for word in words):
                # However deep a stage stands, it is addressed by its name alone.
                shown = f"stages.{name}"
            else:
                shown += f"[{part}]"
        return shown


def load(
    path: Path | Mapping[str, Any], *, preset: str | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """Read a recipe: `extends`, then the preset, then `--set` overrides; the last wins.

    A mapping is a recipe as a program made it: as one that comes through a pipe, it lies nowhere,
    and its relative paths start from the working directory.

    Without `preset`, the preset `quick` is used where the recipe has one.

    Raises:
        RecipeError: text that is not YAML, with the place.
        UsageError: a missing file, an unknown preset or an override that cannot be read.
    """
    if isinstance(path, Mapping):
        root, path = _given(path), PIPE
    else:
        root = _load_file(path, seen=())
    presets = _pop(root, "presets")
    choices = presets.value if presets and isinstance(presets.value, dict) else {}
    if presets is not None and not isinstance(presets.value, dict):
        raise RecipeError([Fault(presets.at, "presets", "presets must be a mapping of names")])
    if preset is None and "quick" in choices:
        preset = "quick"
    if preset is not None:
        if preset not in choices:
            none = "this recipe has no presets; run it without --preset"
            raise UsageError(
                f"{display_path(path)} has no preset '{preset}'",
                hint=suggest(preset, list(choices)) if choices else none,
                code="unknown-name",
            )
        chosen = choices[preset]
        if not isinstance(chosen.value, dict):
            why = "a preset is a mapping, as a recipe is, of what it changes"
            raise RecipeError([Fault(chosen.at, f"presets.{preset}", why)])
        root = merge(root, chosen)
    for override in overrides:
        root = merge(root, _override(override, root))
    late = [node for key in ("extends", "presets") if (node := root.value.get(key))]
    if late:
        why = "'extends:' and 'presets:' are read from a recipe's file alone"
        raise RecipeError([Fault(node.key_at or node.at, "", why) for node in late])
    return Recipe(root, _own_place(path), preset)


def preset_names(path: Path) -> list[str]:
    """The presets that a recipe offers, its own and those of what it extends.

    Raises:
        RecipeError, UsageError: as `load`.
    """
    presets = _load_file(path, seen=()).value.get("presets")
    return list(presets.value) if presets and isinstance(presets.value, dict) else []


PIPE = Path("-")
"""A recipe that comes through standard input; its relative paths start from here."""
_PIPED: dict[object, str] = {}
"""What came through a pipe, which can be read once."""


def _is_pipe(path: Path) -> bool:
    return path == PIPE or path.is_fifo()


def _own_place(path: Path) -> Path:
    """Where a recipe lies: its relative paths start beside the file itself where `path` links to
    it, and from here where it comes through a pipe."""
    try:
        if _is_pipe(path):
            return PIPE
        return path.resolve(strict=path.is_symlink()) if path.is_symlink() else path
    except (OSError, RuntimeError, ValueError) as error:  # a link in a circle, or to nothing
        raise UsageError(
            f"cannot read {_short(path)}", why=str(error), code="no-such-file"
        ) from None


def _piped(path: Path) -> str:
    key: object = sys.stdin if path == PIPE else (path, path.stat().st_ino)
    if key not in _PIPED:
        _PIPED[key] = _through_stdin() if path == PIPE else _through_fifo(path)
    return _PIPED[key]


def _through_stdin() -> str:
    if sys.stdin is None:
        raise OSError("standard input is closed")
    return _bounded(sys.stdin, PIPE)


MAX_CHAIN = 20
"""Recipes of which each extends the next."""
PIPE_S = 5.0
"""Seconds that a named pipe is waited on for somebody to write to it."""


def _through_fifo(path: Path) -> str:
    """What comes through a named pipe, which may be one that nobody ever writes to."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), encoding="utf-8-sig") as stream:
        ready = select.poll()
        ready.register(stream, select.POLLIN)
        if not ready.poll(1000 * PIPE_S):
            raise OSError(f"it is a pipe, and nothing came through it for {PIPE_S:g} s")
        os.set_blocking(stream.fileno(), True)
        return _bounded(stream, path)


def _bounded(file: IO[str], path: Path) -> str:
    """The text of a file, which may be one without an end."""
    text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise UsageError(
            f"{display_path(path)} is no recipe: it has more than {MAX_BYTES / 1e6:.0f} MB",
            hint="data files are named under 'dataset:'",
            code="bad-yaml",
        )
    return text


def _refuse_other_kinds(path: Path) -> None:
    """Raise `UsageError` where `path` is no file to read: a device, say, which may have no end."""
    mode = path.stat().st_mode
    kinds = {"a directory": stat.S_ISDIR, "a socket": stat.S_ISSOCK}
    kinds |= {"a device": lambda m: stat.S_ISCHR(m) or stat.S_ISBLK(m)}
    if kind := next((name for name, test in kinds.items() if test(mode)), None):
        raise UsageError(
            f"{display_path(path)} is {kind}, not a recipe", hint=_nearby(path), code="bad-yaml"
        )


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except FileNotFoundError:
        why = "the current directory is not there any more"
        raise UsageError(
            f"cannot read {display_path(path)}", why=why, code="no-such-file"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"cannot read {_short(path)}", why=_why(error), code="no-such-file"
        ) from None


def _load_file(path: Path, seen: tuple[Path, ...]) -> Node:
    place = _own_place(path)
    resolved = _resolved(place)
    if resolved in seen:
        chain = " -> ".join(display_path(p) for p in (*seen, resolved))
        raise UsageError(f"recipes extend each other in a circle: {chain}", code="wrong-value")
    if len(seen) >= MAX_CHAIN:
        raise UsageError(
            f"recipes extend each other in a chain of more than {MAX_CHAIN}", code="wrong-value"
        )
    path = path if place == PIPE else place
    return _extended(_parsed(path), path, (*seen, resolved))


def _extended(root: Node, path: Path, seen: tuple[Path, ...]) -> Node:
    """A recipe with what it extends below it; `path` is where it stands."""
    base = _pop(root, "extends")
    if base is None:
        return root
    if not isinstance(base.value, str):
        raise RecipeError([Fault(base.at, "extends", "extends must be the path of a recipe")])
    try:
        parent = _own_place(path).parent / base.value
        there = parent.is_file()
        known = None if there else named.find(base.value)
    except PtlError as error:
        why = "; ".join(filter(None, (error.what, error.why, error.hint)))
        raise RecipeError([Fault(base.at, "extends", why, code=error.code)]) from None
    except (OSError, ValueError) as error:
        raise RecipeError([Fault(base.at, "extends", f"no path: {error}")]) from None
    if known:
        parent, there = known, True
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", base.value):
        why = (
            "extends takes a file, the name of a recipe that ships or of a package's "
            "(ptl-chess:kqk), or git+https://HOST/REPOSITORY@COMMIT#PATH"
        )
        raise RecipeError([Fault(base.at, "extends", why)])
    if not there and parent.exists():
        why = f"{display_path(parent)} is not a file"
        raise RecipeError([Fault(base.at, "extends", why)])
    if not there:
        raise RecipeError(
            [
                Fault(
                    base.at,
                    "extends",
                    f"there is no file {display_path(parent)}",
                    code="no-such-file",
                )
            ]
        )
    below = _load_file(parent, seen)
    return merge(named.anchored(below, _own_place(parent).parent) if known else below, root)


def _given(recipe: Mapping[str, Any]) -> Node:
    """A recipe that a program made, as nodes; what it extends starts from the working directory."""
    what = "the recipe"
    # Nobody sees the text that it is read from: its lines and columns would tell nothing.
    return _extended(placed(parse(dumped(recipe, what), what), Location(what)), PIPE, ())


_SUFFIXES = (".yaml", ".yml")
_KEYS = frozenset(
    (
        *("name", "description", "model", "engine", "seed", "lora", "renderer", "stages"),
        *("matrix", "extends", "presets", "expect", "limits", "resources", "on_end"),
        "trackers",
    )
)
"""What stands at the top of a recipe."""


def _parsed(path: Path) -> Node:
    """A file as nodes. Of one that is no recipe by its name, nor by what it holds, nothing is said
    but that: it may be a file of passwords that `extends:` leads to.

    Raises:
        RecipeError: it cannot be read, or is no recipe.
    """
    text, file = read_text(path), display_path(path)
    if path.suffix.lower() in _SUFFIXES or _is_pipe(path):
        return parse(text, file)
    try:
        root = parse(text, file)
    except RecipeError as error:
        first = error.faults[0].location
        where = Location(file, first.line or 1)
    else:
        other = [node.key_at or node.at for key, node in root.value.items() if key not in _KEYS]
        if root.value and not other:
            return root
        where = Location(file, min(other).line if other else 1)
    raise RecipeError(
        [
            Fault(
                where,
                "",
                "this is no recipe; a recipe is YAML, and its name ends in .yaml",
                code="bad-yaml",
            )
        ]
    )


def read_text(path: Path, what: str = "recipe") -> str:
    """The text of a recipe's file, or of what stands in for one. Raises `UsageError`."""
    try:
        if _is_pipe(path):
            return _piped(path)
        _refuse_other_kinds(path)
        with path.open(encoding="utf-8-sig") as file:
            return _bounded(file, path)
    except FileNotFoundError:
        raise UsageError(
            f"there is no {what} {display_path(path)}", hint=_nearby(path), code="no-such-file"
        ) from None
    except UnicodeDecodeError as error:
        why = f"the byte at position {error.start} is none of UTF-8"
        raise UsageError(
            f"{display_path(path)} is not UTF-8 text", why=why, code="bad-yaml"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read {_short(path)}", why=_why(error), code="no-such-file"
        ) from None


def _short(path: Path) -> str:
    shown = display_path(path)
    return shown if len(shown) <= 100 else f"{shown[:100]}…"


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _nearby(path: Path) -> str:
    """What to do where no recipe is at `path`: the nearest there, or one that ships."""
    if path.suffix in ("", *_SUFFIXES) and (known := shipped.lookup(path.name)):
        return f"'ptl init --recipe {known.stem}' writes the recipe of that name, with its data"
    if not path.exists() and not path.parent.is_dir():
        return "'ptl init' writes a recipe to start from"
    folder = path if path.is_dir() else path.parent
    found = sorted(folder.glob("*.y*ml")) if folder.is_dir() else []
    there = [p.name for p in found if _is_recipe(p)]
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.5)
    if near:
        return f"did you mean {display_path(folder / near[0])}?"
    if there:
        return f"recipes in {display_path(folder)}: {', '.join(there)}"
    return "'ptl init' writes a recipe to start from"


def _is_recipe(path: Path) -> bool:
    """Whether a YAML file is a recipe by its first lines: there are many other kinds."""
    if not path.is_file():  # a pipe would be waited on
        return False
    try:
        with path.open(encoding="utf-8-sig") as file:
            return re.search(r"(?m)^(stages|extends):", file.read(65536)) is not None
    except (OSError, ValueError):
        return False


def _pop(root: Node, key: str) -> Node | None:
    found = root.value.pop(key, None)
    assert found is None or isinstance(found, Node)
    return found


def _override(text: str, root: Node) -> Node:
    """`a.b.c=value` as a tree of one path; stages are addressed by name."""
    path, separator, value = text.partition("=")
    if not separator or not path.strip():
        raise UsageError(
            f"--set {said(text)!r} cannot be read",
            hint="write --set stages.sft.method.learning_rate=1e-4",
        )
    place = Location(f"--set {said(text)}")
    try:
        node = parse_value(value, place)
    except (yaml.YAMLError, RecipeError, RecursionError) as error:
        raise UsageError(f"--set {said(text)!r}: the value is not YAML", why=str(error)) from None
    for part in reversed(path.strip().split(".")):
        node = Node({part: replace(node, key_at=place)}, place)
    return node


def said(override: str) -> str:
    """An override as messages have it: a key's value is not repeated."""
    path, equals, _ = override.partition("=")
    return f"{path}{equals}***" if is_key(path.strip().split(".")[-1]) else override


def environment_names(value: str) -> list[str]:
    """The names in `${env:NAME}` of a string."""
    return _ENV.findall(value)


def expand_environment(value: Any, environ: Mapping[str, str] = os.environ) -> Any:
    """`value` with `${env:NAME}` replaced; what comes back is never logged or stored.

    Raises:
        UsageError: a variable that is not set.
    """
    if isinstance(value, dict):
        return {key: expand_environment(inner, environ) for key, inner in value.items()}
    if isinstance(value, list):
        return [expand_environment(inner, environ) for inner in value]
    if not isinstance(value, str):
        return copy.copy(value)

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in environ:
            raise UsageError(
                f"the environment variable {name} is not set",
                hint=f"export {name}=...",
                code="not-set",
            )
        return environ[name]

    return _ENV.sub(look_up, value)
