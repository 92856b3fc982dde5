"""Which plugins there are: hooks, discovery through entry points, look-up by kind and name."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, NamedTuple, NoReturn

import pluggy

from posttrain_recipes import content
from posttrain_recipes.errors import MissingExtraError, PtlError, UsageError
from posttrain_recipes.plugin import (
    API_VERSION,
    OLDEST_API_VERSION,
    Dataset,
    Engine,
    Eval,
    Method,
    Plugin,
    PluginConfig,
    Reward,
    Tracker,
)
from posttrain_recipes.shown import plain

GROUP = "posttrain_recipes"
"""The entry-point group and the name of the pluggy project."""

OWN = "posttrain-recipes"
"""The distribution of this package."""

BUILTINS = ("datasets", "methods", "rewards", "evals", "engines")
"""Modules of this package that implement the hooks, as any plugin would. Those that have many
classes return where each is, and it is imported when it is first asked for. No tracker is among
them: MLflow, which hears of every run, is no plugin."""

KINDS: dict[str, type[Plugin]] = {
    "dataset": Dataset,
    "method": Method,
    "reward": Reward,
    "eval": Eval,
    "engine": Engine,
    "tracker": Tracker,
}

hookspec = pluggy.HookspecMarker(GROUP)


class Hooks:
    """What a plugin module may implement. Each hook returns classes; all of them are optional."""

    @hookspec
    def ptl_datasets(self) -> Sequence[type[Dataset]]:
        """Datasets that recipes name with `dataset: {use: ...}`."""
        return ()

    @hookspec
    def ptl_methods(self) -> Sequence[type[Method]]:
        """Methods that recipes name with `method: {use: ...}`."""
        return ()

    @hookspec
    def ptl_rewards(self) -> Sequence[type[Reward]]:
        """Rewards that recipes name with `reward: {use: ...}`."""
        return ()

    @hookspec
    def ptl_evals(self) -> Sequence[type[Eval]]:
        """Evals that recipes name with `eval: [{use: ...}]`."""
        return ()

    @hookspec
    def ptl_engines(self) -> Sequence[type[Engine]]:
        """Engines that recipes name with `engine: NAME` or `engine: {use: NAME, ...}`."""
        return ()

    @hookspec
    def ptl_trackers(self) -> Sequence[type[Tracker]]:
        """Trackers that recipes name with `trackers: [NAME, {use: NAME, ...}]`."""
        return ()


@dataclass(frozen=True)
class Entry:
    """One plugin class and where it came from."""

    kind: str
    cls: type[Plugin]
    distribution: str
    version: str
    api_version: int | None = None
    """The version of the plugin API that its module says it is written for."""

    @property
    def name(self) -> str:
        """What a recipe says after `use:`."""
        return self.cls.name

    @property
    def config(self) -> type[PluginConfig]:
        """The class of its options."""
        return self.cls.Config

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.cls.__doc__ or "").strip().split("\n")[0]

    @property
    def missing(self) -> list[str]:
        """Modules it requires that are not installed."""
        return [module for module in self.cls.requires if not _installed(module)]

    @cached_property
    def schema(self) -> Mapping[str, Any]:
        """The JSON Schema of its options; models nested in them are `#/$defs/KIND.NAME.MODEL`.

        Made once: it takes a millisecond, and there are dozens of plugins.
        """
        template = f"#/$defs/{self.kind}.{self.name}.{{model}}"
        return self.config.model_json_schema(ref_template=template)

    @property
    def origin(self) -> Mapping[str, Any]:
        """What tells its code from another's of the same name: distribution and version; of what is
        edited in place, or was installed from a directory of this machine, also its content."""
        code = content.plugin_code(self.cls.__module__)
        found = {"from": f"{self.distribution} {self.version}"}
        return {**found, "code": code} if code else found

    def require(self) -> None:
        """Raise `MissingExtraError`, with the command to run, where its packages are missing."""
        if self.missing:
            raise MissingExtraError(
                f"{self.kind} '{self.name}' needs {', '.join(self.missing)}, not installed here",
                hint=f"pip install '{self.cls.extra or ' '.join(self.missing)}'",
            )


@dataclass(frozen=True)
class Broken:
    """An entry point that could not be loaded; the rest goes on without it."""

    name: str
    distribution: str
    reason: str


class Shelf(MutableMapping[str, Entry]):
    """Plugins of one kind by name. What this package has of them is imported when it is taken."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry | Callable[[], Entry]] = {}

    def put(self, name: str, entry: Entry | Callable[[], Entry]) -> None:
        """Add a plugin, or what makes it when it is first taken."""
        self._entries[name] = entry

    def __getitem__(self, name: str) -> Entry:
        found = self._entries[name]
        if not isinstance(found, Entry):
            found = self._entries[name] = found()
        return found

    def __setitem__(self, name: str, entry: Entry) -> None:
        self.put(name, entry)

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@dataclass
class Registry:
    """All plugins, by kind and name."""

    entries: dict[str, Shelf] = field(default_factory=lambda: {kind: Shelf() for kind in KINDS})
    broken: list[Broken] = field(default_factory=list)

    def __iter__(self) -> Iterator[Entry]:
        for by_name in self.entries.values():
            yield from by_name.values()

    def names(self, kind: str) -> list[str]:
        """The names of one kind, sorted."""
        return sorted(self.entries[kind])

    def find(self, kind: str, name: str) -> Entry | None:
        """The plugin, or None."""
        return self.entries[kind].get(name)

    def get(self, kind: str, name: str) -> Entry:
        """The plugin; raises `UsageError` with the nearest name."""
        entry = self.find(kind, name)
        if entry is None:
            raise UsageError(
                f"unknown {kind} '{name}'",
                hint=suggest(name, self.names(kind)),
                code="unknown-name",
            )
        return entry

    def engine(self, spec: Any) -> Engine:
        """The engine that a recipe names. Raises PtlError where it is not installed any more."""
        options = {"use": spec} if isinstance(spec, str) else dict(spec)
        name = options.pop("use")
        entry = self.find("engine", name)
        if entry is None:
            raise PtlError(f"there is no engine '{name}' here any more", code="no-such-checkpoint")
        made = entry.cls(entry.config.model_validate(options))
        assert isinstance(made, Engine)
        return made

    def search(self, name: str) -> list[Entry]:
        """Every plugin with that name, of whatever kind."""
        return [by_name[name] for by_name in self.entries.values() if name in by_name]


def nearest(name: str, options: Collection[str], cutoff: float = 0.6) -> str | None:
    """What was most likely meant, whatever its case, and with `-` for `_`; None where nothing is
    near. `cutoff`: 0 to 1, 1 is the same."""
    plain = {_plain(option): option for option in sorted(options, reverse=True)}
    near = difflib.get_close_matches(_plain(name), sorted(plain), n=1, cutoff=cutoff)
    return plain[near[0]] if near else None


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def suggest(name: str, options: Sequence[str]) -> str:
    """`did you mean 'x'?`, or the list of what there is."""
    near = nearest(name, options)
    if near:
        return f"did you mean '{near}'?"
    return f"there is: {', '.join(options)}" if options else "none is installed"


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, PtlError) else f"{type(error).__name__}: {error}"


class _Origin(NamedTuple):
    distribution: str
    version: str
    api_version: int | None


def _api_version(module: Any) -> int | None:
    """What a plugin module is written for. Raises `PtlError` where that is not ours."""
    stated = getattr(module, "PTL_API", None)
    if stated is None or OLDEST_API_VERSION <= stated <= API_VERSION:
        return stated
    advice = (
        "upgrade posttrain-recipes" if stated > API_VERSION else "look for a newer release of it"
    )
    raise PtlError(
        f"it is written for version {stated} of the plugin API, and this is {API_VERSION}: "
        f"{advice}",
        code="wrong-version",
    )


IMPORT_S = 30.0
"""Seconds that a plugin may take to be imported."""


@contextmanager
def _in_time() -> Iterator[None]:
    """Give up what takes too long, so that a plugin that hangs is told by its name.

    Only the main thread can be interrupted, and only where nobody else uses the timer.
    """

    def late(*_: object) -> NoReturn:
        raise TimeoutError(f"it took more than {IMPORT_S:g} s to import")

    if (
        threading.current_thread() is not threading.main_thread()
        or not hasattr(signal, "setitimer")
        or signal.getitimer(signal.ITIMER_REAL)[0]
    ):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, IMPORT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


HEARD = 2000
"""Characters that are shown of what a plugin writes when it is imported."""


@contextmanager
def _heard(distribution: str) -> Iterator[None]:
    """What a stranger's plugin writes as it is imported, past Python's streams too, is caught, and
    told by its name, without control characters: it is no part of a command's answer (`--json`),
    and commands no terminal."""
    if distribution == OWN:
        yield
        return
    import tempfile

    with tempfile.TemporaryFile() as heard:
        try:
            with ExitStack() as back:
                _flush()
                for number in (1, 2):
                    with suppress(OSError):  # it is closed
                        kept = os.dup(number)
                        back.callback(os.close, kept)
                        back.callback(os.dup2, kept, number)
                        os.dup2(heard.fileno(), number)
                back.callback(_flush)
                with redirect_stdout(sys.stderr):
                    yield
        finally:
            heard.seek(0)
            if text := heard.read().decode(errors="replace").strip():
                more = f"… ({len(text):,} characters)" if len(text) > HEARD else ""
                shown = text[:HEARD].replace("\n", "\n  ") + more
                told = f"plugin {distribution} wrote as it was imported:\n  {shown}"
                print(plain(told), file=sys.stderr)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, gone, or none at all
            stream.flush()


@cache
def load() -> Registry:
    """The plugins of this environment, built-ins first. Cached for the process.

    Raises:
        PtlError: two plugins of one kind share a name; every provider is listed.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    registry = Registry()
    origins: dict[Any, _Origin] = {}
    version = _version(OWN)
    for module_name in BUILTINS:
        module = importlib.import_module(f"posttrain_recipes.{module_name}")
        manager.register(module, name=f"posttrain_recipes.{module_name}")
        origins[module] = _Origin(OWN, version, API_VERSION)
    for point in importlib.metadata.entry_points(group=GROUP):
        distribution = point.dist.name if point.dist else "unknown"
        plugin_name = f"{distribution}:{point.name}"
        try:
            with _heard(distribution), _in_time():
                module = point.load()
            stated = _api_version(module)
            manager.register(module, name=plugin_name)
            manager.check_pending()
            released = point.dist.version if point.dist else "0"
            origins[module] = _Origin(distribution, released, stated)
        except (Exception, SystemExit) as error:  # a stranger's module may fail in any way
            if manager.has_plugin(plugin_name):
                manager.unregister(name=plugin_name)
            registry.broken.append(Broken(point.name, distribution, _reason(error)))
            continue
    return _collect(manager, origins, registry)


def _collect(
    manager: pluggy.PluginManager, origins: dict[Any, _Origin], registry: Registry
) -> Registry:
    found: dict[tuple[str, str], list[tuple[_Origin, Entry | Callable[[], Entry]]]] = {}
    for kind in KINDS:
        for impl in getattr(manager.hook, f"ptl_{kind}s").get_hookimpls():
            origin = origins[impl.plugin]
            try:
                with _heard(origin.distribution), _in_time():
                    given = _given(kind, impl.function(), origin)
            except (Exception, SystemExit) as error:  # one bad plugin must not stop the program
                registry.broken.append(Broken(f"ptl_{kind}s", origin.distribution, _reason(error)))
                continue
            for name, entry in given:
                found.setdefault((kind, name), []).append((origin, entry))
    clashes = []
    for (kind, name), candidates in found.items():
        if len(candidates) > 1:
            providers = ", ".join(f"{o.distribution} {o.version}" for o, _ in candidates)
            clashes.append(f"{kind} '{name}' is provided by {providers}")
        registry.entries[kind].put(name, candidates[0][1])
    if clashes:
        raise PtlError(
            "two plugins share a name: " + "; ".join(clashes),
            hint="uninstall all but one of them",
            code="bad-plugin",
        )
    return registry


def _given(
    kind: str, classes: Any, origin: _Origin
) -> list[tuple[str, Entry | Callable[[], Entry]]]:
    """What a hook returned, by name: classes, or in this package where they are.

    A stranger's have to be classes: one that cannot be imported is told of and left out at once.
    """
    if isinstance(classes, Mapping) and origin.distribution == OWN:
        return [(name, partial(_imported, kind, where, origin)) for name, where in classes.items()]
    entries = [_entry(kind, cls, origin) for cls in classes]
    return [(entry.name, entry) for entry in entries]


def _imported(kind: str, where: str, origin: _Origin) -> Entry:
    module, _, name = where.partition(":")
    return _entry(kind, getattr(importlib.import_module(module), name), origin)


def _entry(kind: str, cls: Any, origin: _Origin) -> Entry:
    base = KINDS[kind]
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise TypeError(f"ptl_{kind}s returned {cls!r}, which is not a {base.__name__} class")
    if not isinstance(getattr(cls, "name", None), str) or not cls.name.isidentifier():
        raise TypeError(f"{cls.__name__}.name must be an identifier such as 'my_{kind}'")
    if not issubclass(cls.Config, PluginConfig):
        raise TypeError(f"{cls.__name__}.Config must be a subclass of PluginConfig")
    if lacking := sorted(cls.__abstractmethods__):
        raise TypeError(f"{cls.__name__} lacks {', '.join(lacking)}")
    if issubclass(cls, Method | Eval) and getattr(cls, "takes", None) is None:
        raise TypeError(f"{cls.__name__}.takes must name the record types that it can use")
    entry = Entry(kind, cls, *origin)
    entry.schema  # noqa: B018  raises for options that no recipe could hold
    return entry


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # `a.b` where there is no `a`
        return False


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "0"
