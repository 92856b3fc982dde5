"""What a stage leaves and when it ends, where evals during it decide: `keep` and `stop`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain_recipes.language.nodes import Key
from posttrain_recipes.planning.building import Builder
from posttrain_recipes.planning.gates import Subject
from posttrain_recipes.planning.plans import PlannedEval, Stop, Yardstick
from posttrain_recipes.plugin import DataMethod, Method
from posttrain_recipes.registry import suggest

DOES_NOT_TRAIN = "the stage takes no steps of training to evaluate between; remove it"


def ends(
    builder: Builder,
    spec: dict[str, Any],
    key: Key,
    evals: Sequence[PlannedEval],
    method: Method | None,
) -> tuple[Yardstick | None, Stop | None]:
    """What a stage's `keep` and `stop` ask for, after noting what is wrong with them."""
    trains = method is not None and not isinstance(method, DataMethod)
    for index, item in enumerate(spec["eval"] if isinstance(spec.get("eval"), list) else ()):
        if isinstance(item, dict) and "every" in item and method is not None and not trains:
            builder.fault((*key, "eval", index, "every"), DOES_NOT_TRAIN, of_key=True)
    keep, stop = spec.get("keep"), spec.get("stop")
    if not trains:
        for name in ("keep", "stop"):
            if name in spec and (method is not None or "method" not in spec):
                builder.fault((*key, name), DOES_NOT_TRAIN, of_key=True)
        return None, None
    best = ending = None
    if isinstance(keep, dict) and isinstance(keep.get("best"), str):
        best = _yardstick(builder, keep["best"], (*key, "keep", "best"), evals)
    if isinstance(stop, dict) and isinstance(after := stop.get("after"), str):
        by, where = stop.get("by"), (*key, "stop", "by" if "by" in stop else "after")
        during = [planned.name for planned in evals if planned.every]
        if isinstance(by, str):
            yardstick = _yardstick(builder, by, where, evals)
        elif best is not None or "keep" in spec:
            yardstick = best
        elif len(during) == 1:
            yardstick = Yardstick(during[0])
        else:
            yardstick = None
            what = "several evals have" if during else "no eval has"
            builder.fault(where, f"{what} an 'every:'; name the one that decides: 'by: EVAL'")
        words = after.split()
        if yardstick and words and words[0].isdigit():
            ending = Stop(yardstick, int(words[0]))
    return best, ending


def _yardstick(
    builder: Builder, text: str, key: Key, evals: Sequence[PlannedEval]
) -> Yardstick | None:
    """The metric that `text` names; None after noting why it is none that is known in time."""
    subject = Subject.parse(text)
    if subject is None or not subject.eval or subject.kind != "value":
        builder.fault(key, "names no metric; write EVAL or EVAL/METRIC")
        return None
    planned = next((one for one in evals if one.name == subject.eval), None)
    if planned is None:
        if not builder.faults:  # or it is one of the evals that have a fault of their own
            names = [one.name for one in evals]
            near = suggest(subject.eval, names) if names else "it has none"
            builder.fault(
                key, f"no eval of this stage is named '{subject.eval}'; {near}", code="unknown-name"
            )
        return None
    known = planned.eval.measures()
    if subject.metric and known and subject.metric not in known:
        near = suggest(subject.metric, sorted(known))
        builder.fault(
            key,
            f"eval '{planned.name}' has no metric '{subject.metric}'; {near}",
            code="unknown-name",
        )
    elif (metric := subject.metric or next(iter(known), "")) in planned.eval.undirected:
        others = [name for name in known if name not in planned.eval.undirected]
        named = " or ".join(f"'{planned.name}/{name}'" for name in others)
        builder.fault(
            key,
            f"neither more nor less of '{metric}' is better, so checkpoints cannot be compared by "
            f"it; name {named or 'another eval'}",
        )
    elif planned.every is None and not builder.faults:  # or it has one that is no number
        builder.fault(key, f"eval '{planned.name}' is not run during training; give it an 'every:'")
    return Yardstick(planned.name, subject.metric)


def depends_on(
    evals: Sequence[PlannedEval], keep: Yardstick | None, stop: Stop | None
) -> dict[str, Any]:
    """What the weights of a stage depend on besides its training: nothing where evals during it
    decide nothing."""
    found: dict[str, Any] = {}
    for name, yardstick, more in (
        ("keep", keep, []),
        ("stop", stop.yardstick if stop else None, [stop.patience] if stop else []),
    ):
        planned = next((one for one in evals if yardstick and one.name == yardstick.eval), None)
        if yardstick and planned:
            found[name] = [yardstick.metric, planned.fingerprint, planned.every, *more]
    return found
