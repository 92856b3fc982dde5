"""Where groups come from: all replies to a prompt in one request, or episodes of one task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from posttrain_recipes.errors import UsageError
from posttrain_recipes.options import ModelRef, PluginConfig
from posttrain_recipes.plugin import Renderer, RewardContext, StageContext
from posttrain_recipes.records import Message, Prompt, Sample, Task
from posttrain_recipes.training.rl import advantages
from posttrain_recipes.training.rl.episodes import Limits, Play, play
from posttrain_recipes.training.rl.rollout import Group, Rollout, Segment
from posttrain_recipes.training.rl.scoring import OnError, Patience, Scorer

if TYPE_CHECKING:
    import tinker


class ReplyConfig(PluginConfig):
    """Options of how replies are sampled and what they are worth."""

    group_size: int = Field(default=8, ge=2, le=1024)
    """Replies to each prompt, which are compared with each other."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest reply in tokens."""
    max_turns: int = Field(default=16, ge=1)
    """In an environment: replies in one episode; one that goes on is cut there."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling; at 1 the policy that is trained is the one that samples."""
    overlong: Literal["keep", "mask", "penalize"] = "keep"
    """A reply that is cut at max_tokens: kept as it was rewarded, masked out of the loss (its
    reward still counts in the baseline), or penalized."""
    overlong_buffer: int = Field(default=0, ge=0)
    """For overlong: penalize, the penalty grows over this many tokens before max_tokens."""
    overlong_penalty: float = Field(default=1.0, gt=0)
    """For overlong: penalize, what is taken off the reward of a reply that is cut."""
    kl_beta: float = Field(default=0.0, ge=0)
    """What a nat of divergence from the reference costs, taken off the reward."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """Of a reply's divergence: k1, the sum of log p/p_ref, whose gradient is that of the KL
    divergence; k3, the sum of p_ref/p - 1 - log p_ref/p, never negative."""
    reference: ModelRef | None = None
    """The fixed reference; by default where the stage starts. If given, the divergence from it is
    measured even where kl_beta is 0."""
    on_reward_error: OnError = "drop"
    """A reward, or an environment, that raises or takes too long: drop leaves the reply (or the
    episode) out of its group, zero counts it as 0, stop ends the stage."""
    reward_timeout: float | None = Field(default=None, gt=0)
    """Seconds that a reward may take for a group of replies, and an environment to begin an episode
    or to answer a reply; by default no limit."""

    @model_validator(mode="after")
    def _buffer_fits(self) -> ReplyConfig:
        if self.overlong_buffer and self.overlong != "penalize":
            raise ValueError("overlong_buffer is for overlong: penalize")
        if self.overlong_buffer >= self.max_tokens:
            raise ValueError("overlong_buffer has to be less than max_tokens")
        return self

    def overlong_cost(self, length: int, truncated: bool) -> float:
        """What the length of a reply costs: 0 up to max_tokens - overlong_buffer, then rising.

        Soft overlong punishment, equation 13 of DAPO, arXiv 2503.14476.
        """
        if self.overlong != "penalize":
            return 0.0
        if truncated:
            return self.overlong_penalty
        beyond = length - (self.max_tokens - self.overlong_buffer)
        return self.overlong_penalty * max(0, beyond) / max(1, self.overlong_buffer)


class Worth:
    """From what was sampled to what it is worth: rewards, penalties and the reference.

    May be used from many threads at once.
    """

    def __init__(self, stage: StageContext, config: ReplyConfig, patience: Patience) -> None:
        self.config = config
        self.patience = patience
        self.scorer = Scorer(stage.rewards, config.on_reward_error, config.reward_timeout)
        context = RewardContext(stage.seed, stage.renderer, patience, stage.resolve, stage.cache)
        self.scorer.open(context)
        self.reference: tinker.SamplingClient | None = None
        if config.reference is not None:
            self.reference = stage.resolve(config.reference).sampler
        elif config.kl_beta:
            self.reference = stage.sampling_client(stage.start)

    def ask(self, rollouts: Sequence[Rollout]) -> list[list[tinker.APIFuture[list[float | None]]]]:
        """Ask the reference for its log-probabilities, without waiting."""
        import tinker

        if self.reference is None:
            return []
        return [
            [
                self.reference.compute_logprobs(tinker.ModelInput.from_ints(segment.tokens))
                for segment in rollout.segments
            ]
            for rollout in rollouts
        ]

    def judge(self, rollouts: list[Rollout]) -> Group:
        """The rollouts of one prompt with their rewards."""
        asked = self.ask(rollouts)
        scores = self.scorer.score([rollout.sample for rollout in rollouts])
        for rollout, total, parts in zip(rollouts, scores.totals, scores.parts, strict=True):
            rollout.reward, rollout.parts = total, parts
        self.penalize(rollouts, asked)
        return Group(rollouts, Counter(scores.counts), scores.error)

    def penalize(
        self,
        rollouts: Sequence[Rollout],
        asked: Sequence[Sequence[tinker.APIFuture[list[float | None]]]],
    ) -> None:
        """Take off what length and divergence cost."""
        config = self.config
        estimate = advantages.KL_ESTIMATORS[config.kl_estimator]
        for rollout, futures in zip(rollouts, asked, strict=bool(asked)):
            divergence = 0.0
            rollout.kl = 0.0
            for segment, future in zip(rollout.segments, futures, strict=True):
                ours = segment.own(segment.logprobs)
                theirs = segment.own(self.patience(future))
                rollout.kl += advantages.k1(ours, theirs)
                divergence += estimate(ours, theirs)
            if config.kl_beta:
                rollout.penalties["kl"] = config.kl_beta * divergence
        for rollout in rollouts:
            rollout.masked = config.overlong == "mask" and rollout.sample.truncated
            cost = config.overlong_cost(rollout.longest, rollout.sample.truncated)
            if config.overlong == "penalize":
                rollout.penalties["overlong"] = cost
            if rollout.reward is not None:
                rollout.reward -= sum(rollout.penalties.values())


@dataclass
class Prompts:
    """Groups of replies to prompts. A `Source`."""

    prompts: Sequence[Prompt]
    renderer: Renderer
    config: ReplyConfig
    worth: Worth

    @property
    def size(self) -> int:
        """How many prompts there are."""
        return len(self.prompts)

    @property
    def seats(self) -> int:
        """A reply has one author."""
        return 1

    def roll(self, index: int, seed: int, sampler: tinker.SamplingClient) -> list[Group]:
        """All replies to prompt `index` in one request, with their rewards."""
        import tinker

        prompt, config = self.prompts[index], self.config
        tokens = self.renderer.prompt(prompt.messages)
        future = sampler.sample(
            tinker.ModelInput.from_ints(tokens),
            config.group_size,
            tinker.SamplingParams(
                max_tokens=config.max_tokens,
                temperature=config.temperature,
                seed=seed,
                stop=self.renderer.stop,
            ),
        )
        rollouts = []
        for sequence in self.worth.patience(future).sequences:
            if sequence.logprobs is None:
                raise UsageError("the engine gave no log-probabilities with its samples")
            sample = Sample(
                prompt=prompt.messages,
                completion=self.renderer.parse(sequence.tokens),
                answer=prompt.answer,
                truncated=sequence.stop_reason == "length",
                metadata=prompt.metadata,
            )
            segment = Segment.reply(tokens, sequence.tokens, sequence.logprobs)
            whole = (*prompt.messages, Message("assistant", sample.completion))
            rollouts.append(Rollout([segment], sample, [whole]))
        return [self.worth.judge(rollouts)]


@dataclass
class Episodes:
    """Groups of episodes of one task, a group for each seat. A `Source`."""

    tasks: Sequence[Task]
    renderer: Renderer
    config: ReplyConfig
    worth: Worth
    limits: Limits
    seats: int = 1
    """How many players the policy takes the part of."""

    @property
    def size(self) -> int:
        """How many tasks there are."""
        return len(self.tasks)

    def roll(self, index: int, seed: int, sampler: tinker.SamplingClient) -> list[Group]:
        """Episodes of task `index`, turn by turn, with what each seat got.

        Raises:
            PtlError: the environment failed, and the stage says that this ends it.
        """
        tasks = [self.tasks[index]] * self.config.group_size
        plays = play(tasks, seed, sampler, self.renderer, self.worth.patience, self.limits)
        failed = [one for one in plays if one.error]
        if failed and self.config.on_reward_error == "stop":
            raise failed[0].failure(
                "mend it, or set on_reward_error to 'drop' or 'zero' to go on without"
            )
        groups = [self._group(plays, seat) for seat in range(self.seats)]
        groups[0].error = next((f"an environment: {one.error}" for one in failed), "")
        groups[0].counts.update(
            retried=sum(one.retried for one in plays),
            failed=sum(not one.late for one in failed),
            timed_out=sum(one.late for one in failed),
            thrown_away=sum(one.thrown_away for one in plays),
        )
        return groups

    def _group(self, plays: Sequence[Play], seat: int) -> Group:
        rollouts, abstained = [], 0
        # Who never had a turn has nothing to learn from.
        for one in [one for one in plays if one.seats and one.seats[seat].segments]:
            player, sample = one.seats[seat], one.sample(seat)
            reward, parts = player.reward, dict(sample.scores)
            if one.error:
                reward = 0.0 if self.config.on_reward_error == "zero" else None
            elif reward is None:
                abstained += 1
            else:
                parts = {"return": reward, **parts}
            rollouts.append(Rollout(player.segments, sample, player.conversations, reward, parts))
        self.worth.penalize(rollouts, self.worth.ask(rollouts))
        return Group(rollouts, Counter(abstained=abstained))


def episodes(
    tasks: Sequence[Task], stage: StageContext, config: ReplyConfig, worth: Worth, retries: int
) -> Episodes:
    """The source of a stage's tasks.

    Args:
        retries: how often an episode is begun again in which the environment raised.

    Raises:
        UsageError: rewards beside those of the environment.
        PtlError: the first task cannot be begun.
    """
    if stage.rewards:
        raise UsageError(
            f"stage '{stage.name}' learns from an environment, which rewards by itself",
            hint="remove its 'reward:'",
        )
    limits = Limits(
        config.max_turns, config.max_tokens, config.temperature, retries, config.reward_timeout
    )
    first = Play.of(tasks[0], stage.renderer, limits)
    if first.error:
        raise first.failure("begin an episode of it by hand")
    return Episodes(tasks, stage.renderer, config, worth, limits, len(first.seats))
