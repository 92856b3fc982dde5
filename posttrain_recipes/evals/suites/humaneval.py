"""HumanEval: Python functions that are begun."""

from __future__ import annotations

import re
from textwrap import indent

from posttrain_recipes.evals.suites.options import Published, SuiteConfig
from posttrain_recipes.evals.suites.programs import Programs, ProgramsConfig
from posttrain_recipes.evals.suites.suite import question, turns
from posttrain_recipes.plugin import Message, Prompt, Sample
from posttrain_recipes.training.text.answer_extraction import python_code

_NEXT = re.compile(r"\n(?=class |def |#|if |print)")
"""Where the body of a function is over (Chen et al. 2021)."""


class HumanEval(Programs):
    """HumanEval: share of Python functions that the model completes so that the tests pass.

    Chen et al. 2021, arXiv 2107.03374; `openai/openai_humaneval`, test. A file has `prompt`, `test`
    and `entry_point`. The prompt is that of lm-evaluation-harness' `humaneval_instruct`. A reply
    that does not define the function anew is taken for its body. pass@k, in the sandbox.
    """

    name = "humaneval"
    published = Published("openai/openai_humaneval", None, "test")

    class Config(ProgramsConfig, SuiteConfig):
        """Options of the eval."""

    config: Config

    def fault(self, prompt: Prompt) -> str | None:
        """No tests, or no name of a function."""
        for name in ("test", "entry_point"):
            if not isinstance(prompt.metadata.get(name), str):
                return f"has no '{name}'"
        return None

    def messages(self, prompt: Prompt) -> tuple[Message, ...]:
        head = "Write a solution to the following problem and make sure that it passes the tests:"
        return turns((), f"{head}\n```python\n{question(prompt).rstrip()}\n```")

    def program(self, prompt: Prompt, sample: Sample) -> str:
        begun, code = question(prompt).rstrip(), python_code(sample.completion)
        if re.search(rf"\bdef\s+{re.escape(prompt.metadata['entry_point'])}\b", code):
            return f"{begun}\n{code}"  # what it imports and defines before the function is there
        return f"{begun}\n{body(code)}"

    def tests(self, prompt: Prompt) -> list[str]:
        return [f"{prompt.metadata['test']}\n\ncheck({prompt.metadata['entry_point']})"]


def body(code: str) -> str:
    """What a reply says of the body of a function, up to what comes after the function; indented
    where the first line alone, or all of it, lost that."""
    first, _, rest = code.partition("\n")
    if not first.strip() or first[0].isspace():
        return _NEXT.split(code)[0]
    rest = _NEXT.split(f"\n{rest}")[0].removeprefix("\n")
    depths = [len(line) - len(line.lstrip()) for line in rest.split("\n") if line.strip()]
    inside = 8 if first.rstrip().endswith(":") else 4
    if all(depth >= inside for depth in depths[:1]) and all(depths):
        return f"    {first}\n{rest}"
    return indent(code, "    ")
