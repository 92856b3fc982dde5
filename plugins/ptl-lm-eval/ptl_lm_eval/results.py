"""Reads what lm-eval wrote, its results and its samples, as the result of an eval."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain_recipes.plugin import (
    Estimate,
    EvalResult,
    Message,
    PerRecord,
    PtlError,
    Sample,
)
from posttrain_recipes.training import mean, proportion

log = logging.getLogger(__name__)
Row = Mapping[str, Any]
"""A document with its reply and its scores, by one filter."""


@dataclass(frozen=True)
class Told:
    """What lm-eval wrote."""

    results: Mapping[str, Any]
    """`results_TIME.json`."""
    rows: Mapping[str, Sequence[Row]]
    """By task, the lines of `samples_TASK_TIME.jsonl` in the order of the documents."""


@dataclass(frozen=True)
class Metric:
    """A number that lm-eval reports."""

    label: str
    """What it is called in the eval."""
    name: str
    """As a row has it."""
    filter: str
    value: float
    tasks: tuple[str, ...]
    """Whose documents it is over: a task, or those of a group."""
    higher_is_better: bool | None


def parse(results: str, samples: Mapping[str, str]) -> Told:
    """From the texts of its files. Raises `PtlError` where they are not of that form."""
    try:
        found = json.loads(results)
        rows = {
            task: sorted(
                (json.loads(line) for line in text.split("\n") if line.strip()),
                key=lambda row: int(row["doc_id"]),
            )
            for task, text in samples.items()
        }
        return Told({**found, "results": {**found["results"]}}, rows)
    except (ValueError, KeyError, TypeError) as fault:
        raise _unreadable(fault) from None


def _unreadable(fault: Exception) -> PtlError:
    return PtlError(
        "lm-eval's results cannot be read",
        why=repr(fault),
        hint="another version of lm-eval may write them otherwise; they are in artifacts/ beside "
        "the run",
    )


def metrics(told: Told) -> Iterator[Metric]:
    """All that is reported, groups first."""
    groups = told.results.get("groups") or {}
    reported = {**groups, **told.results["results"]}
    for task, found in reported.items():
        keys = [key.partition(",") for key in found if "," in key]
        for name, _, kind in keys:
            value = found[f"{name},{kind}"]
            if name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                continue
            several = sum(other == name for other, _, _ in keys) > 1
            label = f"{name}/{kind}" if several else name
            better = (told.results.get("higher_is_better") or {}).get(task) or {}
            yield Metric(
                label if len(reported) == 1 else f"{task}/{label}",
                name,
                kind,
                float(value),
                tuple(_leaves(told, task)),
                better.get(name),
            )


def _leaves(told: Told, task: str) -> Iterator[str]:
    """The task itself, or those within a group."""
    inner = (told.results.get("group_subtasks") or {}).get(task)
    if not inner:
        yield task
    for one in inner or ():
        yield from _leaves(told, one)


def result(told: Told, name: str) -> EvalResult:
    """Every metric with lm-eval's own value.

    What is no number, or has no samples, stands in the notes.

    Raises:
        PtlError: there is none, or the samples are not of lm-eval's form.
    """
    try:
        return _result(told, name)
    except (LookupError, TypeError, ValueError, AttributeError) as fault:
        raise _unreadable(fault) from None


def _result(told: Told, name: str) -> EvalResult:
    found: dict[str, Estimate] = {}
    per_record: dict[str, PerRecord] = {}
    better: dict[str, bool | None] = {}
    shown: dict[str, dict[str, dict[int, float]]] = {}
    for metric in metrics(told):
        better[metric.label] = metric.higher_is_better
        values = _values(told, metric)
        known = [value for value in values if value is not None]
        if known and math.isclose(math.fsum(known) / len(known), metric.value, abs_tol=1e-9):
            found[metric.label] = _interval(known, metric.value)
            per_record[metric.label] = PerRecord(tuple(values))
            if len(metric.tasks) == 1:
                task = metric.tasks[0]
                shown.setdefault(task, {})[metric.label] = {
                    place: value for place, value in enumerate(values) if value is not None
                }
        else:  # no mean over documents, such as a perplexity: a number without an interval
            count = len(values) or sum(_count(told, task) for task in metric.tasks)
            found[metric.label] = Estimate(metric.value, math.nan, math.nan, max(1, count))
    if not found:
        raise PtlError(f"eval '{name}': lm-eval reported no number")
    samples = tuple(
        _sample(row, {label: each[place] for label, each in scores.items() if place in each})
        for task in told.rows
        for scores in [shown.get(task, {})]
        for place, row in enumerate(_first(told.rows[task]))
    )
    return EvalResult(
        found, samples, higher_is_better=better, scores=per_record, notes=tuple(_notes(told))
    )


def _notes(told: Told) -> Iterator[str]:
    """What is missing in the numbers."""
    groups = told.results.get("groups") or {}
    for task, found in {**groups, **told.results["results"]}.items():
        for key, value in found.items():
            name, comma, _ = key.partition(",")
            if not comma or name.endswith("_stderr"):
                continue
            if not isinstance(value, int | float) or not math.isfinite(value):
                yield f"lm-eval reports {name} of {task} as {value}: left out."
    for task in told.results["results"]:
        if (told.results.get("group_subtasks") or {}).get(task):
            continue
        kept, count = len(_first(told.rows.get(task, ()))), _count(told, task)
        if kept < count:
            yield (
                f"lm-eval kept samples of {kept} of the {count} documents of {task}: "
                "intervals and pairs are of those alone."
            )


def _values(told: Told, metric: Metric) -> list[float | None]:
    """One value for each document, in their order."""
    found: list[float | None] = []
    for task in metric.tasks:
        for row in told.rows.get(task, ()):
            if row["filter"] == metric.filter:
                value = row.get(metric.name)
                if isinstance(value, bool | int | float) and math.isfinite(value):
                    found.append(float(value))
                else:
                    found.append(None)
    return found


def _count(told: Told, task: str) -> int:
    counted = (told.results.get("n-samples") or {}).get(task) or {}
    return int(counted.get("effective", 0))


def _interval(values: Sequence[float], value: float) -> Estimate:
    """lm-eval's value with the interval of a share or a mean."""
    share = set(values) <= {0.0, 1.0}
    found = proportion(math.fsum(values), len(values)) if share else mean(values)
    if math.isnan(found.low):
        return Estimate(value, math.nan, math.nan, len(values))
    return Estimate(value, min(found.low, value), max(found.high, value), len(values))


# --- what was asked and replied ------------------------------------------------------------------


def _first(rows: Sequence[Row]) -> list[Row]:
    """The rows of the first filter: one for each document. None where nothing was kept."""
    return [row for row in rows if row["filter"] == rows[0]["filter"]]


def _arguments(row: Row) -> list[tuple[Any, Any]]:
    return [(one.get("arg_0"), one.get("arg_1")) for one in row["arguments"].values()]


def _sample(row: Row, scores: Mapping[str, float]) -> Sample:
    """The prompt with the reply, or with the likeliest continuation where likelihoods decide."""
    arguments = _arguments(row)
    prompt, written = arguments[0][0], ""
    if isinstance(arguments[0][1], dict):
        written = str(row["resps"][0][0])
    elif arguments[0][1] is not None:
        likely = [_likelihood(one) for one in row["resps"]]
        written = str(arguments[likely.index(max(likely))][1])
    return Sample(_messages(prompt), written, answer=str(row.get("target", "")), scores=scores)


def _likelihood(reply: Any) -> float:
    """The log-probability of `[["-14.7", "False"]]`."""
    while isinstance(reply, list) and reply:
        reply = reply[0]
    try:
        return float(reply)
    except (TypeError, ValueError):
        return -math.inf


def _messages(prompt: Any) -> tuple[Message, ...]:
    """The prompt; of a conversation, which is kept as JSON in a list, its messages."""
    if isinstance(prompt, list) and len(prompt) == 1:
        try:
            turns = json.loads(prompt[0])
            return tuple(Message(one["role"], str(one["content"])) for one in turns)
        except (ValueError, TypeError, KeyError):
            pass
    return (Message("user", str(prompt)),)


def usage(told: Told, tokenizer: str) -> tuple[int, int]:
    """About how many tokens were read and written: lm-eval does not say, so that they are counted
    in what it keeps of requests and replies."""
    try:
        from transformers import AutoTokenizer

        encode = AutoTokenizer.from_pretrained(tokenizer).encode
    except Exception as error:  # of a library that raises what it likes
        log.warning("tokens that lm_eval took are not counted: %s", error)
        return 0, 0
    read, written = 0, 0
    for rows in told.rows.values():
        for row in _first(rows) if rows else ():
            for place, (prompt, rest) in enumerate(_arguments(row)):
                text = "\n".join(message.content for message in _messages(prompt))
                if isinstance(rest, dict):
                    written += sum(len(encode(str(one))) for one in row["resps"][place])
                elif rest is not None:
                    text += str(rest)
                read += len(encode(text))
    return read, written
