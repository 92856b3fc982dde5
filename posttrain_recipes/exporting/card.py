"""A model card, made from what a run kept (Mitchell et al. 2019, arXiv 1810.03993)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import yaml

from posttrain_recipes import models
from posttrain_recipes.exporting import lineage
from posttrain_recipes.exporting.lineage import Ancestor
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
    sources = lineage.of(run, stage) if run else []
    used = _data_by_stage(sources)
    trained_on = [name for name, by in used.items() if any(one.data for one in by)]
    if ids := [one for one in trained_on if _HUB_ID.fullmatch(one)]:
        front["datasets"] = ids
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=True, allow_unicode=False) + "---",
        f"# {markdown(f'{run.id}/{stage}' if run else name)}",
        _what(kind, base, name, license),
        *_licences(used, data_licences or {}),
        *(_of_run(run, stage, sources) if run else _unknown(checkpoint)),
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
    """The data that a stage was trained on or made from, and those of its teachers and judges: ids
    of the hub, addresses, and files by their name."""
    return list(_data_by_stage(lineage.of(run, stage)))


def _data_by_stage(sources: Sequence[Ancestor]) -> dict[str, list[Ancestor]]:
    """Of data: the stages that used them."""
    found: dict[str, list[Ancestor]] = {}
    for one in sources:
        if one.stage.method:
            for name in dict.fromkeys(_sources(one.spec.get("dataset"))):
                found.setdefault(name, []).append(one)
    return found


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


def _licences(used: Mapping[str, Sequence[Ancestor]], known: Mapping[str, str]) -> Iterator[str]:
    """What is known of the data's licences, and of which nothing is."""
    if not used:
        return
    yield "## Licences of the data"
    lines = []
    for one, by in used.items():
        said = code(known[one]) if one in known else "unknown to the program that wrote this card"
        if not any(source.data for source in by):
            names = ", ".join(code(source.stage.name) for source in by)
            said += f"; this model was not trained on it, only {names} was"
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


def _of_run(run: RunRecord, stage: str, sources: Sequence[Ancestor]) -> Iterator[str]:
    yield "## Training"
    yield "\n".join(_trained(one) for one in sources if one.stage.method)
    if not sources[-1].spec:
        yield "The recipe below does not name this stage: what it was made from is unknown."
    yield "## Results"
    yield from _results(run, stage, sources)
    yield "## Reproduce"
    preset = f" (preset {code(run.preset)})" if run.preset else ""
    others = len(run.stages) > 1
    yield (
        f"Save this recipe{preset}, seed {run.seed}, as `recipe.yaml`. Places on the machine that "
        "it ran on are cut to their last part: put your own in. Then: "
        "`pip install posttrain-recipes && ptl run recipe.yaml`"
        + (f". This model is what its stage {code(stage)} leaves." if others else "")
    )
    yield fenced(redact(report.resolved_yaml(shareable(run.resolved))), "yaml")


def _trained(one: Ancestor) -> str:
    """A stage of the training, in a line: what it did, on what, and what it is to the model."""
    stage = one.stage
    said = f"- {code(stage.name)}"
    if one.roles:
        said += f", {' and '.join(f'{role} {code(name)}' for role, name in one.roles)}"
    end = stage.checkpoint.step if stage.checkpoint and one.trained else stage.total_steps
    kept = f", kept: step {end:,}" if end < stage.total_steps else ""
    said += (
        f": {code(stage.method or '')} "
        f"({_counted(stage.total_steps, 'step')}{kept}, {_counted(stage.records, 'record')})"
    )
    if data := shareable(one.spec.get("dataset")):
        if isinstance(data, Mapping):
            data = ", ".join(f"{key}: {report.plain(value)}" for key, value in data.items())
        said += f" on {code(redact(str(data)))}"
    if one.outside:
        said += f", from {code(one.outside)}, of which nothing is known here"
    return said


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _results(run: RunRecord, stage: str, sources: Sequence[Ancestor]) -> Iterator[str]:
    """The rows of this model, and those of the models that its weights were made from."""
    table = report.rows(run)
    kept = run.stage(stage).checkpoint
    same = {stage} | {
        one.name
        for one in run.stages
        if kept and one.checkpoint and one.checkpoint.sampler_uri == kept.sampler_uri
    }
    own = [row for row in table if row.stage in same]
    before = {one.stage.name for one in sources if one.weights} - same
    earlier = [row for row in table if row.stage in before]
    if own:
        yield _table(run, own)
    elif run.status != "finished":
        yield f"No eval has measured this model: the run is {markdown(run.status)}."
    elif table:
        yield "No eval of the run measured this model."
    else:
        yield "The recipe has no evals: nothing was measured."
    if earlier:
        yield "Of the stages that it was made from, which are other models than this one:"
        yield _table(run, earlier)
    if own or earlier:
        yield (
            "after: what the stage left; before: what it started from. ± is half of a 95% "
            "confidence interval over the records of the eval."
        )
    measured = {row.stage for row in (*own, *earlier)}
    for one in sources:
        keep = one.spec.get("keep")
        if one.stage.name in measured and isinstance(keep, Mapping) and keep.get("best"):
            name = code(one.stage.name)
            yield (
                f"The best checkpoint of {name} by {code(str(keep['best']))} was kept: that choice "
                "flatters its result."
            )


def _table(run: RunRecord, rows: Sequence[report.TableRow]) -> str:
    lines = ["| stage | eval | n | before | after | change |", "|---|---|--:|--:|--:|--:|"]
    for row in rows:
        # A stage without a method measures once, what it leaves as it is.
        alone = run.stage(row.stage).method is None
        before, after = (None, row.before) if alone else (row.before, row.after)
        lines.append(
            f"| {cell(row.stage)} | {cell(row.label)} | {row.count} "
            f"| {report.show(before, row.percent)} | {report.show(after, row.percent)} "
            f"| {report.show_change(row)} |"
        )
    return "\n".join(lines)


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
