"""Self-distillation policy optimization (Hübotter et al. 2026, arXiv 2601.20802).

    loss = sum_t KL(p(. | x, y_<t) || q(. | x, y_<t)) / T,   y ~ p(. | x)
    q(. | x, y_<t) = p(. | x, f, y_<t), without a gradient

The policy p answers a prompt x several times, and a reward scores the attempts. What is to be said
of an attempt y is its feedback f: the reward's message, such as the test that failed, and another
attempt at the same prompt that succeeded. The policy that is shown f is the teacher of the one that
is not, at each of the T tokens of y: where f makes it doubt what it wrote, p unlearns that. An
attempt of which there is nothing to say is not learned.

`beta` of `gkd` stands between the divergences here too, 1 for the paper's; it is taken over the
teacher's `top_k` likeliest tokens and all others as one. Departs from the paper: the teacher is the
policy as it is at each step, or the stage's start, and no moving average, as weights cannot be
averaged over Tinker's wire; the `top_k` are the teacher's and not the student's.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field, ValidationInfo, field_validator

from posttrain_recipes.plugin import (
    AskedOf,
    Checkpoint,
    CountTokens,
    Method,
    Prompt,
    PtlError,
    Record,
    Reward,
    RewardContext,
    StageContext,
    Usage,
    Workload,
)
from posttrain_recipes.records import Messages, Sample
from posttrain_recipes.training.distill import divergence, teachers
from posttrain_recipes.training.distill.on_policy import (
    WATCHED,
    Attempt,
    OnPolicy,
    OnPolicyConfig,
    StudentPrompt,
    prompt_tokens,
    retold,
)
from posttrain_recipes.training.loops import supervised, token_counts
from posttrain_recipes.training.rl.scoring import OnError, Scorer, Scores

if TYPE_CHECKING:
    import tinker

log = logging.getLogger(__name__)
TEMPLATE = "{question}{success}{feedback}\n\nCorrectly solve the original question."
SUCCESS = "\n\nCorrect solution:\n\n{success}"
FEEDBACK = "\n\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback}"
TROUBLES = ("abstained", "failed", "timed_out")
SHOWN = 8
"""Steps of a stage of which attempts are shown, about."""


class SDPO(Method):
    """Self-distillation policy optimization: learn from what is said of one's own attempts.

    When: something tells in words what is wrong with an attempt, such as a failing test, and the
    model makes sense of it; where one attempt in a group succeeds, the others learn from it also
    without words. When not: there is a number and nothing else, and the model never succeeds; or it
    is too weak to make use of a hint in its prompt (grpo, sft).
    """

    name = "sdpo"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    takes_reward = True
    needs = (
        *("custom_loss", "targets:several", "sample:group", "sample:trained"),
        "prompt_logprobs:top_k",
    )
    loss = (
        "sum(p * (log p - log q)) / T along its attempts, q the policy shown what is said of them"
    )
    paper = "Hübotter et al. 2026, Reinforcement learning via self-distillation, arXiv 2601.20802"

    class Config(OnPolicyConfig):
        """Options of learning from feedback."""

        group_size: int = Field(default=8, ge=1)
        """Attempts at each prompt."""
        success: float = 1.0
        """The reward from which on an attempt has succeeded."""
        show_success: bool = True
        """Whether the teacher of an attempt is shown another one that succeeded."""
        beta: float = Field(default=1.0, ge=0, le=1)
        """Which divergence: 1 is the reverse KL of the paper, 0 the forward KL, in between a
        Jensen-Shannon."""
        top_k: Annotated[int, AskedOf.LIKELIEST] = Field(default=20, ge=1, le=100)
        """How many of the teacher's likeliest tokens are told apart at each position; all others
        count as one."""
        teacher: Literal["policy", "start"] = "policy"
        """Who is shown the feedback: the policy as it is, or as the stage began."""
        template: str = TEMPLATE
        """What the teacher reads, with {question}, {success} and {feedback}; what there is not is
        left out."""
        success_template: str = SUCCESS
        """How an attempt that succeeded is told, with {success}."""
        feedback_template: str = FEEDBACK
        """How the reward's words are told, with {feedback}."""
        on_reward_error: OnError = "drop"
        """A reward that raises or takes too long: drop leaves the attempt out, zero gives it 0,
        stop ends the stage."""
        reward_timeout: float | None = Field(default=None, gt=0)
        """Seconds that a reward may take for the attempts at a prompt; by default no limit."""

        @field_validator("template", "success_template", "feedback_template")
        @classmethod
        def _has_its_places(cls, template: str, info: ValidationInfo) -> str:
            name = str(info.field_name).removesuffix("_template")
            places = ("question", "success", "feedback") if name == "template" else (name,)
            for place in places:
                if f"{{{place}}}" not in template:
                    raise ValueError(f"'{info.field_name}' has to have {{{place}}} in it")
            return template

    config: Config

    def reward_problems(self, rewards: Sequence[Reward]) -> Iterable[tuple[str, str]]:
        """Nothing that a teacher could be shown of an attempt."""
        config = self.config
        others = config.show_success and config.group_size > 1
        if not others and not any(reward.gives_feedback for reward in rewards):
            option = "group_size" if config.show_success else "show_success"
            why = "one attempt at a prompt has no other" if config.show_success else "it is off"
            yield (
                option,
                f"{why}, and no reward here says anything in words ('feedback:' of a function "
                "does): an attempt would have nothing to be learned from",
            )

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """Attempts, read by a teacher that is shown about as much again, and passed twice."""
        config = self.config
        lengths = [tokens(cast(Prompt, record).messages) for record in sample]
        work = token_counts.answers(
            config,
            lengths,
            count,
            max_tokens=config.max_tokens,
            group_size=config.group_size,
            read=[[length + config.max_tokens for length in lengths]],
        )
        again = Usage(prefill=work.usage.train, forward=work.usage.train)
        return replace(work, usage=work.usage + again, about=True)

    def train(self, stage: StageContext) -> Checkpoint:
        """Train on the stage's prompts, with its rewards."""
        config = self.config
        items = [
            _Tried(record, prompt_tokens(record.messages, stage.renderer, config, record.source))
            for record in cast(Sequence[Prompt], stage.train)
        ]
        steps = supervised.total_steps(config, len(items))
        objective = _Hindsight(stage, config, every=max(1, steps // SHOWN))
        return supervised.train(stage, config, items, objective)


class _Tried(StudentPrompt):
    def __init__(self, record: Prompt, prompt: list[int]) -> None:
        self.record = record
        self.prompt = prompt


@dataclass(frozen=True)
class _Judged:
    """An attempt with what its teacher reads before it."""

    attempt: Attempt
    sample: Sample
    reward: float | None
    shown: Messages | None
    """None where there is nothing to say of it, or it has no reward."""


class _Hindsight(OnPolicy[_Tried]):
    config: SDPO.Config

    def __init__(self, stage: StageContext, config: SDPO.Config, every: int = 1) -> None:
        super().__init__(stage, config)
        self.every = every
        self.scorer = Scorer(stage.rewards, config.on_reward_error, config.reward_timeout)
        self.scorer.open(
            RewardContext(stage.seed, stage.renderer, stage.wait, stage.resolve, stage.cache)
        )
        self._errors: list[Scores] = []
        """What the rewards of each group of the step came to."""
        self._warned = False
        self.start = stage.sampling_client(stage.start) if config.teacher == "start" else None

    def submit(
        self, client: tinker.TrainingClient, batch: Sequence[_Tried]
    ) -> tinker.APIFuture[tinker.ForwardBackwardOutput]:
        config = self.config
        policy = self.snapshot(client)
        teacher = self.start or policy
        judged: list[_Judged] = []
        self._errors.clear()
        asked: list[tuple[Attempt, tinker.APIFuture[tinker.SampleResponse]]] = []
        too_long = 0
        for group in self._groups(policy, batch):
            judged += group
            for one in group:
                y, shown = one.attempt, one.shown and self.stage.renderer.prompt(one.shown)
                if not shown:
                    continue
                if len(shown) + len(y.tokens) > config.max_length:
                    too_long += 1
                    continue
                asked.append((y, teachers.ask_top_k(teacher, shown, y.tokens, config.top_k)))
        learned = [(y, teachers.likeliest(self.stage.wait(q), len(y.tokens))) for y, q in asked]
        self._tell(judged, learned, too_long)
        if not learned:  # no gradient, so that the count of steps holds; Adam may still coast
            nothing = [teachers.hard_datum(one.attempt, 0.0) for one in judged]
            return client.forward_backward(nothing, "cross_entropy")
        T = sum(len(y.tokens) for y, _ in learned)
        return client.forward_backward_custom(
            [teachers.several_targets(y, q.ids) for y, q in learned],
            divergence.of_replies([q for _, q in learned], config.beta, 1 / T),
        )

    def _groups(
        self, policy: tinker.SamplingClient, batch: Sequence[_Tried]
    ) -> Iterator[list[_Judged]]:
        """The attempts at each prompt, y ~ p(. | x), with rewards and what is said of them."""
        for _, written in groupby(self.written(policy, batch), key=lambda pair: id(pair[0])):
            pairs = list(written)
            record, attempts = pairs[0][0].record, [y for _, y in pairs]
            samples = [self._sample(record, y) for y in attempts]
            scores = self.scorer.score(samples)
            self._errors.append(scores)
            rewards = scores.totals
            said = self.scorer.feedback(samples)
            enough = self.config.success
            solved = [i for i, r in enumerate(rewards) if r is not None and r >= enough]
            yield [
                _Judged(
                    attempts[i],
                    samples[i],
                    rewards[i],
                    None
                    if rewards[i] is None
                    else self._shown(
                        record,
                        next((samples[j].completion for j in solved if j != i), None),
                        said[i],
                    ),
                )
                for i in range(len(attempts))
            ]

    def _sample(self, record: Prompt, y: Attempt) -> Sample:
        renderer = self.stage.renderer
        return Sample(
            prompt=record.messages,
            completion=renderer.parse(y.tokens),
            answer=record.answer,
            truncated=y.truncated,
            metadata=record.metadata,
            raw=renderer.raw(y.tokens),
        )

    def _shown(self, record: Prompt, success: str | None, said: str | None) -> Messages | None:
        """The prompt with what is said of an attempt at it in its last message."""
        config = self.config
        if not config.show_success:
            success = None
        if success is None and said is None:
            return None
        hints = {
            "success": success and config.success_template.replace("{success}", success),
            "feedback": said and config.feedback_template.replace("{feedback}", said),
        }
        told = {name: text or "" for name, text in hints.items()}
        return retold(record.messages, config.template, record.source, **told)

    def _tell(
        self,
        judged: Sequence[_Judged],
        learned: Sequence[tuple[Attempt, teachers.Likeliest]],
        too_long: int,
    ) -> None:
        """Log what the step's attempts showed."""
        config = self.config
        counts = sum((scores.counts for scores in self._errors), Counter[str]())
        self._check(judged, counts)
        rewards = [one.reward for one in judged if one.reward is not None]
        mass = sum(teachers.soft_targets(q.ids, q.logprobs).mass for _, q in learned)
        shown = {
            "reward/mean": sum(rewards) / max(1, len(rewards)),
            "feedback/solved_share": sum(r >= config.success for r in rewards)
            / max(1, len(rewards)),
            **{f"reward_errors/{name}": float(counts[name]) for name in TROUBLES},
            "feedback/learned_share": len(learned) / len(judged),
            "teacher/mass": mass / max(1, sum(len(y.tokens) for y, _ in learned)),
        }
        if too_long:
            log.warning(
                "step %d: %d attempts are not learned, as they and their feedback are more than "
                "max_length=%d tokens",
                self._step + 1,
                too_long,
                config.max_length,
            )
        if self._step % self.every == 0:
            self.stage.sink.show(
                "feedback",
                [
                    replace(
                        one.sample,
                        prompt=one.shown or one.sample.prompt,
                        scores={} if one.reward is None else {"reward": one.reward},
                    )
                    for one in judged[: 2 * config.group_size]
                ],
                self._step + 1,
            )
        first = learned[:WATCHED]
        ratios = [{"reverse_kl": q.ratios(y.tokens, y.logprobs)} for y, q in first]
        self.watch([y for y, _ in first], ratios)
        self.showed([one.attempt for one in judged], shown)

    def _check(self, judged: Sequence[_Judged], counts: Counter[str]) -> None:
        """Tell the first time that a reward fails; raise where no attempt has one."""
        why = next((scores.error for scores in self._errors if scores.error), "")
        if all(one.reward is None for one in judged):
            raise PtlError(
                f"no attempt of a whole batch of stage '{self.stage.name}' has a reward",
                why=why or "every reward abstained: do the prompts have what it compares with?",
                hint="try the reward on one of the replies by hand",
                code="reward-failed",
            )
        if why and not self._warned:
            self._warned = True
            log.warning(
                "step %d: %d of %d attempts got no score of a reward, and %s: %s; later ones are "
                "counted in reward_errors/",
                self._step + 1,
                counts["failed"] + counts["timed_out"],
                len(judged),
                "it counts as 0" if self.config.on_reward_error == "zero" else "are left out",
                why,
            )
