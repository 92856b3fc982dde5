"""Ray: connecting to a cluster, what is sent to its nodes, and stages as tasks of it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pickle
import signal
import socket
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes.errors import MissingExtraError, PtlError, UsageError
from posttrain_recipes.planning.plans import Plan, Resources
from posttrain_recipes.registry import GROUP
from posttrain_recipes.running.cluster import node
from posttrain_recipes.running.cluster.node import Job, StageEnd
from posttrain_recipes.running.cluster.relay import Event, SupersededError
from posttrain_recipes.version import __version__
from posttrain_recipes.waiting import TICK, in_thread

if TYPE_CHECKING:
    pass

ANSWER_S = 10.0
"""How long a cluster may take to accept a connection."""
RETRIES = 3
"""How often Ray runs a stage again whose node or process died."""
LEFT_OUT = (".git", ".venv", "venv", ".ptl", "__pycache__", "node_modules", "mlruns")
"""What of a recipe's folder is not sent to nodes."""
SHARED = "PTL_SHARED"
"""The environment variable that says what `--shared` does."""


@dataclass(frozen=True)
class Cluster:
    """Where stages run: what `--jobs ray[:ADDRESS]` and `--shared URL` say."""

    address: str | None = None
    """None: what `RAY_ADDRESS` says, else the cluster that runs on this machine, else a new one."""
    shared: str | None = None
    """None: what `PTL_SHARED` says, else a directory of the home."""


def parallel(jobs: int | str, shared: str | None = None) -> int | Cluster:
    """`--jobs` as a number of stages or a cluster.

    Raises:
        UsageError: it is neither.
    """
    text = str(jobs)
    if text == "ray" or text.startswith("ray:"):
        return Cluster(text[4:] or None, _absolute(shared or os.environ.get(SHARED)))
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise UsageError(
            f"--jobs is '{text}'", hint="a number of stages, as 4, or 'ray', or 'ray:HOST:PORT'"
        )
    if shared:
        raise UsageError(
            "--shared is for the nodes of a cluster", hint="add --jobs ray, or leave it out"
        )
    return int(text)


def _absolute(url: str | None) -> str | None:
    """A URL, or a directory by its path on every node, where relative ones start elsewhere."""
    if url and "://" not in url:
        return os.path.abspath(os.path.expanduser(url))
    return url or None


# --- Ray -----------------------------------------------------------------------------------------


def ray_get(ref: Any, timeout: float | None = None) -> Any:
    """What Ray has of a reference. Raises as `ray.get`."""
    import ray

    return ray.get(ref, timeout=timeout)


def answer(ref: Any) -> Any:
    """What Ray has of a reference, for a task: one whose main thread waits in `ray.get` gives its
    CPUs back meanwhile, and Ray would begin with another stage on them. Raises as `ray.get`."""
    return in_thread(lambda: ray_get(ref)).result()


class Mailbox:
    """An actor beside the driver: nodes put events there, and learn whether to stop.

    Only the last that began with a stage is listened to: a node that was taken for dead, and is
    not, is told to stop.
    """

    def __init__(self) -> None:
        self._tries: dict[str, int] = {}
        self._waiting: dict[str, list[bytes]] = defaultdict(list)
        self._stops: dict[str, str] = {}

    def begin(self, stage: str) -> int:
        """The number of this try of a stage."""
        self._tries[stage] = self._tries.get(stage, 0) + 1
        return self._tries[stage]

    def put(self, stage: str, number: int, batch: Sequence[bytes]) -> tuple[bool, str | None]:
        """Whether events were taken, and why the stage should stop."""
        if number != self._tries.get(stage):
            return False, None
        self._waiting[stage] += batch
        return True, self._stops.get(stage)

    def take(self, stage: str) -> list[bytes]:
        """What has come of a stage since the last time."""
        return self._waiting.pop(stage, [])

    def stop(self, stage: str, why: str) -> None:
        """Have the node of a stage told to stop."""
        self._stops[stage] = why


@dataclass
class _ToMailbox:
    """A `Link` through the mailbox."""

    mailbox: Any
    stage: str
    number: int

    def put(self, batch: Sequence[bytes]) -> str | None:
        taken, why = answer(self.mailbox.put.remote(self.stage, self.number, list(batch)))
        if not taken:
            raise SupersededError
        return why


def _work(job: Job, mailbox: Any, version: str) -> StageEnd:
    """The task: a stage on a node."""
    import ray

    if version != __version__:
        return StageEnd(
            f"the node has posttrain_recipes {__version__}, and the driver {version}",
            hint="install the same version on every node",
        )
    number = answer(mailbox.begin.remote(job.stage))
    own = ray.get_runtime_context().get_node_id()
    name = f"node {own[:8]} ({socket.gethostname()})"
    try:
        here = node.Here(name, Path.cwd())
    except FileNotFoundError:
        what = f"on {name} the recipe's folder, which Ray had brought there, is gone again"
        return StageEnd(what, hint="the same command goes on from what is saved")
    return node.run(job, _ToMailbox(mailbox, job.stage, number), here)


@dataclass
class StageTask:
    """A stage that Ray runs, or is going to."""

    stage: str
    mailbox: Any
    ref: Any
    begun: bool = False

    def events(self) -> Iterator[Event]:
        """What the stage told since the last time."""
        with self._lost():
            waiting = ray_get(self.mailbox.take.remote(self.stage))
        yield from map(pickle.loads, waiting)

    def outcome(self) -> StageEnd | None:
        """How it ended; None where it has not, after a moment.

        Raises:
            PtlError: no node came to its end with it.
        """
        import ray

        with self._lost(), contextlib.suppress(ray.exceptions.GetTimeoutError):
            return ray_get(self.ref, TICK)
        return None

    @contextmanager
    def _lost(self) -> Iterator[None]:
        import ray

        try:
            yield
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error  # what the task itself raised
            told = [line.strip() for line in str(cause).splitlines() if line.strip()]
            raise PtlError(
                f"stage '{self.stage}' was lost: Ray gave up its task, or was stopped",
                why=": ".join(dict.fromkeys((type(cause).__name__, *told[:1], *told[-1:]))),
                hint="what it saved is kept: the same command goes on from there",
                code="cluster",
            ) from None

    def stop(self, why: str) -> None:
        """Have it save what it has, and end; one that no node has begun with is taken back."""
        if self.begun:
            with self._lost():
                ray_get(self.mailbox.stop.remote(self.stage, why))
        else:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        import ray

        with contextlib.suppress(Exception):
            ray.cancel(self.ref, force=True)


class Tasks:
    """Submits stages to a cluster that this process is connected to."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        beside = {"num_cpus": 0, "scheduling_strategy": here}
        self.mailbox = ray.remote(Mailbox).options(**beside).remote()

    @property
    def cpus(self) -> int:
        """Of all nodes together."""
        import ray

        return int(ray.cluster_resources().get("CPU", 1))

    @property
    def gpus(self) -> int:
        """Of all nodes together."""
        import ray

        return int(ray.cluster_resources().get("GPU", 0))

    def lacking(self, wanted: Resources) -> str | None:
        """What no node has of what is wanted, in words."""
        import ray

        asked = {"CPU": wanted.cpus, "GPU": wanted.gpus, "memory": (wanted.memory_gb or 0) * 1e9}
        nodes = [one["Resources"] for one in ray.nodes() if one["Alive"]]
        if any(all(there.get(k, 0) >= v for k, v in asked.items()) for there in nodes):
            return None
        return str(wanted)

    def submit(self, job: Job, wanted: Resources) -> StageTask:
        """Have a stage run on a node that has what it wants."""
        import ray

        options: dict[str, Any] = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus}
        if wanted.memory_gb is not None:
            options["memory"] = int(wanted.memory_gb * 1e9)
        work = ray.remote(_work).options(max_retries=RETRIES, name=job.stage, **options)
        return StageTask(job.stage, self.mailbox, work.remote(job, self.mailbox, __version__))


def check(cluster: Cluster, plan: Plan) -> None:
    """See, before anything is begun, that stages of a plan can run on a cluster.

    Raises:
        UsageError: the plan's engine is none of this machine's.
        PtlError: Ray is not installed, or nothing answers at the cluster's address.
    """
    if not plan.engine.loads:
        raise UsageError(
            f"--jobs ray starts an engine on each node, and the recipe's is '{plan.engine.name}'",
            hint="--jobs N runs N stages at the same time on an engine that is elsewhere",
            code="cluster",
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Data is often left out of git, and a recipe cannot be run without it.
    os.environ.setdefault("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    try:
        import ray
    except ImportError:
        raise MissingExtraError(
            "--jobs ray needs Ray", hint="pip install 'posttrain-recipes[ray]'"
        ) from None
    if ray.is_initialized():
        raise UsageError(
            "this process is connected to Ray already",
            why="what the recipe reads is sent to nodes when ptl connects",
            hint="call ray.shutdown() before",
            code="cluster",
        )
    # Ray itself tries for minutes.
    host, _, port = (_address(cluster) or "").rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), ANSWER_S).close()
        except OSError as error:
            raise _none_at(cluster, str(error)) from None


def _address(cluster: Cluster) -> str | None:
    """Where Ray is looked for; None: on this machine."""
    return cluster.address or os.environ.get("RAY_ADDRESS") or None


def _none_at(cluster: Cluster, why: str) -> PtlError:
    where = _address(cluster) or "this machine"
    where += "" if cluster.address or where == "this machine" else " (RAY_ADDRESS)"
    if "Version mismatch" in why:
        return PtlError(
            f"the Ray at {where} is of another version",
            why=" ".join(why.split()),
            hint="install the same versions of Ray and Python here and on every node",
            code="wrong-version",
        )
    return PtlError(
        f"there is no Ray at {where}",
        why=why.split("\n")[0],
        hint="'ray start --head' starts one; a recipe's folder, which is sent to every node, may "
        "have 500 MB",
        code="cluster",
    )


@contextmanager
def connected(cluster: Cluster, plan: Plan, home: Path) -> Iterator[Tasks]:
    """Ray for as long as the context lasts: the cluster that was asked for, or a new one here.

    Raises:
        PtlError: there is no such cluster, or the folder is too large to send.
    """
    import ray

    with _own_signals():
        try:
            ray.init(
                address=cluster.address,
                runtime_env=_environment(plan, home),
                log_to_driver=False,
                logging_level="ERROR",
            )
        except Exception as error:
            raise _none_at(cluster, str(error).strip()) from None
    try:
        with _own_output():
            yield Tasks()
    finally:
        ray.shutdown()


@contextmanager
def _own_output() -> Iterator[None]:
    """Keep standard output to ourselves, as `--json` has it: Ray prints the log of a node that was
    lost there, and offers no way to leave that."""
    from ray._private import worker

    before = getattr(worker, "print_to_stdstream", None)
    if before is None:
        yield
        return
    worker.print_to_stdstream = lambda *args, **kwargs: None
    try:
        yield
    finally:
        worker.print_to_stdstream = before


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of signals: Ray sets its own, by which SIGTERM would end a run at once."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):  # not the main thread: Ray could not either
                signal.signal(number, handler)


def _environment(plan: Plan, home: Path) -> dict[str, Any]:
    """What is sent to every node: the recipe's folder, and packages of plugins."""
    folder = plan.path.parent.resolve()
    left_out = list(LEFT_OUT)
    if home.resolve().is_relative_to(folder):
        left_out.append(f"/{home.resolve().relative_to(folder)}")
    packages = [str(path) for path in plugin_packages()]
    return {
        "working_dir": str(folder),
        "excludes": left_out,
        **({"py_modules": packages} if packages else {}),
    }


def plugin_packages() -> list[Path]:
    """The directories of installed packages that bring plugins, with their metadata: on the path of
    a node they are what they are when installed."""
    found: dict[Path, None] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.dist is None or entry.dist.name.replace("_", "-") == "posttrain-recipes":
            continue
        spec = importlib.util.find_spec(entry.module.split(".")[0])
        for place in (spec and spec.submodule_search_locations) or ():
            found[Path(place)] = None
        for file in entry.dist.files or ():
            if file.name == "entry_points.txt":
                found[Path(str(file.locate())).parent] = None
    return list(found)
