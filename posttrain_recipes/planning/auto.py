"""Options that a recipe leaves open and that follow from its data: numbers from the plan on.

A class of options marks them (`FromData`). What is found for one is a number in its plugin's
options before anything is fingerprinted: so it is kept with the run, shown by `ptl plan`, and the
same before and after training and in every branch of a comparison. Only files of this machine are
read, some of their records, and no more is asked of a tokenizer than `tokens` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from posttrain_recipes import hub
from posttrain_recipes.conversion import REPLY, convert
from posttrain_recipes.language.flat import Origin
from posttrain_recipes.language.nodes import Key
from posttrain_recipes.options import FromData
from posttrain_recipes.planning import tokens
from posttrain_recipes.planning.building import Builder
from posttrain_recipes.planning.plans import Data, PlannedStage, model_location
from posttrain_recipes.plugin import Dataset, Plugin, Prompt, Record, Task
from posttrain_recipes.records import Message
from posttrain_recipes.workload import CountTokens

READ = 1000
"""Records that are read, the first ones."""
COUNTED = 250
"""Of those that are counted, at equal distances: a plan is made in a moment."""
SHARE = 0.95
"""Of the answers, that are to fit."""
MARGIN = 1.25
"""Replies may be so many times as long as those answers."""
STEP = 16
"""Numbers are rounded up to a multiple of it."""


def reply_tokens(lengths: Sequence[int]) -> tuple[int, int]:
    """What a reply may have in tokens, from those of the answers; and the length of the answer
    that 95% of them are not longer than. There has to be one answer at least."""
    longest = sorted(lengths)[math.ceil(SHARE * len(lengths)) - 1]
    return max(STEP, math.ceil(longest * MARGIN / STEP) * STEP), longest


def resolve(
    builder: Builder, plugin: Plugin | None, data: Data | None, wants: type[Record]
) -> None:
    """Fill in what the recipe leaves open of a plugin's options, and note it in the plan."""
    if plugin is None or data is None:
        return
    config = plugin.config
    for name, info in type(config).model_fields.items():
        if FromData.REPLY_TOKENS not in info.metadata or name in config.model_fields_set:
            continue
        found, why = _of_answers(builder, data, wants)
        value = getattr(config, name) if found is None else found
        filled = config.model_copy(update={name: value})
        try:
            type(config).model_validate(filled.model_dump())
        except ValidationError as error:
            told = error.errors()[0]["msg"].removeprefix("Value error, ")
            why = f"{value} would follow from the data, but {told}"
            value = getattr(config, name)
        else:
            plugin.config = filled
        builder.pins[f"{plugin.name}: {name} {value}: {why}"] = None


def written_out(resolved: Any, origins: Sequence[Origin], stages: Sequence[PlannedStage]) -> Any:
    """The resolved recipe with the numbers that its methods and evals have in place of what it
    leaves open; one that variants of a stage differ in stays open."""
    found: dict[tuple[Key, str], set[Any]] = {}
    above: dict[str, Key] = {}
    for origin, stage in zip(origins, stages, strict=True):
        for key, plugin in _written(resolved, origin.key, stage, above):
            for name, info in type(plugin.config).model_fields.items():
                if FromData.REPLY_TOKENS in info.metadata:
                    found.setdefault((key, name), set()).add(getattr(plugin.config, name))
    for (key, name), numbers in found.items():
        if len(numbers) == 1:
            _at(resolved, key).setdefault(name, *numbers)
    return resolved


def _written(
    resolved: Any, key: Key, stage: PlannedStage, above: dict[str, Key]
) -> Iterator[tuple[Key, Plugin]]:
    """Where the method and the evals of a stage are written: in it, in a comparison around it, or,
    where it has their names alone, `above`."""
    if stage.method is not None and "method" in _at(resolved, key):
        yield (*key, "method"), stage.method
    places: dict[str, Key] = {}
    for depth in range(len(key), 0, -1):
        block = _at(resolved, key[:depth])
        evals = block.get("eval") if isinstance(block, dict) else None
        for index, item in enumerate(evals if isinstance(evals, list) else ()):
            if isinstance(item, dict):
                name = str(item.get("name", item.get("use")))
                places.setdefault(name, (*key[:depth], "eval", index))
            elif item in above:
                places.setdefault(item, above[item])
    above |= places
    for planned in stage.evals:
        if planned.name in places:
            yield places[planned.name], planned.eval


def _at(value: Any, key: Key) -> Any:
    for part in key:
        value = value[part]
    return value


def _of_answers(builder: Builder, data: Data, wants: type[Record]) -> tuple[int | None, str]:
    """The number that follows from the answers, or None; and why, in words. It is found once for
    the same data, whichever stage asks first: branches of a comparison get the same, also those of
    several models, where it is the greatest that the answers are by any one's tokenizer."""
    # The test split, and what is trained on, are of one file.
    key = f"{Data(data.dataset, data.key, 0).identity()} {wants.__name__}"
    if key not in builder.answers:
        builder.answers[key] = _look(builder, data, wants)
    return builder.answers[key]


def _look(builder: Builder, data: Data, wants: type[Record]) -> tuple[int | None, str]:
    label = data.label.removesuffix(" (test split)")
    if data.made_by:
        return None, f"{label} are not made yet"
    if issubclass(wants, Task):
        return None, f"{label} is an environment, which has no answers to go by"
    if not _is_local(data.dataset):
        return None, f"{label} is not a file of this machine, whose answers could be counted"
    counts: dict[str, CountTokens] = {}
    for model in _models(builder):
        counter = _counter(builder, model)
        if counter is None:
            return None, f"the tokenizer of {model} is not on this machine to count {label}"
        counts[model] = counter
    limit = min(READ, data.dataset.config.limit or READ)
    try:
        read = [convert(record, wants) for record in islice(data.dataset.load(), limit)]
        records = read[:: math.ceil(len(read) / COUNTED) or 1]
        every = {model: _lengths(records, count) for model, count in counts.items()}
    except Exception:  # whoever reads it to its end says what is wrong
        return None, f"{label} cannot be read"
    if not all(every.values()):
        return None, f"{label} has no answers to go by"
    model = max(every, key=lambda name: reply_tokens(every[name]))
    number, longest = reply_tokens(every[model])
    some = len(records) < len(read) or len(read) == READ
    whose = f"{len(every[model]):,} answers in {label}" if some else f"the answers in {label}"
    by = f" of {model}, the most of {len(every)} models" if len(every) > 1 else ""
    return number, f"95% of {whose} have at most {longest} tokens{by}"


def _models(builder: Builder) -> list[str]:
    """The base models of the recipe's stages, in an order that is none of theirs."""
    data = builder.recipe.data
    own = {spec["model"] for spec in data["stages"] if isinstance(spec.get("model"), str)}
    shared = {data["model"]} if any("model" not in spec for spec in data["stages"]) else set()
    return sorted(own | {name for name in shared if isinstance(name, str)} | {builder.model})


def _lengths(records: Sequence[Record], count: CountTokens) -> list[int]:
    return [length for record in records if (length := _answer(record, count)) is not None]


def _answer(record: Record, count: CountTokens) -> int | None:
    """Tokens of a record's answer with the one that ends it; None where it has none."""
    if isinstance(record, Prompt):
        said = record.metadata.get(REPLY, record.answer)
        asked = record.messages
    else:
        messages = getattr(record, "messages", ())
        if not messages or messages[-1].role != "assistant":
            return None
        said, asked = messages[-1].content, messages[:-1]
    if not isinstance(said, str) or not asked:
        return None
    return max(1, count((*asked, Message("assistant", said))) - count(asked))


def _is_local(dataset: Dataset) -> bool:
    """Whether all that it reads are files of this machine."""
    if dataset.sources:
        return all(_is_local(part) for parts in dataset.sources.values() for part in parts)
    path = getattr(dataset, "path", None)
    return isinstance(path, Path) and path.is_file()


def _counter(builder: Builder, model: str) -> CountTokens | None:
    location = model_location(model, builder.recipe.base_dir)
    if tokens.tokenizer_file(location) is None and builder.ask:
        # A run needs it anyhow; and the next plan, made when it is there, has to come to the same.
        hub.fetch_tokenizer(location)
    return _counts(location, builder.renderer.chat_template)


@cache
def _counts(location: str, template: str | None) -> CountTokens | None:
    return tokens.counter(location, template)
