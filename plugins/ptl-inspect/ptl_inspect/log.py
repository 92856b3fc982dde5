"""Reads Inspect's log, as `inspect log dump` prints it, as the result of an eval."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
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

LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Inspect's values for correct, partial, incorrect and no answer."""
WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
UNCERTAINTY = ("stderr", "bootstrap_stderr", "std", "var", "ci")
"""Metrics that say how sure another one is; ptl has its own intervals."""
MEANS = ("accuracy", "mean")
Log = Mapping[str, Any]


def parse(text: str) -> Log:
    """The log. Raises `PtlError` for one that is none, or of a run that did not succeed."""
    try:
        found: Log = json.loads(text)
        status, error = found["status"], found.get("error") or {}
        why = error.get("message")
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise _unreadable(fault) from None
    if status != "success":
        raise PtlError(
            f"inspect ended with status '{status}'",
            why=str(why or "its log does not say why")[:2000],
            hint="the log is in artifacts/ beside the run; 'inspect view' opens it",
        )
    return found


def _unreadable(fault: Exception) -> PtlError:
    return PtlError(
        "inspect's log cannot be read",
        why=repr(fault),
        hint="another version of inspect may write it otherwise; it is in artifacts/ beside the "
        "run",
    )


def usage(log: Log) -> tuple[int, int]:
    """Tokens that the evaluated model read and wrote; those of other models, such as a grader that
    the task names, are not of the engine."""
    used = log["stats"]["model_usage"].get(log["eval"]["model"], {})
    return used.get("input_tokens", 0), used.get("output_tokens", 0)


def number(value: Any) -> float | None:
    """A score's value as Inspect turns it into a number; None for one that is none."""
    if isinstance(value, str):
        if value in LETTERS:
            return LETTERS[value]
        if value.lower() in WORDS:
            return WORDS[value.lower()]
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None


def result(log: Log, name: str) -> EvalResult:
    """What the log says, every metric with Inspect's own value.

    What is no number, or has no score, stands in the notes.

    Raises:
        PtlError: it has no metric, or is not of Inspect's form.
    """
    try:
        return _result(log, name)
    except (LookupError, TypeError, ValueError, AttributeError) as fault:
        raise _unreadable(fault) from None


def _result(log: Log, name: str) -> EvalResult:
    ids = [str(one) for one in log["eval"]["dataset"]["sample_ids"] or ()]
    ids = ids or list(dict.fromkeys(str(sample["id"]) for sample in log["samples"] or ()))
    scored = log["results"]["scores"] if log.get("results") else []
    several = len(scored) > 1
    metrics: dict[str, Estimate] = {}
    per_record: dict[str, PerRecord] = {}
    better: dict[str, bool | None] = {}
    shown: dict[str, list[float | None]] = {}
    notes: list[str] = []
    for score in scored:
        values = _values(log, score, ids)
        without = sum(one is None for one in values)
        if without:
            notes.append(
                f"Inspect has no score of {_label(score, scored)} for {without} of {len(ids)} "
                "samples: intervals and pairs are without them."
            )
        for metric in score["metrics"].values():
            value = metric["value"]
            if metric["name"] in UNCERTAINTY:
                continue
            label = f"{_label(score, scored)}/{metric['name']}" if several else metric["name"]
            if not isinstance(value, int | float) or not math.isfinite(value):
                notes.append(f"Inspect reports {label} as {value}: left out.")
                continue
            known = [one for one in values if one is not None]
            better[label] = True if metric["name"] == "accuracy" else None
            if _is_mean(metric["name"], value, known):
                metrics[label] = _interval(known, float(value))
                per_record[label] = PerRecord(tuple(values))
                shown[label] = values
            else:  # no mean over samples, such as a median: a number without an interval
                metrics[label] = Estimate(float(value), math.nan, math.nan, len(ids))
    if not metrics:
        raise PtlError(
            f"eval '{name}': inspect's log has no metric",
            why="the task has no scorer, or none of its metrics is a number",
        )
    main = next(iter(metrics))
    better[main] = True
    return EvalResult(
        metrics,
        _samples(log, ids, shown),
        higher_is_better=better,
        scores=per_record,
        notes=tuple(notes),
    )


def _is_mean(metric: str, value: float, values: Sequence[float]) -> bool:
    """Whether a metric is the mean over samples. Of values that are all alike any other is too, so
    that only its name tells."""
    if not values or not math.isclose(math.fsum(values) / len(values), value, abs_tol=1e-9):
        return False
    return metric in MEANS or len(set(values)) > 1


def _label(score: Log, scored: Sequence[Log]) -> str:
    """What tells a score from others: its name, its scorer and reducer where it takes those."""
    parts = [str(score["name"])]
    same = [one for one in scored if one["name"] == score["name"]]
    if len({one["scorer"] for one in same}) > 1:
        parts.insert(0, str(score["scorer"]))
    if len(same) > 1 and score.get("reducer"):
        parts.append(str(score["reducer"]))
    return "/".join(parts)


def _interval(values: Sequence[float], value: float) -> Estimate:
    """Inspect's value with the interval of a share or a mean."""
    share = set(values) <= {0.0, 1.0}
    found = proportion(math.fsum(values), len(values)) if share else mean(values)
    low, high = min(found.low, value), max(found.high, value)
    if math.isnan(found.low):
        low, high = math.nan, math.nan
    return Estimate(value, low, high, len(values))


def _values(log: Log, score: Log, ids: Sequence[str]) -> list[float | None]:
    """One value for each sample, in the order of the data: its epochs reduced by Inspect."""
    found: dict[str, float | None] = {}
    for reduction in log.get("reductions") or ():
        same = reduction.get("reducer") in (None, score.get("reducer")) or not score.get("reducer")
        if reduction["scorer"] not in (score["scorer"], score["name"]) or not same:
            continue
        for one in reduction["samples"]:
            value = one["value"]
            inner = value.get(score["name"]) if isinstance(value, dict) else value
            found.setdefault(str(one["sample_id"]), number(inner))
    return [found.get(one) for one in ids]


def _samples(
    log: Log, ids: Sequence[str], scores: Mapping[str, Sequence[float | None]]
) -> tuple[Sample, ...]:
    """The first reply to every sample, in the order of the data."""
    first: dict[str, Log] = {}
    for sample in log["samples"] or ():
        first.setdefault(str(sample["id"]), sample)
    found = []
    for place, one in enumerate(ids):
        sample = first.get(one)
        if sample is None:
            continue
        output = sample.get("output") or {}
        choices = output.get("choices") or [{}]
        values = {name: each[place] for name, each in scores.items()}
        target = sample["target"]
        found.append(
            Sample(
                prompt=_messages(sample["input"]),
                completion=str(output.get("completion") or ""),
                answer=target if isinstance(target, str) else "; ".join(target),
                scores={name: value for name, value in values.items() if value is not None},
                truncated=choices[0].get("stop_reason") == "max_tokens",
            )
        )
    return tuple(found)


def _messages(asked: Any) -> tuple[Message, ...]:
    if isinstance(asked, str):
        return (Message("user", asked),)
    return tuple(Message(one["role"], _text(one["content"])) for one in asked)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text") or f"[{part.get('type')}]" for part in content)
