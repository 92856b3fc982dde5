"""Pages of the site that are written from the code: recipe keys, plugins, commands, errors.

`site_hooks.py` hands them to MkDocs; nothing is written to `docs/`, so that nothing can be stale.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click
import yaml

import posttrain_recipes
from posttrain_recipes import registry, shipped
from posttrain_recipes.cli import cli
from posttrain_recipes.cli.codes import SOURCE
from posttrain_recipes.cli.plugins import Option, options
from posttrain_recipes.language.schema import recipe_schema
from posttrain_recipes.plugin import Eval, Method
from posttrain_recipes.progress import event_schema as event_schema_of
from posttrain_recipes.registry import KINDS, Entry

WRITTEN = "<!-- written from the code: tools/site_reference.py -->\n\n"

EXAMPLES = {
    "name": "name: my_recipe",
    "description": "description: Teach the answer format by imitation.",
    "model": "model: ptl/tiny",
    "engine": "engine: {use: local, dtype: float32}",
    "seed": "seed: 1",
    "lora": "lora: {rank: 16}",
    "renderer": "renderer: {chat_template: chatml}",
    "stages": "stages: [{name: sft, dataset: {use: jsonl, path: train.jsonl}, method: {use: sft}}]",
    "limits": "limits: {max_hours: 2}",
    "on_end": "on_end: {webhook: '${env:WEBHOOK}'}",
    "trackers": "trackers: [tensorboard, {use: wandb, project: sums}]",
    "resources": "resources: {cpus: 4, gpus: 1}",
    "watch": "watch: {prompts: 3, every: 20}",
    "matrix": "matrix: {stages.sft.method.learning_rate: [1e-4, 1e-3], seed: [0, 1, 2]}",
    "expect": "expect: {held_out: '>= 0.8', held_out change: '> 0'}",
    "presets": "presets: {quick: {stages: {sft: {method: {max_steps: 20}}}}}",
    "extends": "extends: base.yaml",
    "limits.max_cost_usd": "limits: {max_cost_usd: 5}",
    "limits.max_hours": "limits: {max_hours: 0.5}",
    "limits.max_tokens": "limits: {max_tokens: 2000000}",
    "on_end.command": "on_end: {command: [./told.sh, --team, research]}",
    "on_end.webhook": "on_end: {webhook: '${env:WEBHOOK}'}",
    "on_end.headers": "on_end: {webhook: https://ci.example/runs, headers: {Authorization: 'Bearer ${env:CI_TOKEN}'}}",
    "on_end.timeout": "on_end: {command: [./upload.sh], timeout: 600}",
    "resources.cpus": "resources: {cpus: 4}",
    "resources.gpus": "resources: {gpus: 0.5}",
    "resources.memory_gb": "resources: {memory_gb: 16}",
    "stage.name": "name: dpo",
    "stage.init_from": "init_from: sft",
    "stage.dataset": "dataset: {use: jsonl, path: data/train.jsonl, test_size: 100}",
    "stage.method": "method: {use: grpo, group_size: 8}",
    "stage.reward": "reward: [{use: exact_match}, {use: length, weight: 0.1}]",
    "stage.eval": "eval: [{use: nll}, {use: exact_match, name: held_out, every: 20}]",
    "stage.model": "model: Qwen/Qwen3-8B",
    "stage.keep": "keep: {best: held_out}",
    "stage.keep.best": "keep: {best: held_out/exact_match}",
    "stage.stop": "stop: {after: 3 evals without gain}",
    "stage.stop.after": "stop: {after: 3 evals without gain}",
    "stage.stop.by": "stop: {after: 3 evals without gain, by: held_out}",
    "stage.expect": "expect: {held_out: '>= 0.8'}",
    "stage.seed": "seed: 3",
    "stage.lora": "lora: {rank: 8}",
    "stage.renderer": "renderer: {thinking: on}",
    "stage.resources": "resources: {gpus: 1}",
    "repeat.repeat": "repeat: 3",
    "repeat.name": "name: rounds",
    "repeat.stages": "stages: [{name: make, ...}, {name: train, ...}]",
    "repeat.until": "until: {held_out: '>= 0.9'}",
    "compare.compare": "compare: [{name: sft, ...}, {name: dpo, ...}]",
    "compare.name": "name: methods",
    "compare.init_from": "init_from: base",
    "compare.seeds": "seeds: [0, 1, 2]",
    "compare.budget": "budget: {tokens: 20000}",
    "compare.budget.steps": "budget: {steps: 60}",
    "compare.budget.tokens": "budget: {tokens: 20000}",
    "compare.eval": "eval: [held_out]",
    "matrix.pair": "matrix: {pair: {seed: [0, 1], lora.rank: [8, 16]}}",
    "eval.name": "{use: exact_match, name: held_out}",
    "eval.dataset": "{use: nll, dataset: {use: jsonl, path: held_out.jsonl}}",
    "eval.every": "{use: nll, every: 20}",
    "reward.weight": "{use: exact_match, weight: 2}",
}
"""By key: how it is written. A test holds that each key of the schema has one that is valid YAML."""

TYPES = {"string": "text", "boolean": "true or false", "object": "mapping", "array": "list"}


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema with every plugin that is installed here."""
    return recipe_schema(registry.load())


def every_key() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Every key: the section it stands in, its path as `EXAMPLES` has it, and its schema."""
    definitions = schema()["$defs"]
    top = {**definitions["recipe"]["properties"], "extends": schema()["properties"]["extends"]}
    yield from _level("recipe", "", top)
    for section in ("stage", "repeat", "compare", "matrix"):
        yield from _level(section, section, definitions[section]["properties"])
    for section, own in (("lora", "lora"), ("renderer", "renderer")):
        for name, about in definitions[own]["properties"].items():
            yield section, f"{section}.{name}", about
    for section in ("limits", "on_end", "resources"):
        source = definitions[section] if section == "resources" else top[section]
        inner = source if "properties" in source else source["then"]
        yield from _level(section, section, inner["properties"])
    from posttrain_recipes.language.schema import EXTRA_OPTIONS

    for kind, extra in EXTRA_OPTIONS.items():
        for name, about in extra.items():
            yield kind, f"{kind}.{name}", about


def _level(section: str, prefix: str, properties: Mapping[str, Any]) -> Iterator[Any]:
    for name, about in properties.items():
        path = f"{prefix}.{name}" if prefix else name
        yield section, path, about
        if section != "recipe":
            for inner, told in about.get("properties", {}).items():
                yield section, f"{path}.{inner}", told


def type_of(about: Mapping[str, Any]) -> str:
    """A schema's type in words, with its bounds."""
    if "enum" in about:
        return " or ".join(f"`{_plain(value)}`" for value in about["enum"])
    if "$ref" in about:
        name = about["$ref"].rsplit("/", 1)[-1]
        plugin = name in KINDS
        return f"[{name}](plugins/{name}s.md)" if plugin else f"[{name}](#{SECTIONS[name][0]})"
    if "anyOf" in about:
        return " or ".join(dict.fromkeys(type_of(one) for one in about["anyOf"]))
    if about.get("if") == {"type": "object"}:
        return "mapping, or true or false"
    if "if" in about:
        forms = [about["if"], about["then"], about.get("else", {})]
        refs = [ref for form in forms for ref in re.findall(r"#/\$defs/(\w+)", json.dumps(form))]
        lists = about["if"].get("type") == "array"
        first = type_of({"$ref": f"#/$defs/{refs[-1]}"}) if refs else "mapping"
        return f"{first}, or a list of them" if lists else f"name or {first}"
    kind = str(about.get("type", "value"))
    words = TYPES.get(kind, kind)
    if kind == "array" and (item := about.get("items")):
        refs = re.findall(r"#/\$defs/(\w+)", json.dumps(item))
        inner = type_of({"$ref": f"#/$defs/{refs[-1]}"}) if refs else type_of(item)
        words = f"list of {inner}" if inner != "value" else words
    bounds = [
        f"{sign} {about[name]}"
        for name, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if name in about
    ]
    return f"{words} {', '.join(bounds)}".strip()


SECTIONS = {
    "recipe": ("a-recipe", "A recipe", "What stands at the top. `name`, `model` and `stages` have to."),
    "stages": ("stages", "", ""),
    "stage": ("stages", "Stages", "Each item of `stages:` is a stage, a loop or a comparison."),
    "repeat": ("loops", "Loops", "An item of `stages:` that has `repeat:`. Each round starts from what the round before left. [More](../variants.md)."),
    "compare": ("comparisons", "Comparisons", "An item of `stages:` that has `compare:`. [More](../variants.md)."),
    "matrix": ("matrix", "Matrix", "The recipe runs with each combination of values. Beside `pair` every key is a path, as `stages.dpo.method.beta`, `seed` or `lora.rank`, and its value a list. [More](../variants.md)."),
    "lora": ("lora", "LoRA", "The adapter. Of the recipe, or of a stage that starts from base."),
    "renderer": ("renderer", "Renderer", "How conversations become tokens. [More](../datasets.md)."),
    "limits": ("limits", "Limits", "A run stops before a bound is passed, keeps what it has, and goes on once the bound is raised."),
    "on_end": ("on-end", "On end", "Told how each try of a run ended. [More](../how-to/unattended.md#tell-somebody)."),
    "resources": ("resources", "Resources", "Read by `ptl run --jobs ray`. [More](../cluster.md)."),
    "eval": ("every-eval", "Every eval", "Beside its [own options](plugins/evals.md)."),
    "reward": ("every-reward", "Every reward", "Beside its [own options](plugins/rewards.md)."),
}  # fmt: skip


def recipe_page() -> str:
    """Every key of a recipe."""
    parts = [
        WRITTEN,
        "# Recipe keys\n\n"
        "Every key of a recipe, written from the JSON Schema that `ptl schema` prints. Keys that are not here are\n"
        "refused ([`unknown-key`](../troubleshooting.md#unknown-key)). What stands under `use:` names a plugin; its options are in\n"
        "[methods](plugins/methods.md), [datasets](plugins/datasets.md), [rewards](plugins/rewards.md), "
        "[evals](plugins/evals.md), [engines](plugins/engines.md) and [trackers](plugins/trackers.md).\n",
    ]
    last = ""
    for section, path, about in every_key():
        if section != last:
            _, title, words = SECTIONS[section]
            parts.append(
                f"\n## {title}\n\n{words}\n\n| key | type | default | meaning | example |\n|---|---|---|---|---|\n"
            )
            last = section
        name = path.removeprefix(f"{section}.") if section != "recipe" else path
        default = f"`{_plain(about['default'])}`" if about.get("default") is not None else ""
        example = EXAMPLES.get(path) or f"{section}: {{{name}: {_plain(_some(about))}}}"
        row = (f"`{name}`", type_of(about), default, _text(about), f"`{example}`")
        parts.append("| " + " | ".join(_cell(one) for one in row) + " |\n")
        if section == "stage" and path == "stage.name":
            pass
    parts.append(AROUND)
    return "".join(parts)


AROUND = """
## Expect

A mapping from results to bounds, of a recipe or of a stage: `EVAL`, `EVAL/METRIC`, `EVAL change` or `forgetting`, and a bound in quotes.
Where one does not hold, `ptl run` exits with 3 ([`gate-failed`](../troubleshooting.md#gate-failed)). [Gates in CI](../how-to/ci-gates.md).

```yaml
expect: {held_out: ">= 0.8", held_out change: "> 0", forgetting: "<= 5%"}
```

## Presets and extends

`presets:` holds named changes of the recipe; stages are addressed by name. A bare `ptl run` takes the preset `quick` where there is one,
`--preset NAME` another. `extends:` names a recipe that this one changes. What wins: `--set`, then the preset, then the recipe, then what it extends.

```yaml
extends: base.yaml
presets:
  quick: {stages: {sft: {method: {max_steps: 20}}}}
  full: {engine: tinker, model: Qwen/Qwen3-8B}
```

## Recipes by name, and locks

Where a command takes a recipe, and in `extends:`, stands a file, or one of these names:

| name | is |
|---|---|
| `sft_then_dpo` | a recipe that ships with posttrain-recipes, where no file of that name lies here |
| `ptl-chess:kqk` | the recipe `kqk` of the installed package `ptl-chess` |
| `git+https://HOST/REPOSITORY@COMMIT#PATH` | a file of a git repository at a commit, fetched once into the cache; `git+ssh://` and `git+file://` too |

A branch or a tag may change at any time and is refused, with the commit that it is now. What a recipe names beside it (data, functions) is found there.
`ptl lock RECIPE` writes `RECIPE.lock` beside it: models, data, plugins and options of every stage by content, one part for each preset that was
locked. `ptl run RECIPE --locked` refuses to run on anything else and names what differs; of other versions of Python, torch, transformers and the like it warns.
Keep it in the repository with the recipe. `ptl reproduce` compares a run's own record in the same way. Options from `${env:NAME}` are hashed with a key of this
user: on another account they differ.

A recipe may name code that runs on your machine: read one before you run it, as you would a program.

```yaml
extends: git+https://example.com/team/recipes@4f1c2d0e8b7a69583746f5e4d3c2b1a09f8e7d6c#rl/sums.yaml
model: Qwen/Qwen3-8B
```

## From the environment

`${env:NAME}` in any option of a plugin is replaced by the variable `NAME` as the recipe runs; what comes from there is never logged or stored.
`ptl` itself reads [these variables](environment.md).

```yaml
reward: {use: rubric, criteria: ["Is it polite?"], endpoint: {base_url: "https://example.com/v1", model: m, api_key: "${env:JUDGE_API_KEY}"}}
```
"""


def _some(about: Mapping[str, Any]) -> Any:
    if about.get("default") is not None:
        return about["default"]
    for form in [about, *about.get("anyOf", ())]:
        if "enum" in form:
            return form["enum"][0]
        kind = form.get("type")
        if kind in ("integer", "number"):
            return form.get("minimum", 1)
        if kind in ("string", "boolean", "array", "object"):
            return {"string": "NAME", "boolean": True, "array": [], "object": {}}[kind]
    return "..."


def _plain(value: Any) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value)


def _text(about: Mapping[str, Any]) -> str:
    return " ".join(str(about.get("description", "")).split())


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("{{", "{ {")


# --- plugins -------------------------------------------------------------------------------------

KIND_WORDS = {
    "method": ("How a stage trains", "../../methods/README.md"),
    "dataset": ("What a stage trains or measures on", "../../datasets.md"),
    "reward": ("What scores replies", "../../rewards.md"),
    "eval": ("What is measured before and after", "../../evals.md"),
    "engine": ("Where training runs", "../../servers.md"),
}


TRACKERS = """# Trackers

What hears of a run beside MLflow, which always does. None comes with the package: each stands on a library of its own.

```yaml
trackers: [tensorboard, {use: wandb, project: sums}]
```

They change no result: no fingerprint depends on them, nothing is trained again for them, and what one fails at is a warning.
[What they hear and how](../../how-to/trackers.md). `ptl plugins show NAME` has the options of one that is installed.

| `use:` | package | what it does |
|---|---|---|
"""


def trackers_page() -> str:
    """The trackers of packages that are listed."""
    from posttrain_recipes import listed

    rows = [
        f"| `{one.name}` | `pip install {package.name}` | {_cell(one.summary)} |\n"
        for package in listed.read().packages
        for one in package.plugins
        if one.kind == "tracker"
    ]
    return WRITTEN + TRACKERS + "".join(rows)


def plugin_page(kind: str) -> str:
    """Every plugin of a kind that comes with the package: what it is, and all of its options."""
    words, page = KIND_WORDS[kind]
    found = registry.load()
    own = [
        found.entries[kind][name]
        for name in found.names(kind)
        if found.entries[kind][name].distribution == "posttrain-recipes"
    ]
    parts = [
        WRITTEN,
        f"# {kind.capitalize()}s\n\n{words}. [What to use when]({page}). `ptl explain NAME` says the same in the terminal.\n",
    ]
    return "".join(parts) + "".join(_plugin(entry) for entry in own)


def _plugin(entry: Entry) -> str:
    text = inspect.cleandoc(entry.cls.__doc__ or "")
    text = re.sub(r"\n\n((?: {2,}.*\n?)+)", _fenced, text)
    facts = list(_facts(entry))
    used = _usage(entry)
    example = f"\n```yaml\n{used}\n```\n" if used else ""
    return (
        f"\n## {entry.name}\n\n{text}\n\n"
        + "".join(f"- {label}: {fact}\n" for label, fact in facts)
        + example
        + f"\n{option_table(options(entry.config))}\n"
    )


def _fenced(match: re.Match[str]) -> str:
    return f"\n\n```text\n{inspect.cleandoc(match[1])}\n```\n"


def _facts(entry: Entry) -> Iterator[tuple[str, str]]:
    cls = entry.cls
    if issubclass(cls, (Method, Eval)) and cls.takes:
        yield "data", ", ".join(t.__name__ for t in cls.takes)
    if issubclass(cls, Method):
        yield "page", f"[methods/{entry.name}](../../methods/{entry.name}.md)"
        if cls.paper:
            yield "paper", str(cls.paper)
    if entry.missing or getattr(cls, "extra", None):
        yield "needs", f"`pip install '{cls.extra}'`"


def _usage(entry: Entry) -> str:
    """A real use of the plugin in a recipe that ships."""
    for path in sorted(shipped.recipes().values()):
        for found in _uses(yaml.safe_load(path.read_text(encoding="utf-8")), entry.kind):
            if isinstance(found, dict) and found.get("use") == entry.name:
                text = yaml.safe_dump({entry.kind: found}, sort_keys=False, width=110)
                return f"# recipes/{path.name}\n{text.rstrip()}"
    return ""


def _uses(value: Any, kind: str, under: str = "") -> Iterator[Any]:
    if isinstance(value, dict):
        if under == kind:
            yield value
        for key, inner in value.items():
            yield from _uses(inner, kind, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _uses(inner, kind, under)


def option_table(found: list[Option]) -> str:
    """The options as a table, or a line that says that there are none."""
    if not found:
        return "No options."
    rows = [
        f"| `{o.name}` | {_cell(o.type)} | `{o.default}` | {_cell(o.description)} |" for o in found
    ]
    return "\n".join(["| option | type | default | meaning |", "|---|---|---|---|", *rows])


# --- commands ------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with its arguments and options."""
    parts = [
        WRITTEN,
        "# Commands\n\nEvery command of `ptl`, as its `--help` says it, and [how it may end](exit-codes.md).\n"
        "The last line of an error names its [kind](../troubleshooting.md).\n",
    ]
    # A command keeps the help option of the first context: that of `ptl` itself, for whoever is next.
    context = click.Context(cli, info_name="ptl", **cli.context_settings)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        parts.append(_command(command, click.Context(command, info_name=name, parent=context), 2))
    return "".join(parts)


def _command(command: click.Command, context: click.Context, level: int) -> str:
    title = context.command_path
    usage = " ".join(command.collect_usage_pieces(context))
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    told = f"\n{'#' * level} {title}\n\n```text\n{title} {usage}\n```\n\n{text}\n"
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in record[0]:
            rows.append(f"| `{_cell(record[0])}` | {_cell(_escaped(record[1]))} |")
    if rows:
        told += "\n" + "\n".join(["| option | meaning |", "|---|---|", *rows]) + "\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            below = click.Context(inner, info_name=name, parent=context)
            told += _command(inner, below, level + 1)
    return told


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("[", r"\[").replace("<", "&lt;").replace("*", r"\*")


# --- other tools' words -------------------------------------------------------------------------


def words_page() -> str:
    """What other libraries call an option, with what it is called here."""
    from posttrain_recipes.language import synonyms

    names: dict[str, list[str]] = {}
    for ours, words in synonyms._SAME.items():
        for word in words:
            names.setdefault(word, []).append(ours)
    rows = [
        f"| `{word}` | {' or '.join(f'`{n}`' for n in names[word])} |" for word in sorted(names)
    ]
    rest = [f"| `{word}` | {_words(text)} |" for word, text in sorted(synonyms.ELSEWHERE.items())]
    return "\n".join(
        [
            f"{WRITTEN}# Words of other tools",
            "",
            "What TRL, axolotl, verl, LLaMA-Factory, OpenRLHF and the Tinker cookbook call an option, and what it is called here. `ptl explain WORD` says",
            "the same, and a recipe with such a word is refused with ours.",
            "",
            "## Another name",
            "",
            "| there | here |",
            "|---|---|",
            *rows,
            "",
            "## Elsewhere, or not needed",
            "",
            "| there | here it |",
            "|---|---|",
            *rest,
            "",
        ]
    )


def _words(text: str) -> str:
    return _cell(re.sub(r"'([^']+)'", r"`\1`", text))


# --- errors --------------------------------------------------------------------------------------

TROUBLE = """# Troubleshooting

Every error ends in a line such as `help: ptl explain unknown-key`. The word is the kind of the error, and stands below; the
command prints the same without a network. `ptl validate --json` and `ptl data check --json` have it as `code`. What newcomers
ask besides stands in the [FAQ](faq.md).

"""


def troubleshooting_page() -> str:
    """One section for each kind of error, from the file that `ptl explain` reads."""
    text = SOURCE.read_text(encoding="utf-8")
    return WRITTEN + TROUBLE + text[text.index("## ") :]


def events_page() -> str:
    """Every event of `ptl run --events`, from their table."""
    parts = [
        WRITTEN,
        "# Events\n\n"
        "`ptl run RECIPE --events FILE` appends a line of JSON for each thing that happens; `--events -` writes them to standard output, and all else\n"
        "to stderr. `ptl schema --events` prints the JSON Schema of a line. What a program should do with them:\n\n"
        "- look at `v`, and pass over events and keys that it does not know: some may come within a version;\n"
        "- take `ended` for the end. Where it is missing, the run was killed, and the same command goes on;\n"
        "- not wait for steps in order over all stages: with `--jobs`, and of evals beside training, they mix. Each names its stage.\n\n"
        "A number that is none (NaN, an end of an interval that is not known) is null. Keys and passwords are left out, as in everything that `ptl` prints. A file that is full\n"
        "or a pipe that nobody reads ends no run: it is told once on stderr, and the next line that is written counts in `lost` what is missing before it. A reader of\n"
        "a pipe has to read: where it is there and does not, the run waits for it. Several runs may append to one file. To know how a run stands from outside, `ptl runs --json`\n"
        "needs no events; to be told of the end alone, there is [`on_end:`](../how-to/unattended.md#tell-somebody).\n\n"
        "```json\n"
        '{"v": 1, "event": "step", "time": "2026-01-02T03:04:05.678Z", "run": "mine-1", "stage": "sft", "step": 12, "total": 80, "metrics": {"train/loss": 0.51}}\n'
        "```\n",
        "\n## Every event\n\n" + _fields(event_schema_of.ALL),
    ]
    for name, (meaning, fields) in event_schema_of.EVENTS.items():
        more = (*fields, *event_schema_of.AT_AN_END) if name == "ended" else fields
        parts.append(f"\n## {name}\n\n{meaning}\n\n{_fields(more)}")
    return "".join(parts)


def _fields(fields: tuple[event_schema_of.Field, ...]) -> str:
    rows = "".join(f"| `{key}` | {_cell(meaning)} |\n" for key, _, meaning in fields)
    return f"| key | what it is |\n|---|---|\n{rows}"


MODELS = """# The bundled models

`ptl/tiny` and `ptl/nano` come with the package, so that a first run needs no network: `model: ptl/tiny`. They know a little of
everything that the shipped recipes teach, and say it unreliably, so that there is something to improve. They are no use for
anything else; [a real model](../how-to/real-model-on-a-laptop.md) is a Hugging Face id or a directory in the same place.

"""


def models_page() -> str:
    """The model cards that come with the package, without their front matter."""
    cards = []
    for name in ("tiny", "nano"):
        text = (Path(posttrain_recipes.__file__).parent / "models" / name / "README.md").read_text(
            "utf-8"
        )
        body = text.split("---\n", 2)[2].lstrip()
        cards.append(re.sub(r"^#", "##", body, flags=re.MULTILINE))
    return WRITTEN + MODELS + "\n".join(cards)


def pages() -> dict[str, str]:
    """Every page that is written from the code, by its path below `docs/`."""
    plugins = {f"reference/plugins/{kind}s.md": plugin_page(kind) for kind in KIND_WORDS}
    return {
        "reference/recipe.md": recipe_page(),
        **plugins,
        "reference/plugins/trackers.md": trackers_page(),
        "reference/events.md": events_page(),
        "reference/commands.md": commands_page(),
        "reference/words.md": words_page(),
        "reference/models.md": models_page(),
        "troubleshooting.md": troubleshooting_page(),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        target = Path("/tmp/site_reference") / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
