"""Preferences by a model (RLAIF; Lee et al. 2023, arXiv 2309.00267).

The policy writes two replies to each prompt, a judge says which is better, and the two become a
preference pair for dpo and its kin, or for a reward model. The judge sees each pair in both orders,

    m = (o(x, y) - o(y, x)) / 2,   o(a, b) = log p("A" | a first, b second) - log p("B" | ...)

so that a liking for the first place cancels; the reply with m > 0 is chosen. Pairs with
|m| <= `margin` are ties: they are dropped, and counted, and so are equal replies.

No human label is read: of a prompt's record only its messages are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, ClassVar, cast

from pydantic import Field, field_validator

from posttrain_recipes.plugin import (
    Affects,
    DataMethod,
    Message,
    ModelRef,
    Preference,
    Prompt,
    Record,
    Rendered,
    Renderer,
    StageContext,
)
from posttrain_recipes.training.judges import judge as judging
from posttrain_recipes.training.sampling import datagen
from posttrain_recipes.training.text import rendered


class AIPreferences(DataMethod):
    """Makes preference pairs: the policy writes two replies, a judge model says which is better.

    When: the better of two replies is easy to tell and nobody is there to tell it; the judge may
    be a larger model, or the policy itself. When not: a rule can check the reply (reward it), or
    the judge is no better than chance on pairs of which you know the answer: try it on some.
    """

    name = "ai_preferences"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    makes: ClassVar[tuple[type[Record], ...]] = (Preference,)
    needs = ("sample:group", "sample:top_logprobs")
    loss = "none: chosen is the reply with the higher mean log p of its letter over both orders"
    paper = "Lee et al. 2023, RLAIF: scaling reinforcement learning from AI, arXiv 2309.00267"

    class Config(datagen.MakingConfig):
        """Options of preferences by a model."""

        judge: ModelRef | None = None
        """Who judges; the stage's own start where not given."""
        policy: ModelRef | None = None
        """Who writes the replies; the stage's own start where not given."""
        question: str = (
            "Request: {prompt}\nReply A: {a}\nReply B: {b}\nWhich reply is better, A or B?"
        )
        """What the judge is asked, with {prompt}, {a} and {b}; it answers A or B."""
        score: judging.How = "logits"
        """Read the judge's log-odds of A and B, or let it write and find the letter."""
        pairs: int = Field(default=1, ge=1)
        """Pairs of replies to each prompt."""
        margin: float = Field(default=0.0, ge=0)
        """Pairs are ties up to this margin, in nats of log-odds."""
        retries: Annotated[int, Affects.COST] = Field(default=2, ge=0)
        """How often a text without a verdict is asked for again before it counts as missing."""

        @field_validator("question")
        @classmethod
        def _shows_both(cls, question: str) -> str:
            if missing := [name for name in ("{a}", "{b}") if name not in question]:
                raise ValueError(f"'question' has no {' and no '.join(missing)} in it")
            return question

    config: Config

    def rendered(
        self, record: Record, renderers: Callable[[ModelRef | None], Renderer]
    ) -> Sequence[Rendered]:
        """The prompt, as whoever replies to it reads it."""
        return [rendered.prompt(cast(Prompt, record).messages, renderers(self.config.policy))]

    def make(self, stage: StageContext, skip: int) -> Iterator[Sequence[Preference]]:
        """A batch of prompts at a time."""
        config = self.config
        judge = judging.ModelJudge(
            datagen.served(stage, config.judge),
            stage.wait,
            max_tokens=config.max_tokens,
            seed=stage.seed,
        )
        groups = datagen.batches(cast(Sequence[Prompt], stage.train), config.batch_size)
        stage.sink.begin(len(groups))
        replies = datagen.ahead(
            datagen.served(stage, config.policy),
            [[prompt.messages for prompt in group] for group in groups],
            skip,
            stage.wait,
            count=2 * config.pairs,
            config=config,
            seed=stage.seed,
        )
        for number, answers in replies:
            pairs = [
                (prompt.messages, x.text, y.text)
                for prompt, written in zip(groups[number - 1], answers, strict=True)
                for x, y in zip(written[::2], written[1::2], strict=True)
                if x.usable and y.usable and x.text != y.text
            ]
            margins = judging.margins(judge, pairs, config.question, config.score, config.retries)
            records = [
                preference(prompt, *((x, y) if margin > 0 else (y, x)))
                for (prompt, x, y), margin in zip(pairs, margins, strict=True)
                if margin is not None and abs(margin) > config.margin
            ]
            known = [margin for margin in margins if margin is not None]
            asked = len(groups[number - 1]) * config.pairs
            stage.sink.log(
                {
                    "data/kept": len(records),
                    "data/unusable": asked - len(pairs),
                    "data/truncated": datagen.cut_share([r for said in answers for r in said]),
                    **({"judge/truncated": judge.cut_share()} if config.score == "text" else {}),
                    "judge/ties": len(known) - len(records),
                    "judge/missing": len(margins) - len(known),
                    "judge/margin": sum(map(abs, known)) / max(1, len(known)),
                },
                number,
            )
            yield records


def preference(prompt: Sequence[Message], chosen: str, rejected: str) -> Preference:
    """A pair of replies to a prompt."""
    return Preference(
        prompt=tuple(prompt),
        chosen=(Message("assistant", chosen),),
        rejected=(Message("assistant", rejected),),
    )
