"""IFEval: instructions that a program can check."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from pydantic import Field

from posttrain_recipes.errors import PtlError
from posttrain_recipes.evals.suites.options import Published, SampledConfig, SuiteConfig
from posttrain_recipes.evals.suites.suite import Suite
from posttrain_recipes.plugin import EvalContext, EvalResult, Message, PerRecord, Prompt
from posttrain_recipes.training.intervals import proportion, share_of_parts
from posttrain_recipes.training.sampling import generation

UNSEEN = {
    "detectable_format:constrained_response": "",
    "combination:repeat_prompt": "",
    "count:counting_composition": "",
    "language:response_language": "langdetect",
}
"""Instructions that tinker-cookbook's checker passes without a look, and the package with which it
looks."""
TAKES = {
    "keywords:existence": ("keywords",),
    "keywords:forbidden_words": ("forbidden_words",),
    "keywords:frequency": ("keyword", "relation", "frequency"),
    "keywords:letter_frequency": ("letter", "let_relation", "let_frequency"),
    "language:response_language": ("language",),
    "length_constraints:number_words": ("relation", "num_words"),
    "length_constraints:number_sentences": ("relation", "num_sentences"),
    "length_constraints:number_paragraphs": ("num_paragraphs",),
    "length_constraints:nth_paragraph_first_word": ("nth_paragraph", "first_word"),
    "detectable_content:number_placeholders": ("num_placeholders",),
    "detectable_format:number_bullet_lists": ("num_bullets",),
    "detectable_format:number_highlighted_sections": ("num_highlights",),
    "detectable_format:multiple_sections": ("num_sections",),
    "change_case:capital_word_frequency": ("capital_relation", "capital_frequency"),
    "startend:end_checker": ("end_phrase",),
}
"""Arguments without which the checker takes any reply, or counts to a number of its own."""
RELATIONS = ("at least", "at most", "less than", "exactly")
"""Others are taken for kept, whatever the count is."""
_COUNTS = {
    "relation": ("frequency", "num_words", "num_sentences", "num_paragraphs"),
    "let_relation": ("let_frequency",),
    "capital_relation": ("capital_frequency",),
}


class IFEval(Suite):
    """IFEval: share of prompts whose instructions a reply follows, as a program checks.

    Zhou et al. 2023, arXiv 2311.07911; `google/IFEval`, train. A file has `prompt`,
    `instruction_id_list` and `kwargs`; the prompt is asked as it is. The checker is that of
    tinker-cookbook (0.5.8 on), which counts words and sentences by simpler rules than the authors'.
    Instructions that it does not look at are left out and counted. Loose: one of eight readings of
    the reply follows, as the authors have it (without the first or last line, without asterisks).
    """

    name = "ifeval"
    requires = ("tinker_cookbook",)
    extra = "posttrain-recipes[cookbook]"
    published = Published("google/IFEval", None, "train")

    class Config(SampledConfig, SuiteConfig):
        """Options of the eval."""

        max_tokens: int = Field(default=1280, ge=1)
        """Longest reply in tokens."""

    config: Config

    def digest(self) -> str:
        """What checks: other versions of it, and with or without langdetect, find others."""
        with_languages = "with langdetect" if find_spec("langdetect") else ""
        return f"rules 2, {version('tinker-cookbook')} {with_languages}".strip()

    def measures(self) -> Sequence[str]:
        return ["prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose"]

    def fault(self, prompt: Prompt) -> str | None:
        """Instructions and their arguments that do not go together."""
        names, given = (prompt.metadata.get(key) for key in ("instruction_id_list", "kwargs"))
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            return "'instruction_id_list' is to be a list of names, as keywords:existence"
        if not isinstance(given, list) or len(given) != len(names):
            return "'kwargs' is to be a list with one mapping for each instruction"
        try:
            read = list(map(arguments, given))
        except ValueError:
            return "'kwargs' has something else than mappings"
        for name, found in zip(names, read, strict=True):
            for key in TAKES.get(name.strip(), ()):
                if found.get(key) in (None, "", []):
                    return f"the kwargs of {name} have no '{key}'"
                if key.endswith("relation") and found[key] not in RELATIONS:
                    return f"{key} of {name} is to be one of {', '.join(RELATIONS)}"
        return None

    def messages(self, prompt: Prompt) -> tuple[Message, ...]:
        return prompt.messages

    def evaluate(self, context: EvalContext) -> EvalResult:
        """Shares have Wilson's interval, those of instructions that of as many prompts."""
        check, config, prompts = checker(), self.config, self.asked(context)
        rules = looked_at(check)
        samples = generation.generate(
            context, prompts, max_tokens=config.max_tokens, temperature=config.temperature
        )
        scored, found = [], []
        for prompt, sample in zip(prompts, samples, strict=True):
            wanted = [
                (name, arguments(given))
                for name, given in zip(_names(prompt), prompt.metadata["kwargs"], strict=True)
                if seen(name, rules)
            ]
            texts = readings(sample.completion)

            def follows(name: str, given: Mapping[str, Any], some: Sequence[str]) -> bool:
                return any(check(name, text, given) for text in some if text.strip())

            strict = [follows(name, given, texts[:1]) for name, given in wanted]
            loose = [follows(name, given, texts) for name, given in wanted]
            found.append((strict, loose))
            scores = {"prompt_strict": float(all(strict))} if wanted else {}
            scored.append(replace(sample, scores=scores))
        if not any(strict for strict, _ in found):
            raise PtlError(
                f"eval '{context.name}': there is no instruction that can be checked",
                code="wrong-data",
            )
        metrics, scores_of = {}, {}
        weights = tuple(float(len(strict)) for strict, _ in found)
        for place, kind in enumerate(("strict", "loose")):
            whole = tuple(float(all(pair[place])) if pair[place] else None for pair in found)
            known = [value for value in whole if value is not None]
            metrics[f"prompt_{kind}"] = proportion(sum(known), len(known))
            scores_of[f"prompt_{kind}"] = PerRecord(whole)
            parts = tuple(float(sum(pair[place])) for pair in found)
            metrics[f"instruction_{kind}"] = share_of_parts(parts, weights)
            scores_of[f"instruction_{kind}"] = PerRecord(parts, weights)
        return EvalResult(
            {name: metrics[name] for name in self.measures()},
            tuple(scored),
            higher_is_better=dict.fromkeys(metrics, True),
            scores=scores_of,
            notes=tuple(_left_out(prompts, rules)),
        )


def _left_out(prompts: Sequence[Prompt], known: Collection[str]) -> Iterator[str]:
    """What is said of the instructions that nothing looks at."""
    unseen = Counter(name for p in prompts for name in _names(p) if not seen(name, known))
    if not unseen:
        return
    told = ", ".join(f"{name} ({count})" for name, count in sorted(unseen.items()))
    of, whole = sum(len(_names(p)) for p in prompts), len(prompts)
    alone = sum(not any(seen(name, known) for name in _names(p)) for p in prompts)
    hint = "; pip install langdetect" if "language:response_language" in unseen else ""
    yield (
        f"tinker-cookbook's checker passes {unseen.total()} of {of} instructions without a look, "
        f"and they are left out, with {alone} of {whole} prompts that have no other: {told}{hint}"
    )


def _names(prompt: Prompt) -> list[str]:
    return [str(name) for name in prompt.metadata["instruction_id_list"]]


def checker() -> Any:
    """tinker-cookbook's (instruction, reply, arguments) -> whether the reply follows it.

    Raises:
        PtlError: the installed version has none.
    """
    try:
        from tinker_cookbook.eval.benchmarks._ifeval_verify import verify_instruction
    except ImportError as error:
        raise PtlError(
            "the installed tinker-cookbook has no checker of IFEval's instructions",
            why=str(error),
            hint="pip install 'tinker-cookbook>=0.5.8'",
            code="missing-package",
        ) from None
    return verify_instruction


def looked_at(check: Any) -> frozenset[str]:
    """The instructions that a checker has a rule for: it passes others without a word, and has no
    list of them but its own text."""
    return frozenset(re.findall(r'"([a-z_]+:[a-z_0-9]+)"', inspect.getsource(check)))


def seen(name: str, known: Collection[str]) -> bool:
    """Whether the checker looks at an instruction; `known` are those that it has a rule for."""
    package = UNSEEN.get(name.strip())
    return name.strip() in known and (package is None or bool(package and find_spec(package)))


def arguments(given: Any) -> dict[str, Any]:
    """The arguments of an instruction, as the checker knows them: the hub's data have a null for
    each that it does not take, and `less than`, which the checker takes for any number.

    Raises:
        ValueError: they are no mapping.
    """
    given = json.loads(given) if isinstance(given, str) else given or {}
    if not isinstance(given, Mapping):
        raise ValueError(given)
    found = {name: value for name, value in given.items() if value is not None}
    for relation, counts in _COUNTS.items():
        if found.get(relation) == "less than":
            found[relation] = "at most"
            found |= {n: found[n] - 1 for n in counts if isinstance(found.get(n), int | float)}
    return found


def readings(reply: str) -> list[str]:
    """A reply as it is, and what the loose reading makes of it besides."""
    lines = reply.split("\n")
    cut = [reply, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(text.replace("*", "") for text in cut)]
