"""The engines of a recipe: the embedded one, hosted Tinker, or a Tinker-compatible server."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from posttrain_recipes import connecting, dialects, machine, probe, sdk
from posttrain_recipes.errors import PtlError, not_installed
from posttrain_recipes.options import Address
from posttrain_recipes.plugin import (
    Affects,
    Connection,
    Engine,
    Offer,
    OpenAIRoutes,
    PluginConfig,
    Usage,
    hookimpl,
)
from posttrain_recipes.shape import Shape
from posttrain_recipes.shown import redact
from posttrain_recipes.waiting import explain, in_thread, no_free_slot
from posttrain_recipes.watching import Pauses, Watch

if TYPE_CHECKING:
    import tinker

    from posttrain_recipes.engine.launch import EngineProcess

GONE = "is gone"
OPENAI = "/oai/api/v1"
"""Where Tinker has OpenAI's routes, below its address
(tinker-docs.thinkingmachines.ai/inference/openai/overview)."""
CONNECT_SECONDS = 30.0
"""How long an engine may take to say what it can do."""
PROBE_S = 120.0
"""How long a server may take to show all that a recipe needs."""
LARGE = 50_000_000
"""Parameters of a model that is worth another precision: a smaller one is fast in float32."""
PAYS = 1.5
"""bfloat16 is worth its rounding where products are so many times as fast; a whole step gains less,
as what is not a product stays in float32."""


class Local(Engine):
    """The embedded engine: trains on this machine, starts by itself and ends with the run."""

    name = "local"
    loads = True
    exact = True
    takes_adapters = True

    class Config(PluginConfig):
        """Options of the embedded engine."""

        dtype: Literal["auto", "float32", "bfloat16"] = "auto"
        """The numbers that base models are held and multiplied in; adapters, their optimizer and
        the losses are float32 whatever it is. `auto` takes bfloat16 on a GPU, and on a CPU for a
        model of 50 million parameters or more that this machine multiplies at least 1.5 times as
        fast in it, which is measured once; else float32."""
        evals_beside: Annotated[int, Affects.NOTHING] = Field(default=0, ge=0)
        """Stages whose evals may be under way while the next stages train. 0: a stage is evaluated
        before the next one begins, as both would take the same cores."""

    config: Config
    dtype: str = ""
    """What `settle` decided; empty for what the engine takes by itself."""

    @property
    def identity(self) -> str:
        """Its checkpoints lie beside the run, so there is one per run directory."""
        return "local"

    def lost(self, uri: str, data_dir: Path) -> str | None:
        """Whether its folder is there, and its files, read to the end, are what was saved."""
        from posttrain_recipes.engine.storage.checkpoints import CheckpointStore, parse_path
        from posttrain_recipes.engine.wire import RequestError

        if not data_dir.is_dir():
            return GONE
        kept = CheckpointStore(data_dir)
        try:
            kept.verify(kept.find(parse_path(uri)))
        except RequestError as error:
            return GONE if error.status == 404 else f"cannot be used: {error}"
        return None

    def stored(self, data_dir: Path) -> Mapping[str, int]:
        """The checkpoints in its directory."""
        from posttrain_recipes.engine.storage.checkpoints import CheckpointStore

        found = CheckpointStore(data_dir).checkpoints() if data_dir.is_dir() else []
        return {record.path: size for record, size in found}

    def discard(self, uri: str, data_dir: Path) -> bool:
        """Delete its folder. Raises PtlError where the system does not let us."""
        from posttrain_recipes.engine.storage.checkpoints import CheckpointStore, parse_path
        from posttrain_recipes.engine.wire import RequestError

        try:
            CheckpointStore(data_dir).delete(parse_path(uri))
        except RequestError as error:
            if error.status != 404:
                raise PtlError(str(error), code="bad-key") from None
        return True

    def files(self, uri: str, data_dir: Path) -> Sequence[Path]:
        """Its folder, and the description of the training run that it is of. Its name holds that of
        the session that saved it, which no other engine has, and a hash of every file lies in it:
        so one that was copied here is as good as one that was trained here."""
        from posttrain_recipes.engine.storage.checkpoints import CheckpointStore, parse_path

        return CheckpointStore(data_dir).places(parse_path(uri))

    def settle(self, folder: Path | None, measure: bool) -> str | None:
        """Take what `auto` comes to for the recipe's model."""
        why = ""
        self.dtype = self.config.dtype
        if self.dtype == "auto":
            self.dtype, why = self._by_model(folder, measure)
        self.precision = "" if self.dtype == "float32" else self.dtype
        return f"engine: computes in {self.dtype}: {why}" if why else None

    @property
    def computes(self) -> str:
        """The type that it took."""
        return "" if self.dtype == "auto" else self.dtype

    def settled(self) -> Mapping[str, str]:
        """The type that it took."""
        return {"dtype": self.computes} if self.computes else {}

    def _by_model(self, folder: Path | None, measure: bool) -> tuple[str, str]:
        if machine.GPU.exists():
            return "bfloat16", "there is a GPU"
        shape = None if folder is None else Shape.read(folder)
        if folder is None or shape is None or shape.parameters < LARGE:
            return "float32", ""
        from posttrain_recipes.engine import calibrate

        gain = calibrate.gain(folder) if measure else None
        if gain is None or gain < PAYS:
            told = "was not measured" if gain is None else f"is multiplied {gain:.1f} times as fast"
            return "float32", f"bfloat16 {told} on this CPU"
        return "bfloat16", f"this CPU multiplies it {gain:.1f} times as fast as float32"

    def seconds(self, folder: Path, usage: Usage) -> float | None:
        """By how fast this machine multiplies what the model does."""
        from posttrain_recipes.engine import calibrate

        speed = calibrate.speed(folder, self.precision or "float32")
        if speed is None:
            return None
        return sum(speed[name] * getattr(usage, name) for name in calibrate.OVER)

    @contextmanager
    def connect(
        self, models: Mapping[str, str], data_dir: Path, log_path: Path
    ) -> Iterator[Connection]:
        """Start the engine on a free loopback port and stop it at the end."""
        from posttrain_recipes.adapters import AdapterStore

        sdk.check()
        with _embedded(models, data_dir, log_path, self.dtype) as engine:
            service, rest = connecting.clients(engine.base_url, engine.api_key)
            with connecting.session(service, lambda: engine.is_alive):
                yield Connection(
                    service,
                    rest,
                    lambda: engine.is_alive,
                    lambda: engine.killed,
                    log_path=engine.log_path,
                    log_start=engine.log_start,
                    missing=_embedded_lacks,
                    adapters=AdapterStore(data_dir),
                    openai=lambda: OpenAIRoutes(engine.base_url + OPENAI, engine.api_key),
                )


@dataclass
class _Kept:
    """Engines that outlive the runs that use them, by what they serve and where."""

    ends: ExitStack
    engines: dict[object, EngineProcess] = field(default_factory=dict)


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def kept_running() -> Iterator[None]:
    """Runs within share an embedded engine where models and directory are the same.

    It takes seconds to start, most of them to import torch. It ends with the context.
    """
    with ExitStack() as ends:
        token = _kept.set(_Kept(ends))
        try:
            yield
        finally:
            _kept.reset(token)


@contextmanager
def _embedded(
    models: Mapping[str, str], data_dir: Path, log_path: Path, dtype: str = ""
) -> Iterator[EngineProcess]:
    # Its own process would tell of it late, and in the words of whatever imports it first.
    if find_spec("torch") is None:
        raise not_installed("torch")
    from posttrain_recipes.engine import launch

    kept = _kept.get()
    if kept is None:
        with launch.start(models, data_dir, log_path, dtype=dtype) as engine:
            yield engine
        return
    served = (tuple(sorted(models.items())), data_dir, dtype)
    there = kept.engines.get(served)
    if there is None or not there.is_alive:
        there = kept.ends.enter_context(launch.start(models, data_dir, log_path, dtype=dtype))
        kept.engines[served] = there
    yield there


class Hosted(Engine):
    """Hosted Tinker (thinkingmachines): remote GPUs, billed by the token."""

    name = "tinker"
    billed = True

    class Config(PluginConfig):
        """Options of the hosted service."""

        api_key: Annotated[str, Affects.NOTHING] = Field(
            default="${env:TINKER_API_KEY}", repr=False
        )
        """The key; write it as ${env:NAME}, never in plain text."""
        base_url: Address | None = None
        """Another address of the service; by default the SDK's own."""
        evals_beside: Annotated[int, Affects.NOTHING] = Field(default=2, ge=0)
        """Stages whose evals may be under way while the next stages train. 0: a stage is evaluated
        before the next one begins."""

    config: Config

    @property
    def identity(self) -> str:
        """The service's address."""
        return self.config.base_url or "tinker"

    @contextmanager
    def connect(
        self, models: Mapping[str, str], data_dir: Path, log_path: Path
    ) -> Iterator[Connection]:
        """Log in and see that the models are served."""
        key = connecting.key_of(self.config.api_key)
        routes = OpenAIRoutes(sdk.address(self.config.base_url).rstrip("/") + OPENAI, key)
        with _remote(self.config.base_url, key, models) as connection:
            yield replace(connection, openai=lambda: routes)


class Server(Engine):
    """Any server that speaks Tinker's protocol: `ptl serve` elsewhere, SkyRL, TuFT, ..."""

    name = "server"

    class Config(PluginConfig):
        """Options of a compatible server."""

        base_url: Address
        """Its address, as http://host:port."""
        api_key: Annotated[str, Affects.NOTHING] = Field(
            default="${env:TINKER_API_KEY}", repr=False
        )
        """The key that it asks for; write it as ${env:NAME}, never in plain text."""
        dialect: Literal["auto", "current", "0.25"] = "auto"
        """The form of the protocol that it speaks, by the SDK that it was written for. `0.25` puts
        a translator between, in this process; `auto` tells it by answers that change nothing."""
        startup_timeout: Annotated[float, Affects.NOTHING] = Field(default=300.0, gt=0)
        """Seconds that the first training check may take: a server may load or compile a model
        for it."""
        evals_beside: Annotated[int, Affects.NOTHING] = Field(default=0, ge=0)
        """Stages whose evals may be under way while the next stages train. 0: a stage is evaluated
        before the next one begins, as most servers would do both in turn."""

    config: Config
    spoken: str | None = None
    """What `auto` came to; None where the server was not asked, or did not answer."""

    @property
    def identity(self) -> str:
        """The server's address, and its dialect where that is not the current one."""
        address, dialect = self.config.base_url, self.dialect
        return address if dialect in (None, "current") else f"{address} (dialect {dialect})"

    @property
    def dialect(self) -> str | None:
        """What it speaks; None as long as that is not known."""
        return self.spoken if self.config.dialect == "auto" else self.config.dialect

    def settle(self, folder: Path | None, measure: bool) -> str | None:
        """Ask the server what it speaks, where the recipe leaves that open and there is time."""
        if self.config.dialect == "auto" and measure:
            with contextlib.suppress(PtlError):  # told when it is connected to
                self.spoken = dialects.told(
                    self.config.base_url, connecting.key_of(self.config.api_key)
                )
        if self.dialect != "0.25":
            return None
        self.open_options = dialects.OPEN
        return f"engine: {self.config.base_url} speaks the dialect 0.25, which is translated"

    def settled(self) -> Mapping[str, str]:
        """The dialect, where it was asked for."""
        return {"dialect": self.spoken} if self.spoken else {}

    @contextmanager
    def connect(
        self, models: Mapping[str, str], data_dir: Path, log_path: Path
    ) -> Iterator[Connection]:
        """Log in and see that the models are served."""
        address, key = self.config.base_url, connecting.key_of(self.config.api_key)
        dialect = self.dialect or dialects.told(address, key) or "current"
        with ExitStack() as ends:
            door = None
            if dialect == "0.25":
                sdk.check()
                door = ends.enter_context(dialects.translated(address, key))
            connection = ends.enter_context(_remote(address, key, models, door))
            lacks = dialects.LACKS if door else {}

            def missing(names: Collection[str]) -> dict[str, str]:
                startup_s = self.config.startup_timeout
                return _probed(connection, models, names, lacks, startup_s, self.rank)

            routes = OpenAIRoutes(address.rstrip("/") + OPENAI, key)
            yield replace(connection, missing=missing, openai=lambda: connecting.answering(routes))


@hookimpl
def ptl_engines() -> Sequence[type[Engine]]:
    """The engines of this package."""
    return [Local, Hosted, Server]


def _embedded_lacks(names: Collection[str]) -> dict[str, str]:
    return {
        name: probe.EMBEDDED_LACKS[name]
        for name in probe.with_requirements(names)
        if name in probe.EMBEDDED_LACKS
    }


def _probed(
    connection: Connection,
    models: Mapping[str, str],
    names: Collection[str],
    lacks: Mapping[str, str],
    startup_s: float,
    rank: int,
) -> dict[str, str]:
    """What a server turns out not to do, of these and what they stand on, with one of its models.

    A server that is made for another version of the SDK may hang a client rather than fail it.

    Args:
        lacks: what it is known not to do, with why: it is not tried.
        startup_s: seconds for the first training check, beyond those of the others.
        rank: of the adapters that it is tried with.

    Raises:
        PtlError: the server has no free slot for an adapter.
    """
    known = {name: lacks[name] for name in probe.with_requirements(names) if name in lacks}
    if known:
        return {name: why for name, why in known.items() if name in names} or known
    found = list(
        probe.probe(
            connection.service,
            connection.rest,
            next(iter(models)),
            names,
            check_s=PROBE_S / 2,
            within_s=PROBE_S,
            startup_s=startup_s,
            rank=rank,
        )
    )
    if full := next((one.detail for one in found if one.full), None):
        raise no_free_slot(full)
    missing = {one.name: _root(one, found) for one in found if one.verdict != "yes"}
    return {name: why for name, why in missing.items() if name in names} or missing


def _root(one: probe.Outcome, found: Sequence[probe.Outcome]) -> str:
    """Why a check did not pass; of one that was not tried, what it stands on and why that did
    not."""
    below = next((other for other in found if one.detail == f"needs {other.name}"), None)
    return one.detail if below is None else f"{one.detail}: {_root(below, found)}"


@contextmanager
def _remote(
    base_url: str | None,
    api_key: str,
    models: Mapping[str, str],
    door: dialects.Loopback | None = None,
) -> Iterator[Connection]:
    """Clients of a server, by way of a translator where there is one."""
    sdk.check()
    connecting.check_address(base_url)
    key, where = connecting.key_of(api_key), base_url or "hosted Tinker"
    to = (door.base_url, door.api_key) if door else (base_url, key)

    def ask() -> tuple[tinker.ServiceClient, tinker.RestClient, dict[str, Offer]]:
        service, rest = connecting.clients(*to)
        served = rest.get_server_capabilities().result().supported_models
        return service, rest, connecting.offers(served)

    try:
        # The SDK tries for minutes where nobody answers.
        service, rest, served = in_thread(ask).result(timeout=CONNECT_SECONDS)
    except TimeoutError:
        raise PtlError(
            f"{where} did not answer within {CONNECT_SECONDS:.0f} s",
            hint="check the network and the address; 'engine: local' needs neither",
            code="engine-unreachable",
        ) from None
    except Exception as error:
        told = explain(error)
        what = told.what if isinstance(told, PtlError) else "cannot be reached"
        why = (told.why if isinstance(told, PtlError) else str(error)) or ""
        why = redact(why.replace(key, "***"))
        hint = "check its address and key"
        refused = isinstance(told, PtlError) and told.code == "bad-key"
        raise PtlError(
            f"{where}: {what}",
            why=why or None,
            hint=hint,
            code="bad-key" if refused else "engine-unreachable",
        ) from None
    missing = [name for name in models if served and name not in served]
    if missing:
        raise PtlError(
            f"{where} does not serve the model {', '.join(missing)}",
            why=f"it serves {', '.join(served)}",
            hint="change 'model:', or use 'engine: local'",
            code="engine-cannot",
        )
    address = sdk.address(base_url)
    with (
        Pauses(address) as pauses,
        Watch(address, key) as watch,
        connecting.session(service, lambda: watch.alive),
    ):
        yield Connection(
            service,
            rest,
            lambda: watch.alive and pauses.alive,
            lambda: watch.trouble or pauses.trouble,
            offers=served,
        )
