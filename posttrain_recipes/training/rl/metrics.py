"""Metrics and samples of a step's rollouts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from posttrain_recipes.plugin import WatchedReply
from posttrain_recipes.records import Sample
from posttrain_recipes.training.rl.advantages import std
from posttrain_recipes.training.rl.behaviour import rms
from posttrain_recipes.training.rl.rollout import Group, Rollout, RolloutSegment

SHOWN_GROUPS, SHOWN_REPLIES = 3, 4
"""Of a step's rollouts, what is shown to people."""


WATCHED_GROUPS = 2
"""Of these, for `ptl watch`."""
TokenAdvantages: TypeAlias = Callable[[RolloutSegment], list[float]]


def batch_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Means over the policy's rollouts of a step; every part of a weighted sum on its own."""
    rollouts = [rollout for group in groups for rollout in group.own]
    told = [[one.reward for one in group.own if one.reward is not None] for group in groups]
    rewards = [reward for own in told for reward in own]
    counts: Counter[str] = Counter()
    for group in groups:
        counts.update(group.counts)
    tries = max(1, counts["tried"] or len(groups))
    lengths = [rollout.length for rollout in rollouts]
    metrics = {
        "reward/mean": _mean(rewards),
        "reward/std": std(rewards),
        "reward/group_std": _mean([std(own) for own in told if own]),
        "groups/zero_variance_share": counts["zero_variance"] / tries,
        "groups/learned": float(sum(group.learned for group in groups)),
        "completions/mean_length": _mean(lengths),
        "completions/max_length": float(max(lengths, default=0)),
        "completions/clipped_ratio": _mean([r.sample.truncated for r in rollouts]),
        "rollouts/tokens": float(sum(lengths)),
        "rollouts/retried": float(counts["retried"]),
        "groups/replaced": float(counts["replaced"]),
        "reward_errors/abstained": float(counts["abstained"]),
        "reward_errors/failed": float(counts["failed"]),
        "reward_errors/timed_out": float(counts["timed_out"]),
    }
    for name in sorted({name for rollout in rollouts for name in rollout.parts}):
        values = [r.parts[name] for r in rollouts if name in r.parts]
        metrics[f"reward/parts/{name}"] = _mean(values)
    for name in sorted({name for rollout in rollouts for name in rollout.penalties}):
        values = [r.penalties[name] for r in rollouts if name in r.penalties]
        metrics[f"reward/penalties/{name}"] = _mean(values)
    drawn = [p for r in rollouts for s in r.segments for p in s.own(s.logprobs)]
    metrics["policy/entropy"] = -_mean(drawn)
    gaps = [gap for rollout in rollouts for gap in rollout.gaps]
    theirs = [one for group in groups for one in group.rollouts if one.by_reference]
    known_rewards = [one.reward for one in theirs if one.reward is not None]
    if known_rewards:
        metrics["reward/reference"] = _mean(known_rewards)
    if gaps:
        metrics["policy/sampled_gap_mean"] = _mean(gaps)
        metrics["policy/sampled_gap_rms"] = rms(gaps)
    known = [(r.kl, r.length) for r in rollouts if r.kl is not None]
    if known:
        metrics["policy/kl_reference"] = _mean([kl for kl, _ in known])
        tokens = sum(length for _, length in known)
        metrics["policy/kl_reference_per_token"] = sum(kl for kl, _ in known) / max(1, tokens)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def shown(groups: Sequence[Group]) -> list[Sample]:
    """A few groups for people to read, those that were learned from first."""
    ranked = sorted(groups, key=lambda group: not group.varies)[:SHOWN_GROUPS]
    samples = []
    for group in ranked:
        for rollout in group.own[:SHOWN_REPLIES]:
            scores = dict(rollout.parts)
            scores.update({f"-{name}": value for name, value in rollout.penalties.items()})
            if rollout.reward is not None:
                scores.update(reward=rollout.reward, advantage=rollout.advantage)
            samples.append(replace(rollout.sample, scores=scores))
    return samples


def watched(
    groups: Sequence[Group], advantages: TokenAdvantages | None = None
) -> list[WatchedReply]:
    """The best and the worst rollout of two groups, those that were learned from first, with what
    is known of each token."""
    ranked = sorted(groups, key=lambda group: not group.varies)[:WATCHED_GROUPS]
    found = []
    for group in ranked:
        best = sorted(group.scored, key=lambda one: -(one.reward or 0.0)) or group.rollouts
        found += [_watched(one, advantages) for one in ([best[0], best[-1]] if best[1:] else best)]
    return found


def _watched(rollout: Rollout, advantages: TokenAdvantages | None) -> WatchedReply:
    prompt: list[int] = []
    tokens: list[int] = []
    columns: dict[str, list[float | None]] = {"advantage": [], "log_ratio": [], "logprob": []}
    for place, segment in enumerate(rollout.segments):
        item = RolloutSegment(rollout, place)
        first = segment.sampled.index(True) if True in segment.sampled else len(segment.tokens)
        prompt = prompt or segment.tokens[:first]
        ours = item.sampled
        own: dict[str, list[float]] = {
            "advantage": advantages(item) if advantages else [],
            "log_ratio": [q - p for q, p in zip(ours, item.reference, strict=False)],
            "logprob": ours,
        }
        tokens += segment.tokens[first:]
        for name, values in own.items():
            left = iter(values)
            sampled = segment.sampled[first:]
            columns[name] += [next(left, None) if mine else None for mine in sampled]
    numbers = {
        name: values for name, values in columns.items() if any(v is not None for v in values)
    }
    ended = "max_tokens" if rollout.sample.truncated else "stop"
    scored = rollout.reward is not None
    advantage = rollout.advantage if scored else None
    answer = rollout.sample.answer
    label = "by the reference" if rollout.by_reference else ""
    return WatchedReply(
        prompt, tokens, numbers, rollout.reward, advantage, ended, label=label, answer=answer or ""
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
