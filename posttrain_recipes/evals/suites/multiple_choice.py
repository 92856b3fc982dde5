"""Multiple choice by log-probability: MMLU, and files of questions with choices."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any, Literal

from posttrain_recipes.errors import UsageError
from posttrain_recipes.evals.suites.options import FewShotConfig, Published
from posttrain_recipes.evals.suites.suite import Suite, question, turns
from posttrain_recipes.plugin import (
    CountTokens,
    EvalContext,
    EvalResult,
    Message,
    PerRecord,
    Prompt,
    Renderer,
    Sample,
    Usage,
    Workload,
)
from posttrain_recipes.training.intervals import proportion
from posttrain_recipes.training.sampling.generation import log_likelihoods
from posttrain_recipes.training.text.examples import Example
from posttrain_recipes.workload import mean


class MultipleChoice(Suite):
    """Share of questions whose right choice the model finds the likeliest; nothing is sampled.

    A file has `question`, `choices` (a list of texts) and `answer` (the place of the right one from
    0, its letter, or its text), and may have `subject`. The rules are lm-evaluation-harness': `acc`
    by the log-probability of a choice, `acc_norm` by that for each of its characters.
    """

    name = "multiple_choice"
    needs = ("prompt_logprobs",)

    class Config(FewShotConfig):
        """Options of the eval."""

        score: Literal["letters", "texts"] = "letters"
        """What the model is to say: the choice's letter, all of them shown (as in MMLU), or its
        text, none shown (as in ARC and HellaSwag)."""

    config: Config

    def measures(self) -> Sequence[str]:
        return ["acc"] if self.config.score == "letters" else ["acc", "acc_norm"]

    def fault(self, prompt: Prompt) -> str | None:
        """No choices, or no right one."""
        choices = prompt.metadata.get("choices")
        texts = isinstance(choices, list) and all(isinstance(c, str) and c for c in choices)
        if not isinstance(choices, list) or not texts:
            return "'choices' is to be a list of texts"
        if not 2 <= len(choices) <= len(ascii_uppercase):
            return f"has {len(choices)} choices, and 2 to {len(ascii_uppercase)} can be told apart"
        if right(prompt) is None:
            return f"its answer, {prompt.answer!r}, is none of the {len(choices)} choices"
        return None

    def asked(self, context: EvalContext) -> list[Prompt]:
        """The records in their form.

        Raises:
            UsageError: as of every suite; or all answers are texts of choices, and other choices
                are meant where they are read as places or letters.
        """
        prompts = super().asked(context)
        if self.published is None and all(p.answer in p.metadata["choices"] for p in prompts):
            for prompt in prompts:
                choices, answer = prompt.metadata["choices"], prompt.answer
                if choices[right(prompt) or 0] != answer:
                    raise UsageError(
                        f"eval '{context.name}': {prompt.source}: is the answer {answer!r} the "
                        f"text of a choice, or its place? {choices}",
                        why="all answers of the file can be read both ways",
                        hint="write its letter; its place from 0 where the choices are letters",
                        code="wrong-data",
                    )
        return prompts

    def fits(self, example: Prompt, prompt: Prompt) -> bool:
        """Examples are of the subject of the question."""
        same = example.metadata.get("subject") == prompt.metadata.get("subject")
        return same and super().fits(example, prompt)

    def messages(self, prompt: Prompt) -> tuple[Message, ...]:
        shown = [
            f"{self._block(one)} {self.replies(one)[right(one) or 0]}"
            for one in self.examples(prompt)
        ]
        return turns((), "\n\n".join([*self._head(prompt), *shown, self._block(prompt)]))

    def _head(self, prompt: Prompt) -> list[str]:
        if self.config.score == "texts":
            return []
        subject = str(prompt.metadata.get("subject") or "").replace("_", " ")
        about = f" about {subject}" if subject else ""
        return [f"The following are multiple choice questions (with answers){about}."]

    def _block(self, prompt: Prompt) -> str:
        if self.config.score == "texts":
            return f"Question: {question(prompt)}\nAnswer:"
        choices = zip(ascii_uppercase, prompt.metadata["choices"], strict=False)
        return "\n".join([question(prompt), *(f"{a}. {text}" for a, text in choices), "Answer:"])

    def replies(self, prompt: Prompt) -> list[str]:
        """What the model could say, a reply for each choice."""
        choices: list[str] = prompt.metadata["choices"]
        return list(ascii_uppercase[: len(choices)]) if self.config.score == "letters" else choices

    def work(self, asked: Sequence[Prompt], count: int, tokens: CountTokens) -> Workload:
        """Every question is read once with each of its choices."""
        lengths = [
            sum(tokens((*one.messages, Message("assistant", said))) for said in self.replies(one))
            for one in asked
        ]
        return Workload(Usage(prefill=round(count * mean(lengths))))

    def evaluate(self, context: EvalContext) -> EvalResult:
        """The interval is Wilson's. Of equals the first counts."""
        prompts = self.asked(context)
        examples = [
            replied((*prompt.messages, Message("assistant", said)), context.renderer)
            for prompt in prompts
            for said in self.replies(prompt)
        ]
        sums = iter(log_likelihoods(context, examples))
        scored: list[Sample] = []
        for prompt in prompts:
            replies = self.replies(prompt)
            found = [next(sums) for _ in replies]
            each = [value / max(1, len(said)) for value, said in zip(found, replies, strict=True)]
            likeliest = {"acc": found, "acc_norm": each}
            best = {name: _best(likeliest[name]) for name in self.measures()}
            wanted = right(prompt)
            scored.append(
                Sample(
                    prompt.messages,
                    replies[best["acc"]],
                    replies[wanted or 0],
                    scores={name: float(place == wanted) for name, place in best.items()},
                )
            )
        values = {name: tuple(s.scores[name] for s in scored) for name in self.measures()}
        return EvalResult(
            {name: proportion(sum(found), len(found)) for name, found in values.items()},
            tuple(scored),
            higher_is_better=dict.fromkeys(values, True),
            scores={name: PerRecord(found) for name, found in values.items()},
        )


class MMLU(MultipleChoice):
    """MMLU: share of questions of 57 subjects whose right letter the model finds the likeliest.

    Hendrycks et al. 2021, arXiv 2009.03300; `cais/mmlu`, all, test. A file has `question`,
    `choices`, `answer` (its place from 0) and `subject`. The prompt is that of the paper, with the
    subject; five examples, as there, are the first of the subject in the split `dev`. The share is
    over questions, as lm-evaluation-harness' `acc`.
    """

    name = "mmlu"
    published = Published("cais/mmlu", "all", "test", "dev")


def right(prompt: Prompt) -> int | None:
    """The place of the right choice, from 0; None where the answer tells none."""
    choices: list[Any] = prompt.metadata["choices"]
    answer = (prompt.answer or "").strip()
    if answer.isdecimal() and int(answer) < len(choices):
        return int(answer)
    if len(answer) == 1 and answer.upper() in ascii_uppercase[: len(choices)]:
        return ascii_uppercase.index(answer.upper())
    return choices.index(answer) if answer in choices else None


def replied(messages: Sequence[Message], renderer: Renderer) -> Example:
    """A conversation whose last reply is scored, without what ends the reply: a choice is not the
    likelier for being followed by an end."""
    tokens, weights = renderer.supervised(messages)
    first = next((place for place, weight in enumerate(weights) if weight), len(weights))
    ends = (place for place in range(first, len(tokens)) if tokens[place] in renderer.stop)
    end = next(ends, len(tokens))
    return Example(tokens[:end], weights[:end])


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
