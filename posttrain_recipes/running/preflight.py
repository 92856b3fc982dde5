"""Checks before a run: what will or may go wrong, found before anything is spent.

The cheap checks run at the start of every run; `ptl preflight` also asks the engine and reads all
of the data.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from posttrain_recipes import private
from posttrain_recipes.errors import PtlError
from posttrain_recipes.machine import available_memory
from posttrain_recipes.options import ModelRef, references
from posttrain_recipes.planning import costs, memory, needs, overlap, pricing
from posttrain_recipes.planning.data import load_records, open_records
from posttrain_recipes.planning.plans import Data, Plan, PlannedStage
from posttrain_recipes.plugin import Reward
from posttrain_recipes.records import Prompt, Record, Sample
from posttrain_recipes.running import (
    activity,
    death,
    firstlook,
    hearing,
    telling,
    tokenizers,
    weights,
)
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.running.findings import PreflightFinding
from posttrain_recipes.running.serving import Serving, locations
from posttrain_recipes.running.texts import Texts
from posttrain_recipes.store import RunRecord
from posttrain_recipes.training.rl.scoring import scores_of
from posttrain_recipes.waiting import EngineWaiter

FREE_BYTES = 1 << 30
"""Less free disk space than this, in bytes, is a warning."""
SDK = ("0.38", "1")
"""The first version of the SDK that is known to work, and the first that is not."""
TRIED = 8
"""Prompts that rewards are tried on."""


def cheap(plan: Plan, home: Path) -> Iterator[PreflightFinding]:
    """What is found without an engine and without reading much."""
    yield _disk(home)
    yield _sdk()
    yield from _splits(plan)
    yield from _reward_models(plan)
    yield from _prices(plan, home)
    if plan.on_end is not None:
        yield _on_end(plan)
    if plan.trackers:
        yield _trackers(plan)


def room(plan: Plan) -> Iterator[PreflightFinding]:
    """Stages that may take more memory than there is, where the engine is of this machine."""
    there = available_memory()
    for stage in plan.stages:
        taken = memory.of_stage(plan, stage)
        if taken is None or there is None:
            continue
        text = f"{taken}; {there / 2**30:.1f} GiB are free"
        if taken.bytes > there:
            yield PreflightFinding(f"memory of {stage.name}", "warning", text, taken.hint)
        else:
            yield PreflightFinding(f"memory of {stage.name}", "ok", text)


def held_out(plan: Plan, limit: int | None = overlap.RUN_BYTES) -> Iterator[PreflightFinding]:
    """Evals that measure on what is trained on, as far as `limit` bytes of files tell (None: all
    data are read)."""
    for found in overlap.find(plan, limit):
        name = f"data of {found.stage}, eval {found.eval}"
        yield PreflightFinding(name, "warning", str(found), found.hint)


def data(plan: Plan) -> Iterator[PreflightFinding]:
    """Every data set, read to its end as stages and evals will read it."""
    seen: set[str] = set()
    for where, source, wants in _sources(plan):
        if source.made_by or str(source.identity()) + wants.__name__ in seen:
            continue
        seen.add(str(source.identity()) + wants.__name__)
        name = f"data of {where}"
        try:
            count = sum(1 for _ in open_records(source, wants))
        except PtlError as error:
            yield PreflightFinding.of(name, error)
            continue
        if count:
            yield PreflightFinding(
                name, "ok", f"{source.label}: {count:,} {wants.__name__} records"
            )
        else:
            yield PreflightFinding(name, "failed", f"{source.label} has no records")


def engine(
    plan: Plan,
    home: Path,
    runs: Sequence[RunRecord] = (),
    *,
    sample: bool = False,
    reporter: Reporter | None = None,
) -> Iterator[PreflightFinding]:
    """The engine: reachable, its key valid, the models served, the named checkpoints alive.

    With `sample` also whether RL has anything to learn from; `runs` are earlier ones, whose
    weights it may start from. `reporter` hears what is under way.
    """
    reporter = reporter or Reporter()
    reporter.doing(f"starting the engine ({plan.engine.name})")
    name = f"engine {plan.engine.name}"
    log = home / "preflight.log"
    try:
        with (
            private.files(),
            plan.engine.connect(locations(plan), home / "engine", log) as connection,
        ):
            wait = EngineWaiter(
                connection.alive,
                explain_death=lambda: death.explain(connection),
                tick=activity.tick,
            )
            serving = Serving(plan, connection, wait, home / "engine")
            # An engine that offers none loads what it is asked for, which is looked at below.
            serves = f", and serves {', '.join(plan.models)}" if connection.offers else ""
            yield PreflightFinding(name, "ok", f"answers{serves}")
            needs.check(plan, connection, wait)
            yield PreflightFinding(
                name, "ok", f"can do all that is needed: {', '.join(needs.of(plan))}"
            )
            texts = Texts(plan, serving.renderer)
            yield from texts.of(plan.stages)
            yield from _checkpoints(plan, serving)
            tokenizers.check(plan, serving)
            reporter.doing("reading a few records with each base model")
            yield from firstlook.findings(plan, serving, texts.first)
            if sample:
                from posttrain_recipes.running import learnability

                yield from learnability.findings(plan, serving, runs, reporter)
    except PtlError as error:
        yield PreflightFinding.of(name, error)
    finally:
        with suppress(OSError):  # a home that cannot be written was told of
            log.unlink()


def offline() -> Iterator[PreflightFinding]:
    """What is not looked at without an engine."""
    what = "not looked at with --offline: what tokenizers keep, how long records are in tokens"
    yield PreflightFinding("texts", "ok", what)


def rewards(plan: Plan) -> Iterator[PreflightFinding]:
    """Every reward, tried on answers that deserve nothing: empty, cut short and garbled ones."""
    for stage in plan.stages:
        for reward, _ in stage.rewards:
            name = f"reward {reward.name} of {stage.name}"
            if reward.asks_model:
                yield PreflightFinding(
                    name, "skipped", "asks a model, so it is not tried beforehand"
                )
                continue
            try:
                prompts = _prompts(stage)
                if prompts:
                    yield from _tried(name, reward, prompts)
            except PtlError as error:
                yield PreflightFinding.of(name, error)
            except Exception as error:  # a plugin's own code
                words = f"{type(error).__name__} on an answer that it should give nothing for"
                yield PreflightFinding(name, "failed", f"raises {words}: {error}")


# --- the cheap ones ------------------------------------------------------------------------------


def _disk(home: Path) -> PreflightFinding:
    place = home
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        hint = "name a place where this user may write, with --home or PTL_HOME"
        return PreflightFinding("disk", "failed", f"no run can be kept in {home}", hint)
    free = shutil.disk_usage(place).free
    text = f"{free / 1e9:,.1f} GB free for {home}"
    if free < FREE_BYTES:
        return PreflightFinding("disk", "warning", text, "'ptl gc' says what can be deleted")
    return PreflightFinding("disk", "ok", text)


def _reward_models(plan: Plan) -> Iterator[PreflightFinding]:
    """Stages that are asked for scores, and whose weights were trained to write."""
    stages = {stage.name: stage for stage in plan.stages}

    def scores(name: str | None) -> bool:
        if (stage := stages.get(name or "")) is None:
            return False
        made = references(stage.method.config, ModelRef) if stage.method else ()
        own = stage.method is not None and not stage.method.writes
        return own or any(map(scores, [stage.start, *(ref.stage for _, ref in made)]))

    for stage in plan.stages:
        for reward in _every_reward(stage):
            for path, ref in references(reward.config, ModelRef):
                asked = stages.get(ref.stage or "") if path[0] in reward.reads_scores else None
                if asked is None or asked.method is None or scores(asked.name):
                    continue
                yield PreflightFinding(
                    f"reward {reward.name} of {stage.name}",
                    "warning",
                    f"stage '{asked.name}' ({asked.method.name}) trains weights that write, and "
                    "what they say of yes and no was never trained",
                    "name a stage with the method reward_model, unless that is meant",
                )


def _every_reward(stage: PlannedStage) -> Iterator[Reward]:
    """Its own, and those of its evals."""
    yield from (reward for reward, _ in stage.rewards)
    for planned in stage.evals:
        yield from planned.eval.rewards.values()


def _sdk() -> PreflightFinding:
    version = metadata.version("tinker")

    def number(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())

    if number(SDK[0]) <= number(version) < number(SDK[1]):
        return PreflightFinding("sdk", "ok", f"tinker {version}")
    return PreflightFinding(
        "sdk",
        "warning",
        f"tinker {version} is not a version that this was tested with",
        f"pip install 'tinker>={SDK[0]},<{SDK[1]}'",
    )


def _prices(plan: Plan, home: Path) -> Iterator[PreflightFinding]:
    """Prices that no table has, of an engine that bills."""
    if not plan.engine.billed:
        return
    prices = pricing.load(home)
    lacking = costs.unpriced(plan, prices)
    for text in lacking:
        hint = "'ptl prices --refresh' reads the published table"
        yield PreflightFinding("prices", "warning", text, hint)
    if not lacking:
        yield PreflightFinding("prices", "ok", prices.note)


def _on_end(plan: Plan) -> PreflightFinding:
    """Whether what `on_end:` needs of the environment is there; nobody is told yet."""
    assert plan.on_end is not None
    try:
        telling.check(plan)
    except PtlError as error:
        return PreflightFinding.of("on_end", error)
    return PreflightFinding("on_end", "ok", f"{plan.on_end.label} will be told; not tried")


def _trackers(plan: Plan) -> PreflightFinding:
    """Whether what trackers need of the environment is there; none is told of anything yet."""
    try:
        hearing.check(plan)
    except PtlError as error:
        return PreflightFinding.of("trackers", error)
    names = ", ".join(tracker.name for tracker in plan.trackers)
    return PreflightFinding("trackers", "ok", f"{names} will hear of it; not tried")


def _splits(plan: Plan) -> Iterator[PreflightFinding]:
    """Test splits that would leave nothing to train on, where the number of records is known."""
    for where, source, _ in _sources(plan):
        size, config = None if source.made_by else source.dataset.size(), source.dataset.config
        if size is None or source.held_out:
            continue
        size = min(size, config.limit) if config.limit else size
        if 0 < config.test_size >= size:
            yield PreflightFinding(
                f"data of {where}",
                "failed",
                f"{source.label} has {size} records, too few for test_size={config.test_size}",
                "hold fewer out, or add records",
            )


def _sources(plan: Plan) -> Iterator[tuple[str, Data, type[Record]]]:
    for stage in plan.stages:
        if stage.data is not None and stage.wants is not None:
            yield stage.name, stage.data, stage.wants
        for planned in stage.evals:
            if planned.eval.takes:
                yield f"{stage.name}, eval {planned.name}", planned.data, planned.wants


# --- the engine ----------------------------------------------------------------------------------


def _checkpoints(plan: Plan, serving: Serving) -> Iterator[PreflightFinding]:
    for one in plan.named_checkpoints:
        why = weights.missing(one, serving)
        yield PreflightFinding(
            f"checkpoint of {one.stage}",
            "failed" if why else "ok",
            f"{one.location}  {one.key}: {why}" if why else f"{one.name} is there",
            weights.ANOTHER if why else None,
        )


# --- rewards -------------------------------------------------------------------------------------


def _prompts(stage: PlannedStage) -> Sequence[Prompt]:
    if stage.data is None or stage.wants is None or stage.data.made_by:
        return ()
    records = load_records(stage.data, stage.wants)[:TRIED]
    return [record for record in records if isinstance(record, Prompt)]


def _tried(name: str, reward: Reward, prompts: Sequence[Prompt]) -> Iterator[PreflightFinding]:
    spoiled: Mapping[str, Callable[[str], str]] = {
        "an empty answer": lambda answer: "",
        "an answer of spaces": lambda answer: " \n ",
        "an answer cut in half": lambda answer: answer[: len(answer) // 2],
        "a garbled answer": lambda answer: "".join(chr(ord(c) ^ 1) for c in answer) or "~",
    }
    best = _mean(reward, prompts, lambda answer: answer)
    bad = False
    for what, spoil in spoiled.items():
        score = _mean(reward, prompts, spoil, truncated=what.endswith("half"))
        if score is None or score <= 0:
            continue
        if what.startswith(("an empty", "an answer of")) or (best is not None and score >= best):
            bad = True
            yield PreflightFinding(
                name,
                "warning",
                f"pays {score:.2f} for {what}"
                + (f", and {best:.2f} for the reference answer" if best is not None else ""),
                "a policy finds that out; have it score 0",
            )
    if best == 0 and any(prompt.answer for prompt in prompts):
        yield PreflightFinding(
            name,
            "warning",
            f"the reference answer gets 0.00, as it stands in the data: {_short(prompts)}",
            "where right replies have that form no reply can be paid: see 'extract' and the "
            "pattern, or the function; where the reward asks for another form, all is well",
        )
        return
    if not bad:
        shown = "" if best is None else f"; the reference answer gets {best:.2f}"
        yield PreflightFinding(
            name, "ok", f"pays nothing for {len(spoiled)} kinds of bad answer{shown}"
        )


def _short(prompts: Sequence[Prompt]) -> str:
    """The first answer, to be seen."""
    answer = next(prompt.answer for prompt in prompts if prompt.answer)
    return repr(answer if len(answer) <= 40 else f"{answer[:40]}…")


def _mean(
    reward: Reward,
    prompts: Sequence[Prompt],
    spoil: Callable[[str], str],
    truncated: bool = False,
) -> float | None:
    samples = [
        Sample(p.messages, spoil(p.answer or "42"), p.answer, {}, truncated, p.metadata)
        for p in prompts
    ]
    scores = [score for score in scores_of(reward, samples) if score is not None]
    return sum(scores) / len(scores) if scores else None
