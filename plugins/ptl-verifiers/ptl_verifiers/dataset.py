"""Tasks of a taskset of verifiers. Nothing here imports verifiers before records are read."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from posttrain_recipes.plugin import (
    Dataset,
    DatasetConfig,
    DrivenTask,
    Played,
    Policy,
    Record,
    UsageError,
)

if TYPE_CHECKING:
    from ptl_verifiers.environments import Environment

log = logging.getLogger(__name__)

HELD_OUT = 4
"""One task of so many is held out."""
LOOKED_AT = 8
"""Tasks that are looked at, for each that is wanted, before those that there are have to do."""

Format = Literal["json", "tag"]


@dataclass(frozen=True)
class Spec:
    """What names an environment; there is one of each in a process."""

    env: str
    args: str = "{}"
    """Options of the taskset, the text of a JSON object."""
    env_args: str = "{}"
    """The same, of the environment around it."""
    harness: str | None = None
    agent: str | None = None
    format: Format = "json"
    describe: bool = True
    directory: str = ""
    """Where its module may lie."""

    @property
    def taskset(self) -> str:
        """The taskset's id."""
        return self.env.rpartition("+")[2]

    @property
    def environment(self) -> str:
        """The id of the environment that is put around it; empty: its own."""
        return self.env.rpartition("+")[0]


def module_of(plugin: str) -> str:
    """The module of a verifiers id: `primeintellect/gsm8k@1.0` of the hub installs `gsm8k`."""
    return plugin.rsplit("/", 1)[-1].split("@", 1)[0].replace("-", "_").lower()


def found(plugin: str, group: str, directory: Path) -> Path | None:
    """Where the module of a verifiers id lies; nothing is imported to know it.

    Args:
        group: `tasksets` or `envs`: those that verifiers brings.
        directory: where a module may lie too.
    """
    name = module_of(plugin)
    if not name.isidentifier():
        return None
    home = importlib.util.find_spec("verifiers")
    shipped = (
        [Path(at) / "v1" / group for at in home.submodule_search_locations or ()] if home else []
    )
    for place in [*shipped, directory]:
        for path in (place / name / "__init__.py", place / f"{name}.py"):
            if path.is_file():
                return path
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None


class Verifiers(Dataset):
    """Tasks of an environment of verifiers, as those of the Environments Hub.

    The environment plays its episodes itself, and rewards them by its own rubric; what was sampled
    is trained on in the tokens that its traces hold. Each task trains under grpo, and is measured
    by the eval `episodes`.
    """

    name = "verifiers"
    requires = ("verifiers",)

    class Config(DatasetConfig):
        """Options of tasks of verifiers."""

        env: str = Field(min_length=1)
        """The id of the taskset: an installed package or a module beside the recipe; `env+taskset`
        puts an environment of verifiers around it, as user-sim+my_tasks."""
        args: dict[str, Any] = {}
        """Options of the taskset, as its config names them."""
        env_args: dict[str, Any] = {}
        """The same of the environment around it; those of an agent stand under its name."""
        size: int = Field(default=500, ge=1)
        """Tasks in all; fewer where the taskset has no more."""
        part: Literal["train", "held_out", "all"] = "train"
        """Which tasks, by a hash of what they hold: one of four is held out. all: for a taskset
        that has a split of its own among its args."""
        harness: str | None = None
        """The program that plays an agent, by verifiers' name for it; by default the taskset's own,
        or else a chat loop in this process, where verifiers would take one that it downloads."""
        agent: str | None = None
        """The agent that learns, where the environment has several."""
        format: Format = "json"
        """How a tool is called: json, <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>
        as Qwen's models and others are taught; tag, <add>1</add> for tools of one argument."""
        describe: bool = True
        """Tell the model of the tools, in its system message."""

    config: Config

    @property
    def spec(self) -> Spec:
        """What names its environment."""
        config = self.config
        return Spec(
            config.env,
            json.dumps(config.args, sort_keys=True),
            json.dumps(config.env_args, sort_keys=True),
            config.harness,
            config.agent,
            config.format,
            config.describe,
            os.fspath(self.base_dir.resolve()),
        )

    def problems(self) -> Iterator[tuple[str, str]]:
        """An environment that is nowhere. Nothing of it is imported."""
        if importlib.util.find_spec("verifiers") is None:
            return  # told of by `requires`
        spec = self.spec
        for plugin, group in ((spec.taskset, "tasksets"), (spec.environment, "envs")):
            if plugin and found(plugin, group, self.base_dir) is None:
                yield (
                    "env",
                    f"there is no module '{module_of(plugin)}' for '{plugin}': neither beside the "
                    f"recipe, nor installed, nor among those of verifiers; install it, as with "
                    f"'prime env install {plugin}'",
                )

    def digest(self) -> str:
        """Hashes of the modules' files, and the version of verifiers."""
        spec = self.spec
        try:
            known = [f"verifiers {importlib.metadata.version('verifiers')}"]
        except importlib.metadata.PackageNotFoundError:  # `requires` tells of it
            known = ["verifiers is not installed"]
        for plugin, group in ((spec.taskset, "tasksets"), (spec.environment, "envs")):
            if plugin and (path := found(plugin, group, self.base_dir)):
                files = sorted(path.parent.rglob("*.py")) if path.stem == "__init__" else [path]
                known += [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        return " ".join(known)

    def record_type(self) -> type[Record]:
        """Tasks."""
        from posttrain_recipes.plugin import Task

        return Task

    def load(self) -> Iterator[Record]:
        """The first `size` tasks of the part that is asked for, in the taskset's order.

        Raises:
            UsageError: verifiers cannot make the environment, or it has no such tasks.
        """
        from ptl_verifiers import environments

        spec, config = self.spec, self.config
        environment = environments.of(spec)
        seen: set[str] = set()
        looked, most = 0, LOOKED_AT * config.size
        wanted = min(config.size, config.limit or config.size)
        for task in islice(environment.tasks(), most):
            looked += 1
            content = environments.content_of(task)
            number = int(hashlib.sha256(content.encode()).hexdigest(), 16)
            here = "train" if number % HELD_OUT else "held_out"
            if config.part not in ("all", here) or (config.part == "held_out" and content in seen):
                continue
            yield VerifiersTask(
                source=f"{config.env}:{task.data.idx}",
                spec=spec,
                content=content,
                task=task,
                higher_is_better=environments.directions(task),
            )
            seen.add(content)
            wanted -= 1
            if not wanted:
                return
        if not seen:
            raise UsageError(
                f"'{config.env}' has no tasks of the part '{config.part}'",
                why=f"{looked} were looked at; one of {HELD_OUT} is held out",
                hint="write 'part: all', or name a split of the taskset's own in 'args'",
            )
        log.warning("%s: %d tasks less than 'size' asks for", config.env, wanted)


@dataclass(frozen=True, kw_only=True)
class VerifiersTask(DrivenTask):
    """A task of verifiers, with its environment."""

    concurrent: ClassVar[bool] = True

    spec: Spec
    content: str = field(repr=False)
    """What it holds, as JSON."""
    task: Any = field(repr=False, compare=False)
    higher_is_better: Mapping[str, bool | None] = field(  # type: ignore[misc]
        default_factory=dict, repr=False, compare=False
    )
    """Of its rewards more is better, where their weight is positive."""

    @property
    def environment(self) -> Environment:
        """The environment, of which there is one in a process."""
        from ptl_verifiers import environments

        return environments.of(self.spec)

    def play(self, policy: Policy) -> Played:
        """Have verifiers play it with the policy."""
        return self.environment.play(self.task, policy)
