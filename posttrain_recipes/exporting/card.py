"""A model card, made from what a run kept (Mitchell et al. 2019, arXiv 1810.03993)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import yaml

from posttrain_recipes import models
from posttrain_recipes.reporting import report
from posttrain_recipes.shown import cell, code, markdown, plain, redact
from posttrain_recipes.store import RunRecord
from posttrain_recipes.version import __version__

Kind = Literal["adapter", "model", "gguf"]
LIBRARY: Mapping[Kind, str] = {"adapter": "peft", "model": "transformers", "gguf": "gguf"}
RELATION: Mapping[Kind, str] = {"adapter": "adapter", "model": "finetune", "gguf": "quantized"}
UNKNOWN = "unknown"
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FILE = re.compile(r"^file:/*(?=[^/])", re.IGNORECASE)
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_HUB_ID = re.compile(rf"{_WORD.pattern}/{_WORD.pattern}")


def write(
    run: RunRecord | None,
    stage: str,
    base: str,
    kind: Kind,
    checkpoint: str,
    license: str | None = None,
    data_licences: Mapping[str, str] | None = None,
) -> str:
    """The text of a README.md, with YAML front matter as the Hugging Face hub reads it.

    Nothing that stands in a run ends a cell, a code block or the front matter.

    Args:
        run: the run that made it; None where no run on this machine names the checkpoint.
        stage: the stage of the run.
        base: the base model: a hub id, a bundled model's name, or a place on this machine.
        kind: what lies beside the card.
        checkpoint: its tinker:// path.
        license: of the base model, by the hub's name; None where it is not known.
        data_licences: of data sets by their id on the hub, as far as they are known.
    """
    name = base_name(base)
    license = license or license_of(base)
    front: dict[str, Any] = {
        "library_name": LIBRARY[kind],
        "license": license or UNKNOWN,
        "pipeline_tag": "text-generation",
        "tags": [*_tags(run, stage), *(["lora"] if kind == "adapter" else [])],
    }
    if on_hub(base):
        front["base_model"] = base
        front["base_model_relation"] = RELATION[kind]
    used = data_of(run, stage) if run else []
    if ids := [one for one in used if _HUB_ID.fullmatch(one)]:
        front["datasets"] = ids
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=True, allow_unicode=False) + "---",
        f"# {markdown(f'{run.id}/{stage}' if run else name)}",
        _what(kind, base, name, license),
        *_licences(used, data_licences or {}),
        *(_of_run(run, stage) if run else _unknown(checkpoint)),
        f"Made with posttrain-recipes {markdown((run.version if run else '') or __version__)}.",
    ]
    return "\n\n".join(parts) + "\n"


def on_hub(base: str) -> bool:
    """Whether a base model is named by an id of the hub."""
    return (
        _HUB_ID.fullmatch(base) is not None
        and not models.is_path(base)
        and base not in models.BUNDLED
        and not Path(base).is_dir()
    )


def base_name(base: str) -> str:
    """What a base model is called elsewhere: without the place where it lies on this machine."""
    for name, place in models.BUNDLED.items():
        if base in (name, str(place)):
            return name
    return base if on_hub(base) else Path(base).name


def license_of(base: str) -> str | None:
    """The licence of a base model on this machine, by the front matter of its README.md."""
    try:
        text = (Path(models.resolve(base)) / "README.md").read_text(encoding="utf-8")
        found = yaml.safe_load(text.split("---")[1]).get("license")
    except (OSError, ValueError, IndexError, AttributeError, yaml.YAMLError):
        return None
    return found if isinstance(found, str) and _WORD.fullmatch(found) else None


def data_of(run: RunRecord, stage: str) -> list[str]:
    """The data that a stage and those that it stands on were trained on or made from: ids of the
    hub, addresses, and files by their name."""
    listed = run.resolved.get("stages") if isinstance(run.resolved, Mapping) else None
    names = [one.name for one in run.stages]
    upto = set(names[: names.index(stage) + 1])
    found: dict[str, None] = {}
    for one in listed if isinstance(listed, list) else ():
        if isinstance(one, Mapping) and one.get("name") in upto and one.get("method"):
            found.update(dict.fromkeys(_sources(one.get("dataset"))))
    return list(found)


def _sources(dataset: Any) -> Iterator[str]:
    if isinstance(dataset, list | tuple):
        for part in dataset:
            yield from _sources(part)
    if not isinstance(dataset, Mapping):
        return
    path = dataset.get("path")
    if isinstance(path, str):
        parts = path.split("/")
        hub = path.startswith("hf://datasets/") and len(parts) > 4
        place = "/".join(parts[3:5]).partition("@")[0] if hub else path
        yield place if dataset.get("use") == "huggingface" or hub else _cut_data(place)
    for value in dataset.values():
        yield from _sources(value)


def _cut_data(path: str) -> str:
    """A file by its name, an address without what may be a key; never two words with a slash, which
    would read as an id of the hub."""
    return redact(path.partition("?")[0]) if "://" in path else Path(path).name


def _licences(used: Sequence[str], known: Mapping[str, str]) -> Iterator[str]:
    """What is known of the data's licences, and of which nothing is."""
    if not used:
        return
    yield "## Licences of the data"
    lines = []
    for one in used:
        said = code(known[one]) if one in known else "unknown to the program that wrote this card"
        lines.append(f"- {code(one)}: {said}")
    yield "\n".join(lines)


def _tags(run: RunRecord | None, stage: str) -> list[str]:
    method = (run.stage(stage).method if run else None) or ""
    return ["posttrain-recipes", *([method] if _WORD.fullmatch(method) else [])]


def _what(kind: Kind, base: str, name: str, license: str | None) -> str:
    what = {
        "adapter": "A LoRA adapter (PEFT) on",
        "model": "A language model: a LoRA adapter merged into",
        "gguf": "A language model in GGUF, for llama.cpp and Ollama: a LoRA adapter merged into",
    }[kind]
    told = [f"{what} {code(name)}."]
    if not on_hub(base):
        where = "comes with posttrain-recipes" if name in models.BUNDLED else "is not on the hub"
        told.append(f"That base model {where}.")
    if license:
        told.append(f"The base model's licence is {code(license)}; it holds for this one too.")
    else:
        told.append(
            "The base model's licence is unknown to the program that wrote this card: look at the "
            "base model before you use this one."
        )
    return " ".join(told)


def _unknown(checkpoint: str) -> Iterator[str]:
    yield (
        f"It is the checkpoint {code(checkpoint)} of a training server. No run is known that made "
        "it, so that the data, the recipe and the results are unknown."
    )


def _of_run(run: RunRecord, stage: str) -> Iterator[str]:
    upto = [one.name for one in run.stages].index(stage) + 1
    resolved = shareable(run.resolved)
    yield "## Training"
    lines = []
    for one in run.stages[:upto]:
        method = code(one.method) if one.method else "evaluation"
        amount = f"{one.total_steps:,} steps, {one.records:,} records" if one.method else ""
        lines.append(
            f"- {code(one.name)}: {method}"
            + (f" ({amount})" if amount else "")
            + _data(resolved, one.name)
        )
    yield "\n".join(lines)
    yield "## Results"
    yield from _results(run)
    yield "## Reproduce"
    preset = f" (preset {code(run.preset)})" if run.preset else ""
    yield (
        f"Save this recipe{preset}, seed {run.seed}, as `recipe.yaml`. Places on the machine that "
        "it ran on are cut to their last part: put your own in. Then: "
        "`pip install posttrain-recipes && ptl run recipe.yaml`"
    )
    yield fenced(redact(report.resolved_yaml(resolved)), "yaml")


def _data(resolved: Any, stage: str) -> str:
    """What the recipe says of a stage's data, in one line."""
    listed = resolved.get("stages") if isinstance(resolved, Mapping) else None
    for one in listed if isinstance(listed, list) else ():
        if isinstance(one, Mapping) and one.get("name") == stage and one.get("dataset"):
            data = one["dataset"]
            if isinstance(data, Mapping):
                data = ", ".join(f"{key}: {report.plain(value)}" for key, value in data.items())
            return f" on {code(redact(str(data)))}"
    return ""


def _results(run: RunRecord) -> Iterator[str]:
    table = report.rows(run)
    if not table:
        yield "The recipe has no evals: nothing was measured."
        return
    lines = ["| stage | eval | n | before | after | change |", "|---|---|--:|--:|--:|--:|"]
    lines += [
        f"| {cell(row.stage)} | {cell(row.label)} | {row.count} "
        f"| {report.show(row.before, row.percent)} | {report.show(row.after, row.percent)} "
        f"| {report.show_change(row)} |"
        for row in table
    ]
    yield "\n".join(lines)
    yield "± is half of a 95% confidence interval over the records of the eval."


def shareable(value: Any) -> Any:
    """A recipe without the places of one machine: of an absolute path the last part is kept."""
    if isinstance(value, Mapping):
        return {shareable(key): shareable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shareable(inner) for inner in value]
    return _cut(value) if isinstance(value, str) else value


def _cut(value: str) -> str:
    place = _FILE.sub("/", value.strip())
    if "\n" in place:
        return value
    if _WINDOWS.match(place):
        return PureWindowsPath(place).name or value
    if place.startswith("~") and "/" in place:  # of this user, or of one who is named
        return Path(place).name
    if place.startswith("/") and (place.count("/") > 1 or Path(place).exists()):
        return Path(place).name or value
    return value


def fenced(text: str, language: str) -> str:
    """A block of code that its text cannot end."""
    text = plain(text)
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
