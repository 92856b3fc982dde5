"""What an environment answered, learned beside what the policy wrote: ECHO.

    loss = loss of the policy gradient - lambda * mean over rollouts of 1/|o| sum_{t in o} log p_t

with o the tokens of an episode that were read after the policy's first reply and before its last:
what tools and the environment answered, and what the chat template writes around that. Shrivastava
et al. 2026, arXiv 2605.24517: the mean over an episode's answers is a supervised loss, which
episodes without a reward, or of a group whose rewards are all the same, have too. The paper reads
both terms off one pass; an engine behind Tinker's protocol takes one loss a pass, so that this one
is a second pass over the episodes that have answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from posttrain_recipes.options import PluginConfig
from posttrain_recipes.training.rl.rollout import Group, Passes, RolloutSegment, Segment
from posttrain_recipes.training.text.examples import Example, datum

if TYPE_CHECKING:
    import tinker


class ObservationConfig(PluginConfig):
    """Whether what the environment answered is learned."""

    observation_weight: float = Field(default=0.0, ge=0, le=1000, allow_inf_nan=False)
    """In environments: the weight of a cross-entropy loss on what was answered between the policy's
    replies, lambda of ECHO (arXiv 2605.24517). Takes a second pass; turns that are read alone
    (`fresh`) have no answers to learn."""


class AnsweredSegment(RolloutSegment):
    """A sequence of which the answers are learned, and not what the policy wrote."""


def observed(segment: Segment) -> list[bool]:
    """Which tokens (N,) were read after the policy's first reply; none follow its last."""
    seen, found = False, []
    for own in segment.sampled:
        seen = seen or own
        found.append(seen and not own)
    return found


def forward_backward(
    client: tinker.TrainingClient, groups: Sequence[Group], config: ObservationConfig, size: int
) -> Passes:
    """Submit the pass that learns answers, without waiting; none where there are none.

    Args:
        size: groups that the loss is a mean over.
    """
    if not config.observation_weight:
        return []
    items: list[RolloutSegment] = []
    data = []
    for group in groups:
        for rollout in group.rollouts:
            marks = [observed(segment) for segment in rollout.segments]
            count = sum(map(sum, marks))
            for place, (segment, own) in enumerate(zip(rollout.segments, marks, strict=True)):
                if any(own):
                    share = config.observation_weight / (count * len(group.rollouts) * size)
                    items.append(AnsweredSegment(rollout, place))
                    data.append(datum(Example(segment.tokens, [share * mark for mark in own])))
    return [(items, client.forward_backward(data, "cross_entropy"))] if items else []


def metrics(
    items: Sequence[RolloutSegment], outputs: Sequence[Mapping[str, tinker.TensorData]]
) -> dict[str, float]:
    """-log p of an answer's token: its mean over each episode that has answers, and of these.

    Args:
        items: as `forward_backward` submitted them.
    """
    found: dict[int, list[float]] = {}
    for item, output in zip(items, outputs, strict=True):
        told = zip(output["logprobs"].data, observed(item.segment)[1:], strict=True)
        own = found.setdefault(id(item.rollout), [])
        own += [-float(logprob) for logprob, mark in told if mark]
    means = [math.fsum(own) / len(own) for own in found.values() if own]
    return {"observations/nll": math.fsum(means) / len(means)} if means else {}
