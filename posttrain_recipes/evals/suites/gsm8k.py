"""GSM8K: word problems whose answer is a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from posttrain_recipes.conversion import REPLY
from posttrain_recipes.evals.suites.options import FewShotConfig, Published, SampledConfig
from posttrain_recipes.evals.suites.suite import Suite, question, turns
from posttrain_recipes.plugin import EvalContext, EvalResult, Message, Prompt
from posttrain_recipes.training.intervals import proportion
from posttrain_recipes.training.sampling import generation
from posttrain_recipes.training.text.answer_extraction import final_number, reference_number


class GSM8K(Suite):
    """GSM8K: share of grade-school word problems whose final number is right.

    Cobbe et al. 2021, arXiv 2110.14168; `openai/gsm8k`, main, test. A file has `question` and
    `answer`, which ends in `#### 18`. Without examples the instruction of Qwen2.5-Math (Yang et al.
    2024, arXiv 2409.12122) stands after the question; examples are turns of question and worked
    solution, the first of the train split. The number is read as the reward `numeric` reads it.
    """

    name = "gsm8k"
    published = Published("openai/gsm8k", "main", "test", "train[:{count}]")

    class Config(SampledConfig, FewShotConfig):
        """Options of the eval."""

        instruction: str = "Please reason step by step, and put your final answer within \\boxed{}."
        """Stands after the question, where there are no examples; empty: the question alone."""

    config: Config

    def measures(self) -> Sequence[str]:
        return ["exact_match"]

    def fault(self, prompt: Prompt) -> str | None:
        """An answer that is no number."""
        if prompt.answer is None:
            return "has no 'answer'"
        if reference_number(prompt.answer) is None:
            return f"its answer is no number: {prompt.answer[:40]!r}"
        return None

    def messages(self, prompt: Prompt) -> tuple[Message, ...]:
        shown = [(question(one), _solution(one)) for one in self.examples(prompt)]
        asked = question(prompt)
        if not shown and self.config.instruction:
            asked += f"\n{self.config.instruction}"
        return turns(shown, asked)

    def evaluate(self, context: EvalContext) -> EvalResult:
        """One reply a problem; the interval is Wilson's."""
        config, prompts = self.config, self.asked(context)
        samples = generation.generate(
            context, prompts, max_tokens=config.max_tokens, temperature=config.temperature
        )
        scored = []
        for sample in samples:
            found, wanted = final_number(sample.completion), reference_number(sample.answer or "")
            right = found is not None and wanted is not None and found.equals(wanted)
            scored.append(replace(sample, scores={"exact_match": float(right)}))
        hits = sum(sample.scores["exact_match"] for sample in scored)
        return EvalResult(
            {"exact_match": proportion(hits, len(scored))},
            tuple(scored),
            higher_is_better={"exact_match": True},
        )


def _solution(example: Prompt) -> str:
    return str(example.metadata.get(REPLY, example.answer))
