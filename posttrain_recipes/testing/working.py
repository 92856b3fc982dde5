"""Checks that let a plugin work: on small records, methods and evals on the embedded engine."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain_recipes import api
from posttrain_recipes.engines import kept_running
from posttrain_recipes.plugin import DataMethod, Dataset, Eval, Method, Reward
from posttrain_recipes.records import Conversation, Estimate, Record, Sample
from posttrain_recipes.registry import Entry
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.store import made_path
from posttrain_recipes.testing import flipping, hearing, records
from posttrain_recipes.testing.environments import environment_checks
from posttrain_recipes.testing.findings import Complaints, Finding, Skip, placeholder, run_check

MODEL = "ptl/nano"
ADAPTER = "adapter_model.safetensors"
QUICK = {"max_steps": 4, "batch_size": 4, "save_every": 1}
"""What a method's options are for a check, where it has them and they are not given."""
NEAR = 1e-5
"""How far `nll` of two runs may lie apart, in nats a token, whose sums had other last bits."""
CRASH_AFTER = 3
"""The step after which a run is ended to see whether it goes on to the same result."""


def work_checks(entry: Entry, options: dict[str, Any]) -> list[Finding]:
    """Every check that lets the plugin work."""
    checks = _MAKING if issubclass(entry.cls, DataMethod) else _CHECKS[entry.kind]
    found = [run_check(check, told, entry, options) for check, told in checks]
    return found + (environment_checks(entry, options) if entry.kind == "dataset" else [])


def _make(entry: Entry, options: Mapping[str, Any]) -> Any:
    missing = [
        name
        for name, option in entry.config.model_fields.items()
        if option.is_required() and name not in options
    ]
    if missing:
        raise Skip(f"needs its options: {', '.join(f'--set {name}=...' for name in missing)}")
    return entry.cls(entry.config.model_validate(options))


# --- datasets ------------------------------------------------------------------------------------


def _loads(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    dataset: Dataset = _make(entry, options)
    yield from (f"option '{option}': {told}" for option, told in dataset.problems())
    found = list(dataset.load())
    if not found:
        yield "it has no records"
    strange = {type(r).__name__ for r in found if not isinstance(r, Record)}
    if strange:
        yield f"it yields {', '.join(sorted(strange))} and not records"
    said = dataset.record_type()
    if found and said is not None and not isinstance(found[0], said):
        yield f"record_type() says {said.__name__}, and the first is a {type(found[0]).__name__}"
    if any(isinstance(r, Record) and not r.source for r in found):
        yield "records lack a 'source', by which errors name them"


def _loads_again(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    first: Dataset = _make(entry, options)
    second: Dataset = _make(entry, options)
    for name, value in flipping.idle(first.config).items():
        if list(_make(entry, {**options, name: value}).load()) != list(first.load()):
            yield f"option '{name}' is marked as changing no result, and changes records"
    if list(first.load()) != list(second.load()):
        yield "it yields other records, or another order, the second time"
    if first.digest() != second.digest():
        yield "its digest() is another one the second time, so no stage would ever be reused"


# --- rewards -------------------------------------------------------------------------------------


def _score(entry: Entry, options: Mapping[str, Any], samples: Sequence[Sample]) -> Sequence[Any]:
    reward: Reward = _make(entry, options)
    if type(reward).open is not Reward.open:
        raise Skip("it asks a model, which this check does not start")
    return reward.score(samples)


def _scores(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    samples = records.samples()
    scores = _score(entry, options, samples)
    if len(scores) != len(samples):
        yield f"{len(samples)} samples got {len(scores)} scores"
    for sample, score in zip(samples, scores, strict=False):
        real = isinstance(score, int | float) and math.isfinite(score)
        if score is not None and not real:
            yield f"the reply {sample.completion[:20]!r} got {score!r}, not a finite number or None"
    if len(_score(entry, options, [])):
        yield "no samples got scores"
    _exercised(scores)


def _exercised(scores: Sequence[Any]) -> None:
    """Raise `Skip` where every sample abstained."""
    if all(score is None for score in scores):
        raise Skip(
            f"it abstained from all {len(scores)} replies, so that no score of it was seen; give "
            "it options with which it scores a reply to 'What is 3 plus 4?': --set OPTION=VALUE"
        )


def _scores_again(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    samples = records.samples()
    first = list(_score(entry, options, samples))
    if first != list(_score(entry, options, samples)):
        yield "it scores the same replies otherwise the second time"
    if first != list(_score(entry, options, samples[::-1]))[::-1]:
        yield "a reply's score depends on the replies beside it"
    idle = flipping.idle(_make(entry, options).config)
    for name, value in idle.items():
        if first != list(_score(entry, {**options, name: value}, samples)):
            yield f"option '{name}' is marked as changing no result, and changes scores"
    _exercised(first)


# --- methods and evals: on the engine ------------------------------------------------------------


class _Crash(BaseException):
    """Stands for a machine that dies: a reporter that merely fails ends no run."""


@dataclass
class _EventLog(Reporter):
    """Records a run's events: the number and the metrics of each step."""

    crash_after: int | None = None
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)

    def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        """Keep it, and die where that is asked for."""
        self.metrics[number] = dict(metrics)
        self.steps.append(number)
        if number == self.crash_after:
            raise _Crash


@dataclass
class _Bench:
    """A directory with a recipe that has the plugin in it."""

    path: Path
    recipe: Path

    def run(
        self, events: _EventLog, *, fresh: bool = True, options: Mapping[str, Any] | None = None
    ) -> api.Result:
        """Run the recipe from nothing, or go on with the run that was ended.

        Args:
            options: the plugin's, in place of those that the recipe has.
        """
        told = [f"{self.option}.{name}={json.dumps(v)}" for name, v in (options or {}).items()]
        home = self.path / "home"
        return api.run(self.recipe, home=home, fresh=fresh, reporter=events, overrides=told)

    option: str = "stages.check.method"
    """Where the plugin's options stand."""

    def made(self, result: api.Result) -> dict[str, bytes]:
        """The files of the records that a run made, by name; those with a record alone."""
        folder = made_path(self.path / "home" / "runs" / result.run_id, "check")
        found = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
        return {name: content for name, content in found.items() if content.strip()}

    def weights(self, result: api.Result) -> bytes:
        """The adapter that a run ended in, as its file; nothing where it trained none."""
        from posttrain_recipes.engine.storage.checkpoints import CheckpointStore, parse_path

        made = result["check"].checkpoint
        if made is None or made.sampler_uri is None:
            return b""
        kept = CheckpointStore(self.path / "home" / "engine")
        return (kept.folder(parse_path(made.sampler_uri)) / ADAPTER).read_bytes()


@contextmanager
def _bench(entry: Entry, options: Mapping[str, Any]) -> Iterator[_Bench]:
    with tempfile.TemporaryDirectory(prefix="ptl-check-") as folder:
        path = Path(folder)
        stage: dict[str, Any] = {"name": "check"}
        judge = {"use": "jsonl", "path": str(records.write(Conversation, path / "held_out.jsonl"))}
        watch: dict[str, Any] = {"use": "nll", "name": "watch", "dataset": judge}
        spec = {"use": entry.name, **options}
        if issubclass(entry.cls, Method):
            quick = {k: v for k, v in QUICK.items() if k in entry.config.model_fields}
            data = records.write(entry.cls.takes[0], path / "train.jsonl")
            stage |= {
                "dataset": {"use": "jsonl", "path": str(data)},
                "method": {**quick, **spec},
                "eval": [watch],
            }
            if entry.cls.takes_reward:
                # Replies of one prompt score otherwise, or there were nothing to learn from.
                stage["reward"] = {"use": "length", "unit": "characters", "most": 0, "slack": 200}
        else:
            assert issubclass(entry.cls, Eval)
            own: dict[str, Any] = {}
            if entry.cls.takes and not set(entry.cls.data_options) & options.keys():
                data = records.write(entry.cls.takes[0], path / "data.jsonl")
                own = {"dataset": {"use": "jsonl", "path": str(data)}}
            stage["eval"] = [{"name": "watch", **own, **spec}]
        recipe = path / "recipe.yaml"
        # JSON is YAML.
        recipe.write_text(json.dumps({"name": "check", "model": MODEL, "stages": [stage]}))
        with kept_running():
            yield _Bench(path, recipe)


def _watched(result: api.Result) -> Mapping[str, Estimate]:
    return result["check"].after["watch"]


def _differ(
    first: Mapping[str, Estimate], second: Mapping[str, Estimate], tolerance: float
) -> list[str]:
    return [
        f"{name} {first[name].value:.6g} against {second[name].value:.6g}"
        for name in first
        if abs(first[name].value - second[name].value) > tolerance
    ]


def _trains(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    """One run, the same run again, and one that dies in the middle and goes on."""
    _make(entry, options)
    with _bench(entry, options) as bench:
        events, again, dying, rising = _EventLog(), _EventLog(), _EventLog(CRASH_AFTER), _EventLog()
        first = bench.run(events)
        if first["check"].checkpoint is None:
            yield "it left no checkpoint"
        if not events.steps:
            yield "it logged no step: call stage.sink.log(metrics, step) after each"
        for step, metrics in events.metrics.items():
            for name, value in metrics.items():
                if not math.isfinite(value):
                    yield f"{name} is {value} at step {step}"
        if not events.steps:
            return
        second = bench.run(again)
        for told in _differ(_watched(first), _watched(second), NEAR):
            yield f"two runs with one seed end differently ({told}); draw from stage.seed alone"
        yield from _changes_no_weight(entry, options, bench, [first, second])
        if len(events.steps) <= CRASH_AFTER:
            raise Skip(f"it took {len(events.steps)} steps, too few to be interrupted")
        try:
            bench.run(dying)
        except _Crash:
            pass
        else:
            yield f"it did not reach step {CRASH_AFTER}"
            return
        third = bench.run(rising, fresh=False)
        assert issubclass(entry.cls, Method)
        if rising.steps and rising.steps[0] == 1 and not entry.cls.starts_over:
            yield "after a crash it began at step 1 again: save checkpoints, start at stage.resume"
        for told in _differ(_watched(first), _watched(third), 1e-4):
            yield f"a run that was interrupted ends differently ({told})"
        if not _differ(first["check"].before["watch"], _watched(first), 0.0):
            raise Skip(
                "it left the weights as they were, so that it was not seen to learn: a check has 4 "
                "steps on a few small records; give it options with --set OPTION=VALUE"
            )


def _makes(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    """Two runs of a method that makes data, and what they made."""
    _make(entry, options)
    with _bench(entry, options) as bench:
        first = bench.made(bench.run(_EventLog()))
        if not first:
            raise Skip("it made no record, so that nothing of it was seen")
        if bench.made(bench.run(_EventLog())) != first:
            yield "it makes other records the second time; draw from stage.seed alone"


REPEATS = 4
"""Runs with an option flipped, and without, in which the weights may be the same to the bit."""


def _changes_no_weight(
    entry: Entry, options: Mapping[str, Any], bench: _Bench, runs: Sequence[api.Result]
) -> Iterable[str]:
    """Options that are marked as changing no result, and do: all at once, then each by itself.

    Args:
        runs: results without them.
    """
    quick = {k: v for k, v in QUICK.items() if k in entry.config.model_fields}
    idle = flipping.idle(entry.config.model_validate(placeholder({**quick, **options}, entry)))

    # On a busy machine requests join other batches, and sums have other last bits: of either side
    # there are a few outcomes then. An option that changes the weights has none in common; where
    # replies are sampled and learned from, no two runs may have, and what they end in is near.
    unflipped = {bench.weights(run) for run in runs}

    def same(flipped: Mapping[str, Any]) -> bool:
        found: set[bytes] = set()
        for _ in range(REPEATS if len(unflipped) == 1 else 1):
            result = bench.run(_EventLog(), options=flipped)
            found.add(bench.weights(result))
            if found & unflipped:
                return True
            unflipped.add(bench.weights(bench.run(_EventLog())))
        near = len(unflipped) > 1 and not _differ(_watched(runs[0]), _watched(result), NEAR)
        return bool(found & unflipped) or near

    if not idle or not all(unflipped) or same(idle):
        return
    for name, value in idle.items():
        if not same({name: value}):
            yield f"option '{name}' is marked as changing no result, and changes the weights"


def _evaluates(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    made: Eval = _make(entry, options)
    if made.own_data() and not set(made.data_options) & options.keys():
        raise Skip("it brings its own data, which may be far: give it a file, as --set path=FILE")
    if not made.takes and not options:
        raise Skip("it calls a suite, which may be long: say with --set what of it is to be run")
    with _bench(entry, options) as bench:
        first = _watched(bench.run(_EventLog()))
        if not first:
            yield "its result has no metric"
        for name, estimate in first.items():
            if not estimate.low <= estimate.value <= estimate.high:
                yield f"{name}: the value lies outside its own interval"
            if estimate.count < 1:
                yield f"{name}: 'count' should be the number of records"
        for told in _differ(first, _watched(bench.run(_EventLog())), 1e-6):
            yield f"it finds something else the second time ({told}); draw from context.seed alone"


def _reachable(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    raise Skip("engines are tried by running a recipe on them")


_CHECKS: dict[str, tuple[tuple[str, Complaints], ...]] = {
    "dataset": (
        ("it yields records", _loads),
        ("it yields the same ones each time", _loads_again),
    ),
    "reward": (
        ("it scores whatever a model may write", _scores),
        ("it scores each reply by itself", _scores_again),
    ),
    "method": (("it trains, the same each time and after a crash", _trains),),
    "eval": (("it measures, the same each time", _evaluates),),
    "engine": (("it answers", _reachable),),
    "tracker": hearing.checks(_make),
}
_MAKING: tuple[tuple[str, Complaints], ...] = (
    ("it makes records, the same ones each time", _makes),
)
"""Of a method that makes data: it trains nothing."""
