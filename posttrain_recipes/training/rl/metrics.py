"""Metrics and samples of a step's rollouts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from posttrain_recipes.records import Sample
from posttrain_recipes.training.rl.advantages import std, varies
from posttrain_recipes.training.rl.behaviour import rms
from posttrain_recipes.training.rl.rollout import Group

SHOWN_GROUPS, SHOWN_REPLIES = 3, 4
"""Of a step's rollouts, what is shown to people."""


def batch_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Means over the rollouts of a step; every part of a weighted sum on its own."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [reward for group in groups for reward in group.rewards]
    counts: Counter[str] = Counter()
    for group in groups:
        counts.update(group.counts)
    tries = max(1, len(groups) + counts["replaced"])
    lengths = [rollout.length for rollout in rollouts]
    metrics = {
        "reward/mean": _mean(rewards),
        "reward/std": std(rewards),
        "reward/group_std": _mean([std(group.rewards) for group in groups if group.rewards]),
        "groups/zero_variance_share": counts["zero_variance"] / tries,
        "groups/learned": float(sum(varies(group.rewards) for group in groups)),
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
    ranked = sorted(groups, key=lambda group: not varies(group.rewards))[:SHOWN_GROUPS]
    samples = []
    for group in ranked:
        for rollout in group.rollouts[:SHOWN_REPLIES]:
            scores = dict(rollout.parts)
            scores.update({f"-{name}": value for name, value in rollout.penalties.items()})
            if rollout.reward is not None:
                scores.update(reward=rollout.reward, advantage=rollout.advantage)
            samples.append(replace(rollout.sample, scores=scores))
    return samples


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
