"""MBPP: basic Python problems with three tests each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from posttrain_recipes.evals.suites.options import FewShotConfig, Published, is_file
from posttrain_recipes.evals.suites.programs import Programs, ProgramsConfig
from posttrain_recipes.evals.suites.suite import question, turns
from posttrain_recipes.plugin import Message, Prompt, Sample
from posttrain_recipes.training.text.answer_extraction import python_code


class MBPP(Programs):
    """MBPP: share of basic Python problems whose tests the model's program passes.

    Austin et al. 2021, arXiv 2108.07732; `google-research-datasets/mbpp`, full or sanitized, test.
    A file has `text` (of sanitized `prompt`) and `test_list`, and may have `test_setup_code` or
    `test_imports`. The prompt is that of the paper, its tests shown; three examples, as there, are
    tasks 2 to 4, from the split `prompt`. pass@1, in the sandbox.
    """

    name = "mbpp"
    published = Published("google-research-datasets/mbpp", "full", "test", "prompt[1:{more}]")

    class Config(ProgramsConfig, FewShotConfig):
        """Options of the eval."""

        subset: Literal["full", "sanitized"] | None = None
        """Of the hub's data set: full (500 test problems) or sanitized (257); by default full."""

    config: Config

    def columns(self, path: str | None) -> Mapping[str, str]:
        """The problem stands under `text`, in what was sanitized under `prompt`."""
        of_file = path is not None and is_file(path)
        text = self._has_text(path) if of_file and path else self.config.subset != "sanitized"
        return {"prompt": "text"} if text else {}

    def _has_text(self, path: str) -> bool:
        try:
            with (self.base_dir / Path(path).expanduser()).open("rb") as file:
                return b'"text"' in file.readline()
        except OSError:  # whoever reads it says why
            return False

    def fault(self, prompt: Prompt) -> str | None:
        """No tests."""
        tests = prompt.metadata.get("test_list")
        if not isinstance(tests, list) or not tests or not all(isinstance(t, str) for t in tests):
            return "'test_list' is to be a list of asserts"
        return None

    def messages(self, prompt: Prompt) -> tuple[Message, ...]:
        shown = [
            (self._asked(one), f"[BEGIN]\n{one.metadata.get('code', '')}\n[DONE]")
            for one in self.examples(prompt)
        ]
        return turns(shown, self._asked(prompt))

    def _asked(self, prompt: Prompt) -> str:
        tests = "\n".join(self.tests(prompt))
        return (
            f"You are an expert Python programmer, and here is your task: {question(prompt)} "
            f"Your code should pass these tests:\n\n{tests}"
        )

    def program(self, prompt: Prompt, sample: Sample) -> str:
        imports = prompt.metadata.get("test_imports") or ()
        setup = [prompt.metadata.get("test_setup_code") or "", *map(str, imports)]
        return "\n".join([*filter(None, setup), python_code(sample.completion)])

    def tests(self, prompt: Prompt) -> list[str]:
        return list(prompt.metadata["test_list"])
