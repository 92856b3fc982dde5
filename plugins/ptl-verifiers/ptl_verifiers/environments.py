"""Environments of verifiers at play, all in one event loop, in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import copy
import importlib
import itertools
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from verifiers.v1.clients import Client, ModelContext
from verifiers.v1.configs.agent import agent_config_fields
from verifiers.v1.configs.client import BaseClientConfig, TrainClientConfig
from verifiers.v1.env import Env
from verifiers.v1.episode import Episode
from verifiers.v1.interception.server import InterceptionServer
from verifiers.v1.runtimes import PrimeConfig, SubprocessConfig
from verifiers.v1.task import Task
from verifiers.v1.types import SamplingConfig
from verifiers.v1.utils.loaders import (
    default_harness_id,
    env_config_type,
    harness_config_type,
    load_environment,
    resolve_env_config,
)

from posttrain_recipes.plugin import Branch, Played, Policy, PtlError, UsageError
from ptl_verifiers import toolsets
from ptl_verifiers.client import PolicyClient, Talk
from ptl_verifiers.dataset import Spec, found, module_of

T = TypeVar("T")
CHAT = "ptl_verifiers_chat"
"""The harness in this process, by the name of its module."""
DOWNLOADED = ("bash", "null")
"""Harnesses that are a chat loop too, which verifiers takes where none is named."""


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="verifiers", daemon=True).start()
    return loop


def _wait(doing: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(doing, _loop()).result()


_making = threading.Lock()
_made: dict[Spec, Environment] = {}


def of(spec: Spec) -> Environment:
    """The environment of a spec, made once.

    Raises:
        UsageError: verifiers cannot make it.
    """
    with _making:
        if spec not in _made:
            _made[spec] = Environment(spec)
        return _made[spec]


def content_of(task: Task[Any, Any, Any]) -> str:
    """What a task holds, as JSON, but for its number in the taskset."""
    held = task.data.model_dump(mode="json", exclude={"idx", "id", "name"}, exclude_none=True)
    return json.dumps(held, sort_keys=True)


def directions(task: Task[Any, Any, Any]) -> Mapping[str, bool | None]:
    """Of which of its rewards more is better."""
    weights = {one.__name__: getattr(one, "_vf_weight", 1.0) for one in task.hooks("reward")}
    return {name: weight > 0 for name, weight in weights.items() if weight}


class PolicyServer(InterceptionServer):
    """The interception server of verifiers, which has policies answer in this process."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.policies: dict[str, PolicyClient] = {}

    def _client(self, config: BaseClientConfig) -> Client:
        return self.policies.get(config.base_url) or super()._client(config)


class Environment:
    """One environment, which serves every episode of it."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.talk = Talk(spec.format, spec.describe)
        for plugin, group in ((spec.taskset, "tasksets"), (spec.environment, "envs")):
            _import(plugin, group, spec.directory)
        try:
            self.env: Env[Any] = load_environment(resolve_env_config(self._config()))
        except UsageError:
            raise
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()
            )
            raise UsageError(
                f"verifiers refuses the options of '{spec.env}'", why=faults
            ) from error
        except Exception as error:  # it is anybody's code
            raise UsageError(
                f"verifiers cannot make '{spec.env}'", why=f"{type(error).__name__}: {error}"
            ) from error
        self._numbers = itertools.count()
        self._serving: asyncio.Task[None] | None = None
        self._server: PolicyServer | None = None

    def _config(self) -> dict[str, Any]:
        """The options, with a runtime and a harness of this machine for every agent."""
        spec = self.spec
        told: dict[str, Any] = json.loads(spec.env_args)
        told |= {"id": spec.environment, "taskset": {**json.loads(spec.args), "id": spec.taskset}}
        default = spec.harness or default_harness_id(spec.taskset)
        kind = env_config_type(spec.taskset, spec.environment)
        roles = agent_config_fields(kind.model_construct())
        if spec.agent is not None and spec.agent not in roles:
            raise UsageError(
                f"'{spec.env}' has no agent '{spec.agent}'", hint=f"it has {', '.join(roles)}"
            )
        for name, role in roles.items():
            options = dict(told.get(name) or {})
            # A runtime that the environment chose itself, such as docker, is left as it is.
            if "runtime" not in options and isinstance(role.runtime, PrimeConfig):
                options["runtime"] = SubprocessConfig().model_dump()
            if "harness" not in options:
                own = spec.harness or (role.harness.id if role.harness else default)
                taken = CHAT if own in DOWNLOADED and not spec.harness else own
                options["harness"] = harness_config_type(taken)(id=taken).model_dump()
            told[name] = options
        return told

    def tasks(self) -> Iterator[Task[Any, Any, Any]]:
        """Those of its taskset.

        Raises:
            UsageError: it cannot load them.
        """
        try:
            yield from self.env.taskset
        except Exception as error:
            raise UsageError(
                f"the taskset of '{self.spec.env}' cannot be loaded",
                why=f"{type(error).__name__}: {error}",
            ) from error

    def play(self, task: Task[Any, Any, Any], policy: Policy) -> Played:
        """Play an episode of a task, with the policy as every agent that has no model of its own.

        Raises:
            PtlError: an agent, a tool or the rubric failed, or it cannot be said who learns.
        """
        client = PolicyClient(policy, self.talk)
        episode = _wait(self._episode(task, client))
        failed = [*episode.errors, *(one.last_error for one in episode.traces if not one.ok)]
        if failed or not episode.ok:
            first = next((one for one in failed if one), None)
            raise PtlError(f"{first.type}: {first.message}" if first else "the episode failed")
        return self._played(episode, client)

    async def _episode(self, task: Task[Any, Any, Any], client: PolicyClient) -> Episode:
        server = await self._served()
        address = f"http://policy.invalid/{next(self._numbers)}"
        server.policies[address] = client
        played = copy.copy(task)
        all_tools = task.toolsets(task.config)
        local = [one for one in all_tools if toolsets.is_local(one)]
        if local:
            others: Callable[[Any], list[Any]] = lambda config: [  # noqa: E731
                one for one in task.toolsets(config) if not toolsets.is_local(one)
            ]
            played.toolsets = others  # type: ignore[method-assign]
        toolsets.here.set((played.key, local))
        ctx = ModelContext(
            "policy", TrainClientConfig(base_url=address, api_key_var="PTL_NONE"), SamplingConfig()
        )
        try:
            return await self._limited(client.policy).run_episode(played, ctx)
        finally:
            del server.policies[address]

    def _limited(self, policy: Policy) -> Env[Any]:
        """The environment with no agent that asks for more replies than the policy gives."""
        bound = {
            name: role.model_copy(update={"max_turns": min(role.max_turns or most, most)})
            for name, role in agent_config_fields(self.env.config).items()
            for most in [policy.max_turns]
        }
        env = copy.copy(self.env)
        env.config = self.env.config.model_copy(update=bound)
        return env

    async def _served(self) -> PolicyServer:
        """What `Env.serving` does, with a server that policies answer behind."""
        if self._serving is None:
            up: asyncio.Future[PolicyServer] = asyncio.get_running_loop().create_future()
            down = asyncio.Event()

            async def serve() -> None:
                try:
                    async with _serving(self.env) as server:
                        up.set_result(server)
                        await down.wait()
                except BaseException as error:
                    if up.done():
                        raise
                    up.set_exception(error)

            self._serving, self._up = asyncio.create_task(serve()), up
            atexit.register(_shut, down, self._serving)
        return await asyncio.shield(self._up)

    def _played(self, episode: Episode, client: PolicyClient) -> Played:
        learns = [
            one
            for one in episode.traces
            if one.agent.trainable and self.spec.agent in (None, one.agent.name)
        ]
        if len(learns) != 1:
            names = ", ".join(sorted({one.agent.name for one in episode.traces}))
            raise PtlError(
                f"{len(learns)} agents of '{self.spec.env}' are to learn from one episode",
                hint=f"name one of them in 'agent' ({names}); one that plays an episode several "
                "times cannot be trained: the method's group_size does that",
            )
        [trace] = learns
        scores = {name: one.score for name, one in trace.rewards.items() if one is not None}
        told = {name: float(value) for name, value in trace.metrics.items() if value is not None}
        return Played(
            branches=[
                self._branch(one)
                for one in trace.branches
                if one.trainable and any(one.sampled_mask)
            ],
            reward=float(trace.reward) if scores else None,
            metrics={**told, **scores},
            truncated=trace.is_truncated or client.cut,
        )

    def _branch(self, branch: Any) -> Branch:
        """A branch of a trace as it stands, with its messages up to the last that was sampled."""
        last = max(place for place, node in enumerate(branch.nodes) if node.sampled)
        messages = self.talk.told(branch.messages[: last + 1], branch.tools)
        return Branch(branch.token_ids, branch.sampled_mask, branch.logprobs, tuple(messages))


@contextlib.asynccontextmanager
async def _serving(env: Env[Any]) -> AsyncIterator[PolicyServer]:
    async with env.shared_tools() as shared:
        secrets = tuple(one.state_secret for one in shared.values() if one.state_secret)
        async with PolicyServer(None, env._requires_tunnel(shared), secrets) as server:
            env._shared_tools, env._interception = shared, server
            try:
                await env.start()
                yield server
            finally:
                await env.stop()


def _shut(down: asyncio.Event, serving: asyncio.Task[None]) -> None:
    """Let the servers of an environment go, as the process ends."""
    loop, over = _loop(), Future[None]()
    loop.call_soon_threadsafe(down.set)
    loop.call_soon_threadsafe(serving.add_done_callback, lambda done: over.set_result(None))
    with contextlib.suppress(TimeoutError):
        over.result(5)


def _import(plugin: str, group: str, directory: str) -> None:
    """Have the module of an id in reach, where it lies beside the recipe."""
    if not plugin:
        return
    path = found(plugin, group, Path(directory))
    name = module_of(plugin)
    if path is None:
        raise UsageError(f"there is no module '{name}' for '{plugin}'")
    if not path.is_relative_to(directory) or "site-packages" in path.parts:
        return
    if directory not in sys.path:
        sys.path.insert(0, directory)
        importlib.invalidate_caches()
    known = getattr(sys.modules.get(name), "__file__", None)
    if known is not None and Path(known).resolve() != path.resolve():
        raise UsageError(
            f"'{name}' is another module, of {known}, in this process",
            hint="give one of the two another name",
        )
