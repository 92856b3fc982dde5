"""Records made of rollouts for later stages: the good ones, and pairs of best and worst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from pydantic import Field

from posttrain_recipes.options import PluginConfig
from posttrain_recipes.records import Conversation, Messages, Preference, Record
from posttrain_recipes.training.rl.rollout import Group, Rollout


class CollectConfig(PluginConfig):
    """Which rollouts are left for later stages."""

    min_reward: float
    """Leave only rollouts whose reward, penalties taken off, is at least this; a pair's better
    reply has to reach it too."""
    keep: int = Field(default=1, ge=1)
    """Leave this many different rollouts of a group, those with the highest reward."""


def records(groups: Sequence[Group], config: CollectConfig) -> list[Record]:
    """Conversations of the best rollouts of each group, and its best and worst reply as a pair.

    As `best_of_n` has it: where rewards tie the first one is the best, the same text is left once,
    a reply that was cut is left out, and a group whose rewards are all the same makes no pair. Nor
    does one of episodes, whose replies are not to one prompt.
    """
    conversations: list[Record] = []
    pairs: list[Record] = []
    for group in groups:
        whole = [rollout for rollout in group.scored if not rollout.sample.truncated]
        ranked = sorted(whole, key=_worth, reverse=True)
        good = [rollout for rollout in ranked if _worth(rollout) >= config.min_reward]
        distinct: dict[tuple[Messages, ...], Rollout] = {}
        for rollout in good:
            distinct.setdefault(tuple(rollout.conversations), rollout)
        best = list(distinct.values())
        for rollout in best[: config.keep]:
            conversations += [Conversation(messages=said) for said in rollout.conversations]
        if best and _worth(best[0]) > _worth(ranked[-1]):
            pairs += _pair(best[0], ranked[-1])
    return [*conversations, *pairs]


def _worth(rollout: Rollout) -> float:
    return cast(float, rollout.reward)


def _pair(better: Rollout, worse: Rollout) -> list[Record]:
    (chosen, *_), (rejected, *_) = better.conversations, worse.conversations
    if chosen[:-1] != rejected[:-1]:
        return []
    return [Preference(prompt=chosen[:-1], chosen=chosen[-1:], rejected=rejected[-1:])]
