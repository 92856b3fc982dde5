"""Preflight check of RL: how many groups sampled from the start policy are zero-variance groups.

In such a group all replies have the same reward: every advantage is 0, and nothing is learned from
it (Yu et al. 2025, DAPO, arXiv 2503.14476). The groups are sampled and rewarded by the method's own
code.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import cast

from posttrain_recipes.errors import PtlError
from posttrain_recipes.planning.data import load_records
from posttrain_recipes.planning.plans import BASE, Plan, PlannedStage
from posttrain_recipes.plugin import Checkpoint, StageContext, StageSink
from posttrain_recipes.running import activity
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.running.findings import PreflightFinding
from posttrain_recipes.running.health import LITTLE_TO_LEARN, ZERO_VARIANCE, cut
from posttrain_recipes.running.metering import Meter
from posttrain_recipes.running.serving import Serving
from posttrain_recipes.store import RunRecord
from posttrain_recipes.training.loops.rollout_method import PolicyGradientMethod, RolloutMethod
from posttrain_recipes.training.rl import advantages, behaviour
from posttrain_recipes.training.rl.rollout import Group, Source
from posttrain_recipes.training.rl.scoring import RolloutScorer
from posttrain_recipes.waiting import CancellableWaiter, in_thread

GROUPS = 16
"""Prompts, or episodes, that are tried."""


def findings(
    plan: Plan, serving: Serving, runs: Sequence[RunRecord], reporter: Reporter
) -> Iterator[PreflightFinding]:
    """A finding for each stage that learns from groups of its policy's replies."""
    for stage in plan.stages:
        if not isinstance(stage.method, RolloutMethod) or stage.data is None:
            continue
        name = f"learning of {stage.name}"
        start = _start(stage, serving, runs)
        if start is None or stage.data.made_by:
            what = f"starts from {stage.start}" if start is None else f"reads {stage.data.label}"
            yield PreflightFinding(
                name,
                "skipped",
                f"{what}, which is not there yet: whether there is anything to learn was not tried",
                "once the stages before it have run ('ptl run --until STAGE'), this can be tried",
            )
            continue
        try:
            what = f"sampling groups for {stage.name}"
            reporter.doing(what)
            with Meter().installed(), activity.watched(what, reporter.sampling) as watch:
                groups, whole = _sample(stage, start, serving, watch.progress)
        except PtlError as error:
            yield PreflightFinding.of(name, error)
        else:
            limit = getattr(stage.method.config, "max_tokens", None)
            yield _verdict(name, groups, whole, limit)
            yield from _samples(stage, groups)


def _verdict(
    name: str, groups: Sequence[Group], replies: int, max_tokens: int | None
) -> PreflightFinding:
    scored = [reward for group in groups for reward in group.rewards]
    if not scored:
        why = next((group.error for group in groups if group.error), "every reward abstained")
        return PreflightFinding(name, "failed", f"none of {replies} replies has a reward: {why}")
    if all(len(group.compared) < 2 for group in groups):  # compared with others than its group
        zero_variance = 0 if advantages.varies(scored) else len(groups)
        told = f"{len(scored)} replies, one to a prompt"
    else:
        zero_variance = sum(not group.varies for group in groups)
        told = f"{zero_variance} of {len(groups)} groups have one reward for all replies"
    told += f"; the mean is {sum(scored) / len(scored):.2f}"
    short = cut([r.sample.truncated for group in groups for r in group.rollouts], max_tokens)
    also = f"; {short}" if short else ""
    if zero_variance > ZERO_VARIANCE * len(groups):
        little = f"{told}: there is little to learn from{also}"
        return PreflightFinding(name, "warning", little, LITTLE_TO_LEARN)
    return PreflightFinding(name, "ok", told + also)


def _samples(stage: PlannedStage, groups: Sequence[Group]) -> Iterator[PreflightFinding]:
    """Whether what the server tells of a sample is what it reads."""
    gaps = [gap for group in groups for one in group.rollouts for gap in one.gaps]
    if not gaps:
        return
    name, told = f"log-probabilities of {stage.name}", behaviour.gap_told(gaps)
    if behaviour.rms(gaps) <= behaviour.GAP:
        yield PreflightFinding(name, "ok", told)
        return
    assert isinstance(stage.method, PolicyGradientMethod)
    hint = "'behaviour_logprobs: recomputed' has ratios and KL compare like with like"
    if stage.method.config.behaviour_logprobs != "sampled":
        hint = "each reply is read again: one prefill more of each"
    yield PreflightFinding(name, "warning", told, hint)


def _sample(
    stage: PlannedStage,
    start: Checkpoint,
    serving: Serving,
    progress: Callable[[int, int, str], None],
) -> tuple[list[Group], int]:
    """Groups of the start policy's replies, and how many replies they have."""
    assert isinstance(stage.method, RolloutMethod)
    assert stage.data is not None
    assert stage.wants is not None
    waiter = CancellableWaiter()
    context = StageContext(
        name=stage.name,
        seed=stage.seed,
        base_model=stage.model,
        start=start,
        lora=stage.lora,
        train=load_records(stage.data, stage.wants),
        renderer=serving.renderer(stage.model, stage.renderer),
        service=serving.connection.service,
        sink=cast(StageSink, None),  # a source only samples
        wait=serving.wait,
        rewards=stage.rewards,
        resolve=lambda ref: serving.resolve(ref, stage.model, stage.renderer),
        exact=serving.plan.engine.exact,
    )
    source: Source = stage.method.source(context, waiter)
    scorer = RolloutScorer(context, stage.method.config, waiter)
    sampler = serving.sampler(start)

    def rollout(prompt: int) -> list[Group]:
        return [scorer.score(group, sampler) for group in source.sample(prompt, prompt, sampler)]

    count = min(GROUPS, source.size)
    chosen = random.Random(stage.seed).sample(range(source.size), count)
    try:
        futures: list[Future[list[Group]]] = [
            in_thread(partial(rollout, prompt)) for prompt in chosen
        ]
        rolled: list[list[Group]] = []
        for future in futures:
            rolled.append(serving.wait(future))
            progress(sum(one.done() for one in futures), count, "groups")
    finally:
        waiter.cancel()
    groups = [group for part in rolled for group in part]
    return groups, sum(len(group.rollouts) for group in groups)


def _start(stage: PlannedStage, serving: Serving, runs: Sequence[RunRecord]) -> Checkpoint | None:
    """The weights that the stage will start from, None if they do not exist yet."""
    if stage.start == BASE or stage.start.startswith("tinker://"):
        return serving.start(stage, None)
    parent = next(s for s in serving.plan.stages if s.name == stage.start)
    for run in reversed(runs):
        for kept in run.stages:
            if kept.fingerprint == parent.fingerprint and kept.done and kept.checkpoint:
                uri = kept.checkpoint.sampler_uri
                return None if uri and serving.lost(uri) else kept.checkpoint
    return None
