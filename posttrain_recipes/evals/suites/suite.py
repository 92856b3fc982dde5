"""What evals by name have in common: where their data are, and records that are checked first.

Records are read as they stand in the published files; the prompt's form is put about them when the
model is asked. So what a suite asks is compared with training data as its authors wrote it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar, cast

from posttrain_recipes.conversion import convert
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.evals.suites.options import FILES, Published, SuiteConfig, is_file
from posttrain_recipes.plugin import (
    CountTokens,
    DatasetRef,
    Eval,
    EvalContext,
    Message,
    ModelRef,
    Prompt,
    Record,
    Rendered,
    Renderer,
    Workload,
)
from posttrain_recipes.training.sampling import generation
from posttrain_recipes.training.text import rendered

_TOLD = 10
"""Records with a fault that are named; the others are only counted."""


class Suite(Eval):
    """An eval by name: its records, its examples, and the form of its prompts."""

    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    published: ClassVar[Published | None] = None
    data_options: ClassVar[tuple[str, ...]] = tuple(SuiteConfig.model_fields)

    config: Any

    @property
    def needs(self) -> Sequence[str]:
        """Greedy sampling, where it is."""
        return ("sample",) if self.config.temperature else ("sample:greedy",)

    # --- data ------------------------------------------------------------------------------------

    def columns(self, path: str | None) -> Mapping[str, str]:
        """Fields that go by another name in a file, or on the hub (None)."""
        return {}

    def own_data(self) -> Mapping[str, DatasetRef]:
        """The file or the hub's data set that the options name; and the examples, if any."""
        config, found = self.config, {}
        if self.published or config.path:
            found["dataset"] = self._data(config.path, None, config.limit)
        count = getattr(config, "num_fewshot", 0)
        if count and config.fewshot:
            found["fewshot"] = self._data(config.fewshot, "", None)
        elif count and self.published:
            of_hub = None if config.path and is_file(config.path) else config.path
            split = self.published.examples.format(count=count, more=count + 1)
            found["fewshot"] = self._data(of_hub, split, None)
        return found

    def _data(self, path: str | None, split: str | None, limit: int | None) -> DatasetRef:
        config, published = self.config, self.published or Published("", None, "test")
        spec: dict[str, Any] = {"limit": limit, "columns": dict(self.columns(path))}
        if path and is_file(path):
            spec |= {"use": "jsonl", "path": path}
        else:
            spec |= {"use": "huggingface", "path": path or published.path}
            spec |= {"name": config.subset or published.subset, "revision": config.revision}
            spec["split"] = split or config.split or published.split
        return DatasetRef.model_validate(spec)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Options that contradict each other."""
        config = self.config
        if config.path and is_file(config.path):
            for option in ("subset", "split", "revision"):
                if getattr(config, option):
                    yield option, "is of a data set of the hub, and 'path' is a file; remove it"
        count, fewshot = getattr(config, "num_fewshot", 0), getattr(config, "fewshot", None)
        if fewshot and not is_file(fewshot):
            yield "fewshot", f"is to be a file of rows, its name ending in {', '.join(FILES)}"
        if fewshot and not count:
            yield "fewshot", "has no effect without 'num_fewshot'; say how many examples to take"
        if count and not (fewshot or self.published):
            yield "num_fewshot", "where are the examples? name a file with 'fewshot:'"

    # --- records ---------------------------------------------------------------------------------

    @abstractmethod
    def fault(self, prompt: Prompt) -> str | None:
        """What a record lacks of the published form; None where it can be used."""

    @abstractmethod
    def messages(self, prompt: Prompt) -> tuple[Message, ...]:
        """What the model is asked: a record that `fault` finds nothing wrong with, in the prompt's
        form."""

    def rendered(
        self, record: Record, renderers: Callable[[ModelRef | None], Renderer]
    ) -> Sequence[Rendered]:
        """The prompt in its form, with its examples."""
        prompt = cast(Prompt, record)
        if fault := self.fault(prompt):
            raise UsageError(f"{prompt.source}: {fault}", code="wrong-data")
        return [rendered.prompt(self.messages(prompt), renderers(None))]

    def asked(self, context: EvalContext) -> list[Prompt]:
        """The records with what the model is asked as their messages.

        Raises:
            UsageError: records that are not of the published form, by file and line.
        """
        prompts = [cast(Prompt, record) for record in context.records]
        faults = [f"{p.source}: {why}" for p in prompts if (why := self.fault(p))]
        if faults:
            told = "\n  ".join(faults[:_TOLD]) + ("\n  ..." if len(faults) > _TOLD else "")
            raise UsageError(
                f"eval '{context.name}': {len(faults)} of {len(prompts)} records are not of the "
                f"form that {self.name} is published in:\n  {told}",
                hint=f"mend or remove them; 'ptl explain {self.name}' names the fields",
                code="wrong-data",
            )
        return [replace(prompt, messages=self.messages(prompt)) for prompt in prompts]

    def workload(
        self, sample: Sequence[Record], count: int, tokens: CountTokens
    ) -> Workload | None:
        """By the prompts in their form; not known where their examples cannot be read."""
        prompts = [cast(Prompt, record) for record in sample]
        if any(part.digest() is None for parts in self.sources.values() for part in parts):
            return None  # not on this machine
        try:
            asked = [replace(p, messages=self.messages(p)) for p in prompts if not self.fault(p)]
        except PtlError:  # the run says it
            return None
        return self.work(asked, count, tokens)

    def work(self, asked: Sequence[Prompt], count: int, tokens: CountTokens) -> Workload:
        """Every prompt is read once, and a reply may end before its limit."""
        return generation.workload(asked, count, tokens, self.config.max_tokens)

    # --- examples --------------------------------------------------------------------------------

    @cached_property
    def _examples(self) -> list[Prompt] | UsageError:
        """All that there are, or why there are none: looked for once, as the hub may take long."""
        try:
            loaded = (one for part in self.sources.get("fewshot", ()) for one in part.load())
            found = [cast(Prompt, convert(record, Prompt)) for record in loaded]
        except PtlError as error:
            hint = error.hint if self.config.fewshot else "name a file of examples with 'fewshot:'"
            return UsageError(
                f"no examples: {error.what}", why=error.why, hint=hint, code="wrong-data"
            )
        for example in found:
            if fault := self.fault(example):
                return UsageError(
                    f"{example.source}: {fault}",
                    hint="it is one of the examples",
                    code="wrong-data",
                )
        return found

    def fits(self, example: Prompt, prompt: Prompt) -> bool:
        """Whether an example may stand before a question: none gives its answer away."""
        return example.messages != prompt.messages

    def examples(self, prompt: Prompt) -> list[Prompt]:
        """The examples that stand before a question.

        Raises:
            UsageError: they cannot be read, or there are fewer than `num_fewshot`.
        """
        count = getattr(self.config, "num_fewshot", 0)
        if not count:
            return []
        if isinstance(self._examples, UsageError):
            raise self._examples
        fitting = (example for example in self._examples if self.fits(example, prompt))
        found = list(islice(fitting, count))
        if len(found) < count:
            raise UsageError(
                f"{prompt.source}: {len(found)} examples fit this question, and "
                f"num_fewshot={count}",
                hint="lower 'num_fewshot', or name a file with more of them with 'fewshot:'",
                code="wrong-data",
            )
        return found


def question(prompt: Prompt) -> str:
    """What a record asks, without the form about it."""
    return prompt.messages[-1].content


def turns(examples: Iterable[tuple[str, str]], asked: str) -> tuple[Message, ...]:
    """Examples as turns of a conversation, and the question."""
    shown: list[Message] = []
    for one, solution in examples:
        shown += [Message("user", one), Message("assistant", solution)]
    return (*shown, Message("user", asked))
