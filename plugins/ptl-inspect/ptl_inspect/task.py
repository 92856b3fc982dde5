"""The eval `inspect`: an Inspect task, called as its users call it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from posttrain_recipes.plugin import (
    Affects,
    Eval,
    EvalContext,
    EvalResult,
    PluginConfig,
    PtlError,
    Record,
)
from posttrain_recipes.training import harness
from ptl_inspect import log

PROGRAM = (sys.executable, "-m", "inspect_ai")
_NAMED = re.compile(r"[A-Za-z_][\w.]*@[A-Za-z_]\w*|[A-Za-z_]\w*(/[\w-]+)+")
"""`module@task`, or `package/task`."""
_SHIM = """from importlib import import_module

from inspect_ai import task


@task(name={name!r})
def {name}(**args):
    return getattr(import_module({module!r}), {name!r})(**args)
"""
"""What Inspect is given for `module@task`: it loads files, and a module of a package has imports
that only work in it."""


class InspectTask(Eval):
    """A task of Inspect, with its own data, solver and scorers.

    UK AI Security Institute, inspect-ai. Every metric of the task's scorers is one of the eval, by
    Inspect's own number; those that are means over samples have an interval and are compared before
    and after sample by sample.
    """

    name = "inspect"
    takes: ClassVar[tuple[type[Record], ...]] = ()
    requires = ("inspect_ai",)
    extra = "inspect-ai>=0.3.285"

    class Config(PluginConfig):
        """Options of the eval."""

        task: str
        """`file.py@task`, relative to the recipe; `module@task`; or a name that Inspect knows, such
        as `inspect_evals/arc_easy`."""
        args: dict[str, Any] = Field(default_factory=dict)
        """The task's arguments, as `inspect eval -T` takes them."""
        reads: list[str] = Field(default_factory=list)
        """Files and folders that the task reads, relative to the recipe: results are known by what
        they hold, as by what `task` names. Nothing else tells that they changed."""
        limit: int | None = Field(default=None, ge=1)
        """Only this many samples, the first ones."""
        epochs: int | None = Field(default=None, ge=1)
        """How often each sample is asked; Inspect reduces their scores to one. By default the
        task's."""
        temperature: float | None = Field(default=0.0, ge=0)
        """0 takes the likeliest token each time; null: as the task says."""
        max_tokens: int | None = Field(default=None, ge=1)
        """Longest reply in tokens; by default as the task says."""
        chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
        """Variables of the model's chat template, such as {enable_thinking: false}, sent with each
        request. The recipe's `renderer` is not applied: the engine renders what Inspect asks."""
        max_connections: Annotated[int, Affects.COST] = Field(default=8, ge=1)
        """Requests at the same time."""

    config: Config

    @property
    def suite(self) -> str:
        """The task."""
        return f"inspect's {self.config.task}"

    @property
    def _file(self) -> Path | None:
        """The task's file, where it is named by one."""
        path, _, _ = self.config.task.rpartition("@")
        path = path or self.config.task
        return self.base_dir / Path(path).expanduser() if path.endswith(".py") else None

    @property
    def _module(self) -> str | None:
        """The task's module, where it is named by one."""
        module, at, _ = self.config.task.rpartition("@")
        return module if at and not self._file else None

    def problems(self) -> Iterable[tuple[str, str]]:
        """What is not there, or has no name that Inspect knows."""
        file, task = self._file, self.config.task
        top = re.split(r"[./]", self._module or task)[0]
        if file is not None:
            if not file.is_file():
                yield "task", f"there is no file {file}"
        elif not _NAMED.fullmatch(task):
            yield "task", "write file.py@task, module@task, or package/task as Inspect does"
        elif importlib.util.find_spec(top) is None:
            name = top.replace("_", "-")
            yield "task", f"no package {top} is installed here; perhaps: pip install {name}"
        for path in self.config.reads:
            if not (self.base_dir / Path(path).expanduser()).exists():
                yield "reads", f"there is no {path} here"

    def digest(self) -> str:
        """Of the task's file or package, of what it reads, and of the version of Inspect."""
        held = hashlib.sha256(repr(sorted(self.config.args.items())).encode())
        held.update(self.config.task.encode())
        for path in filter(None, (self._file, *self._reads())):
            for file in _files(path):
                held.update(f"{file.relative_to(path.parent)}\0".encode())
                held.update(hashlib.sha256(file.read_bytes()).digest())
        if self._file is None:
            held.update(_version(re.split(r"[./]", self._module or self.config.task)[0]).encode())
        held.update(_version("inspect_ai").encode())
        return held.hexdigest()[:16]

    def _reads(self) -> Iterator[Path]:
        for path in self.config.reads:
            yield self.base_dir / Path(path).expanduser()

    def evaluate(self, context: EvalContext) -> EvalResult:
        """One call of `inspect eval` in a process of its own."""
        served = context.served()
        env = {
            "PTL_BASE_URL": served.routes.base_url,
            "PTL_API_KEY": served.routes.api_key,
            "NO_COLOR": "1",
        }
        secrets = [served.routes.api_key]
        hint = f"by hand: inspect eval {self.config.task} --model openai-api/ptl/{served.model}"
        with tempfile.TemporaryDirectory(prefix="ptl-inspect-") as name:
            folder = Path(name)
            command = [*PROGRAM, "eval", self._task(folder)]
            command += ["--model", f"openai-api/ptl/{served.model}", *self._options(context.seed)]
            if self.config.args:
                args = folder / "args.json"
                args.write_text(json.dumps(self.config.args), encoding="utf-8")
                command += ["--task-config", str(args)]
            command += ["--log-dir", str(folder / "logs")]
            harness.call(
                "inspect", command, context.wait, cwd=folder, env=env, secrets=secrets, hint=hint
            )
            files = sorted((folder / "logs").glob("*.eval"))
            if len(files) != 1:
                raise PtlError(
                    f"eval '{context.name}': inspect left {len(files)} logs and not one",
                    why=f"'{self.config.task}' should name one task",
                    hint="write file.py@task or module@task",
                )
            context.artifact(files[0].name, files[0].read_bytes())
            dump = [*PROGRAM, "log", "dump", str(files[0])]
            text = harness.call("inspect", dump, context.wait, cwd=folder, env=env, secrets=secrets)
        found = log.parse(text)
        result = log.result(found, context.name)
        context.spent(*log.usage(found))
        return result

    def _task(self, folder: Path) -> str:
        """What Inspect is told to run."""
        task = self.config.task.rpartition("@")[2]
        if self._file is not None:
            named = f"@{task}" if "@" in self.config.task else ""
            return f"{self._file.resolve()}{named}"
        if self._module is None:
            return self.config.task
        shim = folder / "shim.py"
        shim.write_text(_SHIM.format(name=task, module=self._module), encoding="utf-8")
        return f"{shim}@{task}"

    def _options(self, seed: int) -> list[str]:
        config = self.config
        given: Mapping[str, Any] = {
            "--limit": config.limit,
            "--epochs": config.epochs,
            "--temperature": config.temperature,
            "--max-tokens": config.max_tokens,
            "--seed": seed,
            "--max-connections": config.max_connections,
            "--display": "none",
            "--log-format": "eval",
            "--ctl-server": "false",
        }
        found = [
            text
            for name, value in given.items()
            if value is not None
            for text in (name, str(value))
        ]
        if config.chat_template_kwargs:
            body = {"chat_template_kwargs": config.chat_template_kwargs}
            found += ["--extra-body", json.dumps(body)]
        return found


def _files(path: Path) -> list[Path]:
    """A file, or all within a folder."""
    if path.is_dir():
        inner = (one for one in sorted(path.rglob("*")) if "__pycache__" not in one.parts)
        return [one for one in inner if one.is_file()]
    return [path] if path.is_file() else []


def _version(module: str) -> str:
    """What tells the code of an installed package from others: its version; of one that is
    installed from a folder, or is no package, the content of its files."""
    try:
        found = metadata.distribution(module)
        if not found.read_text("direct_url.json"):
            return found.version
    except metadata.PackageNotFoundError:
        pass
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    top = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
    held = hashlib.sha256()
    for file in _files(top):
        held.update(file.read_bytes())
    return held.hexdigest()
