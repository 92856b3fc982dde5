"""Where groups come from: all completions of a prompt in one request, or episodes of one task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from posttrain_recipes.errors import UsageError
from posttrain_recipes.options import Affects, FromData, ModelRef, PluginConfig
from posttrain_recipes.plugin import DrivenTask, Renderer, StageContext, Waiter
from posttrain_recipes.records import Message, Prompt, Task
from posttrain_recipes.training.requests import reply, sample
from posttrain_recipes.training.rl.behaviour import BehaviourLogprobs
from posttrain_recipes.training.rl.episodes import EpisodeLimits, Play, play
from posttrain_recipes.training.rl.rollout import Group, Rollout, Segment
from posttrain_recipes.training.rl.scoring import OnError

if TYPE_CHECKING:
    import tinker


class CompletionConfig(PluginConfig):
    """Options of how completions are sampled and scored."""

    group_size: int = Field(default=8, ge=1, le=1024)
    """Replies to each prompt, which are compared with each other; 1 is for an advantage that
    compares the whole batch."""
    max_tokens: Annotated[int, FromData.REPLY_TOKENS] = Field(default=256, ge=1)
    """Longest reply in tokens.
    By default it follows from the answers in the data; 256 where those do not tell."""
    max_turns: int = Field(default=16, ge=1)
    """In an environment: replies in one episode; one that goes on is cut there."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling; at 1 the policy that is trained is the one that samples. At any other the ratio
    p/q needs log q of what was sampled from, and an engine that gives log p instead is refused."""
    overlong: Literal["keep", "mask", "penalize"] = "keep"
    """A reply that is cut at max_tokens: kept as it was rewarded, masked out of the loss (its
    reward still counts in the baseline), or penalized."""
    overlong_buffer: int = Field(default=0, ge=0)
    """For overlong: penalize, the penalty grows over this many tokens before max_tokens."""
    overlong_penalty: float = Field(default=1.0, gt=0)
    """For overlong: penalize, what is taken off the reward of a reply that is cut."""
    reference: ModelRef | None = None
    """The fixed reference; by default where the stage starts. If given, the divergence from it is
    measured even where it costs nothing."""
    on_reward_error: OnError = "drop"
    """A reward, or an environment, that raises or takes too long: drop leaves the reply (or the
    episode) out of its group, zero counts it as 0, stop ends the stage."""
    reward_timeout: Annotated[float | None, Affects.COST] = Field(default=None, gt=0)
    """Seconds that a reward may take for a group of replies, and an environment to begin an episode
    or to answer a reply; by default no limit."""

    @model_validator(mode="after")
    def _buffer_fits(self) -> CompletionConfig:
        if self.overlong_buffer and self.overlong != "penalize":
            raise ValueError("overlong_buffer is for overlong: penalize")
        if self.overlong_penalty != 1 and self.overlong != "penalize":
            raise ValueError("overlong_penalty is for overlong: penalize")
        if self.overlong_buffer >= self.max_tokens:
            raise ValueError("overlong_buffer has to be less than max_tokens")
        return self

    @property
    def reads_reference(self) -> bool:
        """Whether the reference reads each reply."""
        return self.reference is not None

    @property
    def reads_policy(self) -> BehaviourLogprobs:
        """Whether the weights that wrote a reply read it again."""
        return "sampled"

    @property
    def measures_policy(self) -> bool:
        """Whether log q as it is told is compared with what they read."""
        return False

    @property
    def reads_entropy(self) -> bool:
        """Whether they tell how certain they were at each of its tokens."""
        return False

    @property
    def compares_parts(self) -> bool:
        """Whether each of several rewards is compared in its group by itself."""
        return False

    @property
    def readers(self) -> int:
        """How many times each reply is read by fixed weights, for all that is known beforehand."""
        return self.reads_reference + (self.reads_policy == "recomputed") + self.reads_entropy

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


@dataclass
class PromptSource:
    """Groups of completions of prompts. A `Source`."""

    prompts: Sequence[Prompt]
    renderer: Renderer
    config: CompletionConfig
    waiter: Waiter
    greedy: bool = False
    """Whether the likeliest reply is sampled too, for a baseline."""

    @property
    def size(self) -> int:
        """How many prompts there are."""
        return len(self.prompts)

    @property
    def seats(self) -> int:
        """A reply has one author."""
        return 1

    def sample(self, index: int, seed: int, sampler: tinker.SamplingClient) -> list[Group]:
        """All completions of prompt `index`, in one request; its greedy one in another."""
        prompt, config = self.prompts[index], self.config
        tokens = self.renderer.prompt(prompt.messages)

        def ask(count: int, temperature: float) -> Any:
            return sample(
                sampler,
                tokens,
                count,
                max_tokens=config.max_tokens,
                temperature=temperature,
                seed=seed,
                stop=self.renderer.stop,
            )

        future = ask(config.group_size, config.temperature)
        likeliest = self._rollouts(ask(1, 0.0), prompt, tokens) if self.greedy else [None]
        return [Group(self._rollouts(future, prompt, tokens), greedy=likeliest[0])]

    def _rollouts(self, future: Any, prompt: Prompt, tokens: Sequence[int]) -> list[Rollout]:
        rollouts = []
        for sequence in self.waiter(future).sequences:
            if sequence.logprobs is None:
                raise UsageError(
                    "the engine gave no log-probabilities with its samples", code="engine-cannot"
                )
            completion = reply(prompt, sequence, self.renderer)
            segment = Segment.reply(tokens, sequence.tokens, sequence.logprobs)
            whole = (*prompt.messages, Message("assistant", completion.completion))
            rollouts.append(Rollout([segment], completion, [whole]))
        return rollouts


@dataclass
class EpisodeSource:
    """Groups of episodes of one task, a group for each seat. A `Source`."""

    tasks: Sequence[Task]
    renderer: Renderer
    config: CompletionConfig
    waiter: Waiter
    limits: EpisodeLimits
    seats: int = 1
    """How many players the policy takes the part of."""
    greedy: bool = False
    """Whether an episode of the likeliest replies is played too, for a baseline."""

    @property
    def size(self) -> int:
        """How many tasks there are."""
        return len(self.tasks)

    def sample(self, index: int, seed: int, sampler: tinker.SamplingClient) -> list[Group]:
        """Episodes of task `index`, turn by turn, with what each seat got.

        Raises:
            PtlError: the environment failed, and the stage says that this ends it.
        """
        tasks = [self.tasks[index]] * self.config.group_size
        plays = play(tasks, seed, sampler, self.renderer, self.waiter, self.limits)
        limits = replace(self.limits, temperature=0.0)
        likeliest = self.greedy and play(
            tasks[:1], seed, sampler, self.renderer, self.waiter, limits
        )
        failed = [one for one in plays if one.error]
        if failed and self.config.on_reward_error == "stop":
            raise failed[0].failure(
                "mend it, or set on_reward_error to 'drop' or 'zero' to go on without"
            )
        groups = [self._group(plays, seat) for seat in range(self.seats)]
        for seat, group in enumerate(groups):
            group.greedy = next(iter(self._group(likeliest or [], seat).rollouts), None)
        groups[0].error = next((f"an environment: {one.error}" for one in failed), "")
        told = [one for one in plays if one.players and isinstance(one.task, DrivenTask)]
        empty = sum(not one.players[0].segments for one in told)
        if empty and not failed:
            groups[0].error = "an environment: play() gave no branches, so that nothing is learned"
        groups[0].counts.update(
            abstained=empty,
            retried=sum(one.retried for one in plays),
            failed=sum(not one.late for one in failed),
            timed_out=sum(one.late for one in failed),
            thrown_away=sum(one.thrown_away for one in plays),
        )
        return groups

    def _group(self, plays: Sequence[Play], seat: int) -> Group:
        rollouts, abstained = [], 0
        # Who never had a turn has nothing to learn from.
        for one in [one for one in plays if one.players and one.players[seat].segments]:
            player, sample = one.players[seat], one.sample(seat)
            reward, parts = player.reward, dict(sample.scores)
            if one.error:
                reward = 0.0 if self.config.on_reward_error == "zero" else None
            elif reward is None:
                abstained += 1
            else:
                parts = {"return": reward, **parts}
            rollouts.append(Rollout(player.segments, sample, player.conversations, reward, parts))
        return Group(rollouts, Counter(abstained=abstained))


def episodes(
    tasks: Sequence[Task],
    stage: StageContext,
    config: CompletionConfig,
    waiter: Waiter,
    retries: int,
    greedy: bool = False,
) -> EpisodeSource:
    """The source of a stage's tasks.

    Args:
        retries: how often an episode is begun again in which the environment raised.
        greedy: whether an episode of the likeliest replies is played with each group.

    Raises:
        UsageError: rewards beside those of the environment.
        PtlError: the first task cannot be begun.
    """
    if stage.rewards:
        raise UsageError(
            f"stage '{stage.name}' learns from an environment, which rewards by itself",
            hint="remove its 'reward:'",
            code="wrong-value",
        )
    limits = EpisodeLimits(
        config.max_turns, config.max_tokens, config.temperature, retries, config.reward_timeout
    )
    if isinstance(tasks[0], DrivenTask):  # its episodes have one seat, and begin as they are played
        return EpisodeSource(tasks, stage.renderer, config, waiter, limits, greedy=greedy)
    first = Play.of(tasks[0], stage.renderer, limits)
    if first.error:
        raise first.failure("begin an episode of it by hand")
    return EpisodeSource(tasks, stage.renderer, config, waiter, limits, len(first.players), greedy)
