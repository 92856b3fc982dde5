"""The eval `lm_eval`: tasks of lm-evaluation-harness, called as its users call them."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
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
    ServedWeights,
)
from posttrain_recipes.training import harness
from ptl_lm_eval import results


class LmEval(Eval):
    """Tasks of lm-evaluation-harness, with their own data, prompts and metrics.

    Gao et al., lm-evaluation-harness. Every metric of a task or group is one of the eval, by
    lm-eval's own number; those that are means over documents have an interval and are compared
    before and after document by document.
    """

    name = "lm_eval"
    takes: ClassVar[tuple[type[Record], ...]] = ()
    requires = ("lm_eval",)
    extra = "lm-eval[api]>=0.4.13"

    class Config(PluginConfig):
        """Options of the eval."""

        tasks: list[str] = Field(min_length=1)
        """Names of tasks and groups, as `lm_eval --tasks` takes them."""
        num_fewshot: int | None = Field(default=None, ge=0)
        """Examples before each question; by default as the task says."""
        include_path: str | None = None
        """A folder with tasks of your own, relative to the recipe. Results are known by what all of
        its files hold."""
        reads: list[str] = Field(default_factory=list)
        """Other files and folders that the tasks read, relative to the recipe: results are known by
        what they hold too. Nothing else tells that they changed."""
        chat: bool = False
        """Whether the model is asked as in a conversation, by its chat template, which only tasks
        that generate can be; else it goes on with raw text."""
        chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
        """With `chat: true`, variables of the model's chat template, such as {enable_thinking:
        false}, sent with each request. The recipe's `renderer` is not applied: the engine renders
        what lm-eval asks."""
        limit: int | None = Field(default=None, ge=1)
        """Only this many documents of each task, the first ones."""
        temperature: float | None = Field(default=0.0, ge=0)
        """Of tasks that generate: 0 takes the likeliest token each time; null: as the task says."""
        max_tokens: int | None = Field(default=None, ge=1)
        """Of tasks that generate: longest reply in tokens; by default as the task says."""
        max_length: int | None = Field(default=None, ge=1)
        """Tokens that the model can read; what is longer is cut at its beginning. By default
        lm-eval's 2048."""
        unsafe_code: bool = False
        """Whether lm-eval may run what the model writes, as some tasks do: on this machine, with
        your rights."""
        num_concurrent: Annotated[int, Affects.COST] = Field(default=8, ge=1)
        """Requests at the same time."""

    config: Config

    @property
    def suite(self) -> str:
        """The tasks."""
        return f"lm-eval's {', '.join(self.config.tasks)}"

    def problems(self) -> Iterable[tuple[str, str]]:
        """Files and folders that are not there."""
        path = self.config.include_path
        if path is not None and not self._path(path).is_dir():
            yield "include_path", f"there is no folder {self._path(path)}"
        for one in self.config.reads:
            if not self._path(one).exists():
                yield "reads", f"there is no {self._path(one)}"
        if self.config.chat_template_kwargs and not self.config.chat:
            yield "chat_template_kwargs", "has no effect without 'chat: true'"
        for task in self.config.tasks:
            if not task.strip() or "," in task:
                yield "tasks", "write a list of names: [arc_easy, hellaswag]"

    def digest(self) -> str:
        """Of the folder with tasks, of what those read, and of the version of lm-eval."""
        held = hashlib.sha256(json.dumps(self.config.tasks).encode())
        for path in self._held():
            for file in _files(path):
                held.update(f"{file.relative_to(path.parent)}\0".encode())
                held.update(hashlib.sha256(file.read_bytes()).digest())
        try:
            held.update(metadata.version("lm_eval").encode())
        except metadata.PackageNotFoundError:
            held.update(b"not installed")
        return held.hexdigest()[:16]

    def _path(self, path: str) -> Path:
        return (self.base_dir / Path(path).expanduser()).resolve()

    def _held(self) -> Iterator[Path]:
        if self.config.include_path is not None:
            yield self._path(self.config.include_path)
        for path in self.config.reads:
            yield self._path(path)

    def evaluate(self, context: EvalContext) -> EvalResult:
        """One call of `lm_eval run` in a process of its own, in the recipe's directory."""
        served = context.served()
        hint = "a task that compares likelihoods cannot be asked with 'chat: true'"
        with tempfile.TemporaryDirectory(prefix="ptl-lm-eval-") as name:
            folder = Path(name)
            harness.call(
                "lm_eval",
                [sys.executable, "-m", "lm_eval", "run", *self._options(context, served, folder)],
                context.wait,
                cwd=self.base_dir.resolve(),
                env={"OPENAI_API_KEY": served.routes.api_key, "TOKENIZERS_PARALLELISM": "false"},
                secrets=[served.routes.api_key],
                hint=hint if self.config.chat else None,
            )
            # A server's refusal may repeat the key that it was asked with.
            files = {
                path: harness.without(path.read_text(encoding="utf-8"), [served.routes.api_key])
                for path in folder.rglob("*.json*")
            }
        for path, text in files.items():
            context.artifact(path.name, text)
        found = [text for path, text in files.items() if path.name.startswith("results_")]
        if len(found) != 1:
            raise PtlError(f"eval '{context.name}': lm_eval left {len(found)} results and not one")
        samples = {
            path.stem.removeprefix("samples_").rpartition("_")[0]: text
            for path, text in files.items()
            if path.name.startswith("samples_")
        }
        told = results.parse(found[0], samples)
        result = results.result(told, context.name)
        context.spent(*results.usage(told, served.tokenizer))
        return result

    def _options(self, context: EvalContext, served: ServedWeights, folder: Path) -> list[str]:
        config = self.config
        route = "chat/completions" if config.chat else "completions"
        model = {
            "model": served.model,
            "base_url": f"{served.routes.base_url}/{route}",
            "num_concurrent": config.num_concurrent,
            "seed": context.seed,
        }
        if not config.chat:
            model |= {"tokenizer": served.tokenizer, "tokenized_requests": True}
        if config.max_length is not None:
            model["max_length"] = config.max_length
        kind = "local-chat-completions" if config.chat else "local-completions"
        found = ["--model", kind, "--model_args", json.dumps(model), "--tasks", *config.tasks]
        found += ["--output_path", str(folder), "--log_samples"]
        if config.chat:
            found.append("--apply_chat_template")
        for option, value in (("--num_fewshot", config.num_fewshot), ("--limit", config.limit)):
            found += [option, str(value)] if value is not None else []
        if config.include_path is not None:
            found += ["--include_path", str(self._path(config.include_path))]
        if config.unsafe_code:
            found.append("--confirm_run_unsafe_code")
        sampled: dict[str, Any] = {}
        if config.temperature is not None:
            sampled |= {"temperature": config.temperature, "do_sample": config.temperature > 0}
        if config.max_tokens is not None:
            sampled["max_gen_toks"] = config.max_tokens
        if config.chat_template_kwargs:
            sampled["chat_template_kwargs"] = config.chat_template_kwargs
        return [*found, "--gen_kwargs", json.dumps(sampled)] if sampled else found


def _files(path: Path) -> list[Path]:
    """A file, or all within a folder."""
    if path.is_dir():
        inner = (one for one in sorted(path.rglob("*")) if "__pycache__" not in one.parts)
        return [one for one in inner if one.is_file()]
    return [path] if path.is_file() else []
