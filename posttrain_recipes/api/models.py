"""Verbs on what can be sampled from, a run's checkpoint or a model: eval, export, serve, chat."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from posttrain_recipes import registry
from posttrain_recipes.api.results import named
from posttrain_recipes.errors import UsageError
from posttrain_recipes.results import Result
from posttrain_recipes.store import default_home

if TYPE_CHECKING:
    from posttrain_recipes.exporting.writing import Exported
    from posttrain_recipes.inference.conversation import Talk
    from posttrain_recipes.inference.serving import LocalServer
    from posttrain_recipes.planning.plans import Plan
    from posttrain_recipes.running.events import Reporter

Suite = str | Path | Sequence[Any] | Mapping[str, Any]
"""A suite's file, or what would stand in it: a list of evals."""


def eval(
    *targets: str | Result,
    suite: Suite,
    engine: Any = None,
    model: str | None = None,
    bounds: Mapping[str, str] | None = None,
    fresh: bool = False,
    home: str | Path | None = None,
    progress: bool | None = None,
    reporter: Reporter | None = None,
) -> list[Result]:
    """Run a suite of evals on anything that can be sampled; what is known is not measured again.

    Args:
        targets: results, runs (`sft_then_dpo-1`), their stages (`sft_then_dpo-1/sft`), tinker://
            paths, or models: `ptl/tiny`, ORGANISATION/MODEL, `./DIRECTORY`.
        suite: its file, or the list itself: `[{"use": "gsm8k", "limit": 200}]`.
        engine: where a model or a checkpoint is served, as a recipe has it; by default local.
        model: the base model of a checkpoint that is not in this home.
        bounds: as `expect:` has them, `{"held_out": ">= 0.8"}`; see `Result.gates`.
        fresh: measure again what is known.
        progress, reporter: as `run` has them.

    Returns:
        A result for each target, in order; `compare(*results)` compares them in pairs.

    Raises:
        RecipeError, UsageError: the suite is none, or there is no such target.
        PtlError: a run failed.
    """
    from posttrain_recipes import engines
    from posttrain_recipes.planning.reuse import Scope
    from posttrain_recipes.progress import told
    from posttrain_recipes.running import runner

    plans = evals_of(targets, suite, home, engine, model, bounds or {})
    folder = default_home(home)
    with engines.kept_running(), told(False if reporter else progress) as shown:
        return [
            Result(runner.run(plan, folder, reporter or shown, scope=Scope(fresh=fresh)))
            for plan in plans
        ]


def evals_of(
    targets: Sequence[str | Result],
    suite: Suite,
    home: str | Path | None,
    engine: Any,
    model: str | None,
    bounds: Mapping[str, str],
) -> list[Plan]:
    """What `eval` runs: a plan for each target. Raises RecipeError and UsageError as it does."""
    from posttrain_recipes.inference.target import measurand
    from posttrain_recipes.language import suite as suites
    from posttrain_recipes.planning.planner import build

    names = list(dict.fromkeys(map(named, targets)))
    if not names:
        raise UsageError("there is nothing to measure", hint="name a run, a checkpoint or a model")
    given = Path(suite) if isinstance(suite, str) else suite
    folder, plugins = default_home(home), registry.load()
    return [
        build(
            suites.recipe(given, measurand(name, folder, engine, model), bounds),
            plugins,
            ask=True,
        )
        for name in names
    ]


def export(
    target: str | Result,
    directory: str | Path | None = None,
    *,
    merge: bool = False,
    gguf: Literal["q8_0", "f16"] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    push: str | None = None,
    private: bool = False,
    base_url: str | None = None,
    home: str | Path | None = None,
) -> Exported:
    """Write a checkpoint to a new directory: a PEFT adapter, a Hugging Face model or a GGUF file.

    Args:
        target: a result, a run, one of its stages (`sft_then_dpo-1/sft`), or a tinker:// path.
        directory: where to; may be left out where it is pushed.
        merge: a whole model, the adapter merged into its base.
        gguf: a merged model as one file, for llama.cpp and Ollama.
        dtype: of a merged model's weights; by default that of its base.
        push: USER/NAME of a new repository of the Hugging Face hub, with HF_TOKEN.
        private: that only its owner sees it there.
        base_url: the service that has the checkpoint; by default that of the run.

    Raises:
        UsageError: there is no such checkpoint, or the directory has something in it.
        PtlError: it is damaged, or cannot be fetched, written or pushed.
    """
    from posttrain_recipes.exporting import writing

    _one_of("gguf", gguf, (None, "q8_0", "f16"))
    _one_of("dtype", dtype, (None, "float32", "bfloat16", "float16"))
    if not isinstance(directory, str | Path | None):
        _refuse("directory", directory, "a path")
    return writing.export(
        named(target),
        None if directory is None else Path(directory),
        default_home(home),
        writing.Form(merge, gguf, dtype),
        push=push,
        private=private,
        base_url=base_url,
    )


def serve(
    *models: str,
    port: int = 0,
    chat_template: str | Path | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    home: str | Path | None = None,
) -> LocalServer:
    """Serve the embedded engine on this machine, for any program of Tinker's SDK and of OpenAI's.

    Args:
        models: what is offered: bundled, a directory, a hub id, or NAME=DIRECTORY; by default the
            bundled ones. Checkpoints of the home's runs are served by their tinker:// paths.
        port: the port; 0 takes a free one.
        chat_template: a file, or a name, in place of the models' own.
        dtype: what models are held and multiplied in, as `engine: {dtype: auto}` of a recipe.

    Returns:
        A running server: `.base_url`, `.api_key`, `.environ` for programs. It ends with its `with`
        block, by `.close()`, or with this process.

    Raises:
        UsageError: a model is none.
        PtlError: it did not start.
    """
    from posttrain_recipes.inference import serving

    _one_of("dtype", dtype, ("auto", "float32", "bfloat16"))
    _between("port", port, 0, 65535, whole=True)
    return serving.start(models, default_home(home), port, chat_template, dtype)


def chat(
    target: str | Result | None = None,
    *,
    system: str | None = None,
    temperature: float = 0.7,
    max_tokens: int = 512,
    seed: int | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    home: str | Path | None = None,
) -> Talk:
    """Begin a conversation: `talk = ptl.chat("sft_then_dpo-1")`, then `talk("What is 2+2?")`.

    Args:
        target: a result, a run, a stage, a tinker:// path or a model; by default the last run.
        system: a system message to begin with.
        temperature: 0 takes the likeliest token.
        max_tokens: at most so many tokens a reply.
        seed: the same seed gives the same reply.
        base_url: any OpenAI-compatible server, in place of an engine that is started for it.
        api_key: that server's key.

    Raises:
        UsageError: there is no such target.
        PtlError: the engine did not start, or the server cannot be reached.
    """
    from posttrain_recipes.inference import conversation

    _between("temperature", temperature, 0, 2)
    _between("max_tokens", max_tokens, 1, whole=True)
    if seed is not None:
        _between("seed", seed, whole=True)
    return conversation.begin(
        None if target is None else named(target),
        default_home(home),
        system=system,
        base_url=base_url,
        api_key=api_key,
        temperature=float(temperature),
        max_tokens=int(max_tokens),
        seed=None if seed is None else int(seed),
    )


def _one_of(name: str, value: object, known: Sequence[str | None]) -> None:
    if value not in known:
        _refuse(name, value, " or ".join(map(repr, known)))


def _between(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    whole: bool = False,
) -> None:
    kind = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= float(value) <= high:
        wide = f" from {low:.0f}" if low > -math.inf else ""
        wide += f" to {high:.0f}" if high < math.inf else ""
        _refuse(name, value, f"a {'whole ' if whole else ''}number{wide}")


def _refuse(name: str, value: object, wanted: str) -> NoReturn:
    raise UsageError(f"{name} is {value!r}", hint=f"it is {wanted}", code="wrong-value")
