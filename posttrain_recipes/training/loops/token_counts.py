"""How many tokens a stage will take, estimated before it runs, for `Method.workload`.

Each function is one way to spend them. What is sampled is a bound: a reply may end before its
limit. What rewards and judges that ask a model take is theirs to know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrain_recipes.training.loops import supervised
from posttrain_recipes.workload import Usage, Workload, mean, trained

if TYPE_CHECKING:
    from posttrain_recipes.training.loops.optimizer import OptimizerConfig
    from posttrain_recipes.training.loops.rl import RolloutConfig
    from posttrain_recipes.training.loops.supervised import GradientConfig
    from posttrain_recipes.training.sampling.datagen import MakingConfig


def imitation(
    config: GradientConfig, lengths: Sequence[int], count: int, *, taught: bool = False
) -> Workload:
    """Every example goes through the model once an epoch, and through a teacher before.

    Args:
        lengths: tokens of the sampled examples.
        count: how many examples there are.
        taught: whether a teacher reads each one as often.
    """
    seen = supervised.examples_seen(config, count)
    read = round(mean(lengths, config.max_length) * seen) if taught else 0
    usage = Usage(train=round(trained(lengths, config.max_length) * seen), prefill=read)
    return _steps(config, lengths, count, usage)


def replies(
    config: GradientConfig,
    lengths: Sequence[int],
    count: int,
    *,
    together: int = 2,
    reference: bool = False,
) -> Workload:
    """A loss over whole replies: a pass of its own before the one with a gradient.

    Args:
        lengths: tokens of the replies with their prompts, `together` of each sampled record.
        reference: whether the weights that the stage starts from read each record once.
    """
    seen = supervised.examples_seen(config, count)
    learned = round(together * trained(lengths, config.max_length) * seen)
    read = together * mean(lengths, config.max_length) * min(seen, count) if reference else 0
    usage = Usage(train=learned, prefill=learned + round(read), forward=learned)
    return _steps(config, lengths, count, usage)


def verdicts(config: GradientConfig, lengths: Sequence[int], count: int) -> Workload:
    """As `replies`, of pairs whose last token is learned from: nothing is only predicted."""
    seen = supervised.examples_seen(config, count)
    learned = round(2 * mean(lengths) * seen)
    usage = Usage(train=learned, prefill=learned, forward=learned)
    return _steps(config, lengths, count, usage)


def answers(
    config: GradientConfig,
    lengths: Sequence[int],
    count: int,
    *,
    max_tokens: int,
    group_size: int = 1,
    asked: Sequence[int] | None = None,
    read: Sequence[Sequence[int]] = (),
) -> Workload:
    """Answers are written, judged and learned from, step by step.

    Args:
        lengths: tokens of the sampled prompts, as the student sees them.
        asked: the same, as whoever answers sees them, where that is not so.
        read: the same, as each teacher sees them that reads every answer.
    """
    seen = supervised.examples_seen(config, count)
    each = group_size * max_tokens
    usage = Usage(
        train=round(seen * (group_size * trained(lengths, config.max_length) + each)),
        prefill=round(
            seen * (mean(asked or lengths) + sum(group_size * mean(other) + each for other in read))
        ),
        sample=seen * each,
    )
    return _steps(config, lengths, count, usage, at_most=True)


def rollouts(
    config: RolloutConfig,
    lengths: Sequence[int],
    count: int,
    *,
    group_size: int,
    max_tokens: int,
    readers: int,
    forwards: int = 0,
    backwards: int = 1,
) -> Workload:
    """Groups of replies are written, read by so many `readers`, and learned from in so many
    `backwards`, passes with a gradient, and `forwards`, passes without one."""
    batches = config.batches(count)
    groups = min(batches * config.batch_size, config.epochs * count)
    tried = groups * (1 + config.max_replacements * (config.zero_variance_groups == "replace"))
    whole = group_size * (mean(lengths) + max_tokens)
    learned = round(groups * (whole - group_size))
    forward = learned * forwards
    usage = Usage(
        train=learned * backwards,
        prefill=round(tried * (mean(lengths) + readers * whole)) + forward,
        sample=tried * group_size * max_tokens,
        forward=forward,
    )
    about = groups % count != 0 and len(set(lengths)) > 1
    work = Workload(usage, batches * config.updates_per_batch, about, at_most=True)
    return _within_budget(config, work)


def made(config: MakingConfig, lengths: Sequence[int], count: int, samples: int) -> Workload:
    """Every prompt is read once, and answered so many times; steps are batches."""
    usage = Usage(prefill=round(count * mean(lengths)), sample=count * samples * config.max_tokens)
    return Workload(usage, math.ceil(count / config.batch_size), at_most=True)


def _steps(
    config: GradientConfig, lengths: Sequence[int], count: int, usage: Usage, at_most: bool = False
) -> Workload:
    """Of the gradient loop; which records its last steps draw, nobody knows beforehand."""
    about = supervised.examples_seen(config, count) % count != 0 and len(set(lengths)) > 1
    steps = supervised.total_steps(config, count)
    return _within_budget(config, Workload(usage, steps, about, at_most))


def _within_budget(config: OptimizerConfig, work: Workload) -> Workload:
    """What is left of it where a budget of tokens ends the stage before."""
    taken = work.usage.train + work.usage.sample
    if config.token_budget is None or taken <= config.token_budget:
        return work
    share = config.token_budget / taken
    usage = work.usage.scaled(share)
    # Replies that turn out shorter than was reckoned leave room for more steps than that.
    steps = 0 if work.at_most else math.ceil(work.steps * share)
    return Workload(usage, steps, about=True)
