"""Evals by name: their data, their prompts, and that what is right scores 1 and what is wrong 0."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes import registry
from posttrain_recipes.errors import PtlError, RecipeError, UsageError
from posttrain_recipes.evals.suites import ifeval
from posttrain_recipes.evals.suites.humaneval import body
from posttrain_recipes.evals.suites.programs import pass_at_k
from posttrain_recipes.planning import overlap, planner
from posttrain_recipes.planning.data import load_records
from posttrain_recipes.planning.plans import PlannedEval
from posttrain_recipes.plugin import EvalContext, EvalResult, Message, PerRecord
from posttrain_recipes.running import texts
from posttrain_recipes.training.sandbox import runner
from posttrain_recipes.training.text.answer_extraction import python_code
from posttrain_recipes.workload import Usage
from tests.conftest import Project
from tests.unit.test_hub_commits import at

sandboxed = pytest.mark.skipif(
    runner.why_not() is not None, reason=f"no sandbox here: {runner.why_not()}"
)

GSM8K = [
    {"question": "What is 3 + 4?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
    {"question": "What is half of 2469?", "answer": "It is a half.\n#### 1,234.50"},
]
MBPP = [
    {
        "task_id": 11,
        "text": "Write a function to add two numbers.",
        "code": "def add(a, b):\r\n    return a + b",
        "test_list": ["assert add(1, 2) == 3", "assert add(root, 1) == 5"],
        "test_setup_code": "root = 4",
        "challenge_test_list": [],
    }
]
SANITIZED = [
    {
        "source_file": "a.ipynb",
        "task_id": 12,
        "prompt": "Write a function to find a root.",
        "code": "def root(x):\n    return x ** 0.5",
        "test_imports": ["import math"],
        "test_list": ["assert math.isclose(root(4), 2)"],
    }
]
HUMANEVAL = [
    {
        "task_id": "HumanEval/0",
        "prompt": "from typing import List\n\n\ndef total(of: List[int]) -> int:\n"
        '    """ The sum.\n    >>> total([1, 2])\n    3\n    """\n',
        "entry_point": "total",
        "canonical_solution": "    return sum(of)\n",
        "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n"
        "    assert candidate([]) == 0\n",
    }
]
IFEVAL = [
    {
        "key": 1,
        "prompt": "Name a fruit without commas, in less than 3 words.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [
            {"relation": None, "num_words": None},
            {"relation": "less than", "num_words": 3},
        ],
    }
]
MMLU = [
    {
        "question": "What is frozen water?",
        "choices": ["Steam", "Ice", "Fog", "Rain"],
        "answer": 1,
        "subject": "high_school_physics",
    }
]
PUBLISHED = {
    "gsm8k": GSM8K, "mbpp": MBPP, "humaneval": HUMANEVAL, "ifeval": IFEVAL, "mmlu": MMLU,
    "multiple_choice": MMLU,
}  # fmt: skip


class Renderer:
    """A token is a character; 0 ends a reply, and a line stands between messages."""

    stop = [0]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return [ord(c) for c in "\n\n".join(m.content for m in messages) + "\n> "]

    def supervised(
        self, messages: Sequence[Message], train_on: str = "last"
    ) -> tuple[list[int], list[float]]:
        asked, said = self.prompt(messages[:-1]), [*map(ord, messages[-1].content), 0, 10]
        return asked + said, [0.0] * len(asked) + [1.0] * (len(said) - 1) + [0.0]

    def parse(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens)).strip()

    def raw(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))


Says = Callable[[str, int], str]


class Sampler:
    """Says of a prompt what `says` does for each sample, and likes texts that end in `likes`."""

    def __init__(self, says: Says, likes: str = "") -> None:
        self.says, self.likes = says, likes
        self.asked: list[str] = []

    def sample(self, prompt: Any, count: int, params: Any) -> Future[Any]:
        self.asked.append("".join(map(chr, prompt.to_ints())))
        made = [
            SimpleNamespace(
                tokens=[*map(ord, self.says(self.asked[-1], number))],
                stop_reason="stop",
                logprobs=None,
            )
            for number in range(count)
        ]
        future: Future[Any] = Future()
        future.set_result(SimpleNamespace(sequences=made))
        return future

    def compute_logprobs(self, prompt: Any) -> Future[Any]:
        text = "".join(map(chr, prompt.to_ints()))
        self.asked.append(text)
        future: Future[Any] = Future()
        likely = text.endswith(f"> {self.likes}")
        future.set_result([None, *([-0.1 if likely else -2.0] * (len(text) - 1))])
        return future


def lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(one) + "\n" for one in rows)


def recipe(spec: dict[str, Any], stage: dict[str, Any] | None = None) -> str:
    stages = [{"name": "look", "eval": [spec], **(stage or {})}]
    return json.dumps({"name": "mine", "model": "./model", "stages": stages})


def planned(project: Project, spec: dict[str, Any]) -> PlannedEval:
    [found] = project.plan(recipe(spec)).stages[0].evals
    return found


def evaluate(found: PlannedEval, sampler: Sampler) -> EvalResult:
    context = EvalContext(
        name=found.name,
        seed=1,
        records=load_records(found.data, found.wants),
        renderer=Renderer(),  # type: ignore[arg-type]
        sampler=sampler,  # type: ignore[arg-type]
        wait=lambda future: future.result(5),
        resolve=lambda ref: pytest.fail("asks no other weights"),
    )
    return found.eval.evaluate(context)


def of_file(
    project: Project, name: str, rows: Sequence[dict[str, Any]] | None = None, **options: Any
) -> PlannedEval:
    project.write("data.jsonl", lines(PUBLISHED[name] if rows is None else rows))
    return planned(project, {"use": name, "path": "data.jsonl", **options})


def values(result: EvalResult) -> dict[str, float]:
    return {name: estimate.value for name, estimate in result.metrics.items()}


# --- right is 1, wrong is 0 ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("three_and_four", "half", "share"),
    [
        (r"So it is \boxed{7}.", r"\boxed{1{,}234.5}", 1.0),
        ("#### 7", "#### 1,234.50", 1.0),
        ("The answer is **7**. I took 2 steps.", r"\boxed{\frac{2469}{2}}", 1.0),
        (r"\(7 \text{ apples}\)", "It costs $1,234.50.", 1.0),
        ("<answer>7</answer>", r"\boxed{1\,234\frac{1}{2}}", 0.5),  # no number that is written
        ("8", "1234", 0.0),
        ("", "none", 0.0),
        (r"\boxed{}", "1,234.51", 0.0),
    ],
)
def test_gsm8k(project: Project, three_and_four: str, half: str, share: float) -> None:
    sampler = Sampler(lambda asked, _: three_and_four if "3 + 4" in asked else half)
    result = evaluate(of_file(project, "gsm8k"), sampler)
    assert values(result) == {"exact_match": share}
    assert sampler.asked[0] == (
        "What is 3 + 4?\nPlease reason step by step, and put your final answer within "
        "\\boxed{}.\n> "
    )
    bare = Sampler(lambda asked, _: three_and_four)
    evaluate(of_file(project, "gsm8k", instruction="", limit=1), bare)
    assert bare.asked == ["What is 3 + 4?\n> "]


@sandboxed
@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("def add(a, b):\n    return a + b", 1.0),
        ("[BEGIN]\ndef add(a, b):\n    return a + b\n[DONE]\nThat adds.", 1.0),
        ("Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nas\n```\nadd(1, 2)\n```", 1.0),
        ("def add(a, b):\n    return a - b", 0.0),
        ("def add(a, b)", 0.0),
        ("", 0.0),
    ],
)
def test_mbpp(project: Project, reply: str, score: float) -> None:
    sampler = Sampler(lambda asked, _: reply)
    assert values(evaluate(of_file(project, "mbpp"), sampler)) == {"pass_at_1": score}
    assert sampler.asked == [
        "You are an expert Python programmer, and here is your task: Write a function to add two "
        "numbers. Your code should pass these tests:\n\nassert add(1, 2) == 3\n"
        "assert add(root, 1) == 5\n> "
    ]


@sandboxed
def test_mbpp_as_it_was_sanitized(project: Project) -> None:
    found = of_file(project, "mbpp", SANITIZED)
    right = Sampler(lambda asked, _: "def root(x):\n    return math.sqrt(x)")
    assert values(evaluate(found, right)) == {"pass_at_1": 1.0}
    assert values(evaluate(found, Sampler(lambda asked, _: "root = abs"))) == {"pass_at_1": 0.0}


@sandboxed
@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("```python\ndef total(of: List[int]) -> int:\n    return sum(of)\n```", 1.0),
        ("    return sum(of)", 1.0),
        ("return sum(of)", 1.0),
        ("n = 0\n    for x in of:\n        n += x\n    return n\n\ndef total2():\n    pass", 1.0),
        ("```\nn = 0\nfor x in of:\n    n += x\nreturn n\n```", 1.0),
        ("```python\ndef total(of):\n    return 3\n```", 0.0),
        ("    pass", 0.0),
    ],
)
def test_humaneval(project: Project, reply: str, score: float) -> None:
    sampler = Sampler(lambda asked, _: reply)
    assert values(evaluate(of_file(project, "humaneval"), sampler)) == {"pass_at_1": score}
    assert sampler.asked[0].startswith(
        "Write a solution to the following problem and make sure that it passes the tests:\n"
        "```python\nfrom typing import List"
    )


def test_ifeval(project: Project) -> None:
    pytest.importorskip("tinker_cookbook")
    found = of_file(project, "ifeval")
    sampler = Sampler(lambda asked, _: "An apple")
    assert set(values(evaluate(found, sampler)).values()) == {1.0}
    assert sampler.asked == ["Name a fruit without commas, in less than 3 words.\n> "]
    wrong = values(evaluate(found, Sampler(lambda asked, _: "An apple, or a pear")))
    assert set(wrong.values()) == {0.0}
    half = evaluate(found, Sampler(lambda asked, _: "An apple or a pear"))
    assert values(half) == {
        "prompt_strict": 0.0, "instruction_strict": 0.5,
        "prompt_loose": 0.0, "instruction_loose": 0.5,
    }  # fmt: skip
    assert half.scores["instruction_strict"] == PerRecord((1.0,), (2.0,))
    # Without its first line it follows.
    loose = values(evaluate(found, Sampler(lambda asked, _: "Of course, here it is:\nAn apple")))
    assert (loose["prompt_strict"], loose["prompt_loose"]) == (0.0, 1.0)
    assert values(evaluate(found, Sampler(lambda asked, _: "")))["instruction_loose"] == 0.0


@pytest.mark.parametrize(("likes", "score"), [("B", 1.0), ("A", 0.0), ("C", 0.0)])
@pytest.mark.parametrize("name", ["mmlu", "multiple_choice"])
def test_multiple_choice_by_letter(project: Project, name: str, likes: str, score: float) -> None:
    sampler = Sampler(lambda asked, _: "", likes)
    result = evaluate(of_file(project, name), sampler)
    assert values(result) == {"acc": score}
    assert sampler.asked[1] == (
        "The following are multiple choice questions (with answers) about high school physics."
        "\n\nWhat is frozen water?\nA. Steam\nB. Ice\nC. Fog\nD. Rain\nAnswer:\n> B"
    )
    assert (result.samples[0].completion, result.samples[0].answer) == (likes, "B")


def test_multiple_choice_by_text(project: Project) -> None:
    found = of_file(project, "multiple_choice", score="texts")
    sampler = Sampler(lambda asked, _: "", "Ice")
    assert values(evaluate(found, sampler)) == {"acc": 1.0, "acc_norm": 1.0}
    assert sampler.asked[0] == "Question: What is frozen water?\nAnswer:\n> Steam"
    # Where all characters are alike the shortest is the likeliest, and for each of them none is.
    assert values(evaluate(found, Sampler(lambda asked, _: "", "?"))) == {"acc": 1.0, "acc_norm": 0}


@pytest.mark.parametrize("answer", [1, "1", "B", "b", "Ice"])
def test_the_right_choice_is_a_place_a_letter_or_a_text(project: Project, answer: Any) -> None:
    found = of_file(project, "multiple_choice", [{**MMLU[0], "answer": answer}])
    assert values(evaluate(found, Sampler(lambda asked, _: "", "B"))) == {"acc": 1.0}


# --- programs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "answer"), [(["1", "2", "3"], "1"), (["B", "A"], "B"), (["7", "2", "0"], 2)]
)
def test_answers_that_are_places_and_texts_are_refused(
    project: Project, choices: list[str], answer: Any
) -> None:
    row = {"question": "Which?", "choices": choices, "answer": answer}
    with pytest.raises(UsageError, match=r"data\.jsonl:1: is the answer '\w' the text of a choice"):
        evaluate(of_file(project, "multiple_choice", [row]), Sampler(lambda asked, _: "", "A"))
    clear = {"question": "And?", "choices": ["x", "y"], "answer": "A"}  # so answers are no texts
    both = of_file(project, "multiple_choice", [row, clear])
    assert len(evaluate(both, Sampler(lambda asked, _: "", "A")).samples) == 2


def test_pass_at_k_is_unbiased() -> None:
    assert pass_at_k(10, 0, 1) == 0
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252)
    assert pass_at_k(10, 6, 5) == 1
    assert pass_at_k(10, 10, 10) == 1


@sandboxed
def test_more_samples_tell_pass_at_10(project: Project) -> None:
    found = of_file(project, "humaneval", samples=10, temperature=0.8)
    assert found.eval.measures() == ["pass_at_1", "pass_at_10"]
    sampler = Sampler(lambda asked, number: "return sum(of)" if number == 4 else "return 3")
    result = evaluate(found, sampler)
    assert values(result) == {"pass_at_1": pytest.approx(0.1), "pass_at_10": 1.0}
    assert len(sampler.asked) == 1, "the prompt is read once"
    assert [s.scores["pass_at_1"] for s in result.samples] == [0.0] * 4 + [1.0] + [0.0] * 5


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("```py\nx = 1\n```\nor\n```\nx = 2\n```", "x = 2"),
        ("```\ndef f(): pass\n```\nIt prints\n```\n1\n```", "def f(): pass"),
        ("1. so\n   ```python\n   def f():\n       pass\n   ```", "def f():\n    pass"),
        ("[BEGIN]\nx = 1\n[DONE]\n[BEGIN]", ""),
        ("```python\ndef f():\n    pass", "def f():\n    pass"),
    ],
)
def test_the_program_of_a_reply(text: str, code: str) -> None:
    assert python_code(text).strip() == code


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("    x = 1\n    return x\nprint(f())", "    x = 1\n    return x"),
        ("x = 1\n    return x", "    x = 1\n    return x"),
        ("x = 1\nreturn x", "    x = 1\n    return x"),
        ("for x in y:\n    return x", "    for x in y:\n        return x"),
        ("if x:\n        return x\n    return 1", "    if x:\n        return x\n    return 1"),
        ("x = 1\n    return x\n\ndef g():\n    pass", "    x = 1\n    return x"),
        ("x = [\n    1,\n]\nreturn x", "    x = [\n        1,\n    ]\n    return x"),
        ("return 1", "    return 1"),
    ],
)  # fmt: skip
def test_the_body_of_a_function_gets_its_indentation_back(code: str, found: str) -> None:
    assert body(code).rstrip() == found


# --- IFEval --------------------------------------------------------------------------------------


def test_arguments_are_as_the_checker_knows_them() -> None:
    assert ifeval.arguments(None) == {}
    assert ifeval.arguments('{"num_words": 3}') == {"num_words": 3}
    assert ifeval.arguments({"relation": "less than", "frequency": 3, "keyword": None}) == {
        "relation": "at most",
        "frequency": 2,
    }
    assert ifeval.arguments({"let_relation": "less than", "let_frequency": 3}) == {
        "let_relation": "at most",
        "let_frequency": 2,
    }


def test_what_the_checker_passes_unseen_is_left_out_aloud(project: Project) -> None:
    pytest.importorskip("tinker_cookbook")
    only = {
        "prompt": "Say it again.",
        "instruction_id_list": ["combination:repeat_prompt", "words:odd"],
        "kwargs": [{"prompt_to_repeat": "Say it again."}, {}],
    }
    found = of_file(project, "ifeval", [*IFEVAL, only])
    result = evaluate(found, Sampler(lambda asked, _: "An apple"))
    assert result.notes == (
        "tinker-cookbook's checker passes 2 of 4 instructions without a look, and they are left "
        "out, with 1 of 2 prompts that have no other: combination:repeat_prompt (1), words:odd (1)",
    )
    assert result.scores["prompt_strict"] == PerRecord((1.0, None))
    assert result.metrics["prompt_strict"].count == 1
    with pytest.raises(PtlError, match="no instruction that can be checked"):
        evaluate(of_file(project, "ifeval", [only]), Sampler(lambda asked, _: "x"))


def test_without_the_cookbook_what_to_install_is_told(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_installed", lambda module: module != "tinker_cookbook")
    with pytest.raises(RecipeError) as caught:
        of_file(project, "ifeval")
    assert "pip install 'posttrain-recipes[cookbook]'" in str(caught.value)


def test_a_cookbook_without_the_checker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = "tinker_cookbook.eval.benchmarks._ifeval_verify"
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PtlError) as caught:
        ifeval.checker()
    assert "pip install 'tinker-cookbook>=0.5.8'" in str(caught.value.hint)


# --- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        ({"use": "gsm8k"}, ("openai/gsm8k", "main", "test")),
        ({"use": "mbpp"}, ("google-research-datasets/mbpp", "full", "test")),
        (
            {"use": "mbpp", "subset": "sanitized"},
            ("google-research-datasets/mbpp", "sanitized", "test"),
        ),
        ({"use": "humaneval"}, ("openai/openai_humaneval", None, "test")),
        ({"use": "ifeval"}, ("google/IFEval", None, "train")),
        ({"use": "mmlu"}, ("cais/mmlu", "all", "test")),
        ({"use": "mmlu", "subset": "virology"}, ("cais/mmlu", "virology", "test")),
        ({"use": "multiple_choice", "path": "me/mine"}, ("me/mine", None, "test")),
        ({"use": "gsm8k", "path": "me/gsm8k", "split": "dev"}, ("me/gsm8k", "main", "dev")),
    ],
)
@pytest.mark.usefixtures("users_cache")
def test_the_hubs_data_are_those_that_are_published(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    spec: dict[str, Any],
    asked: tuple[str, str | None, str],
) -> None:
    import datasets

    at(monkeypatch, "a" * 40)
    seen: list[Any] = []

    def load_dataset(path: str, name: str | None, *, split: str, revision: str, **_: Any) -> Any:
        seen.append((path, name, split))
        assert revision == "a" * 40, "that of the plan"
        return SANITIZED if name == "sanitized" else PUBLISHED[spec["use"]]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    text = recipe({**spec, "limit": 1})
    plan = planner.build(project.load(text), registry.load(), ask=True)
    [found] = plan.stages[0].evals
    assert f"{asked[0]}: revision {'a' * 40}" in plan.pins
    assert found.data.label == asked[0]
    assert seen == [], "a plan reads nothing of it"
    assert len(load_records(found.data, found.wants)) == 1
    assert seen == [asked]
    at(monkeypatch, "b" * 40)
    [moved] = planner.build(project.load(text), registry.load(), ask=True).stages[0].evals
    assert moved.fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("gsm8k", {"answer": "seven"}, "its answer is no number: 'seven'"),
        ("mbpp", {"test_list": []}, "'test_list' is to be a list of asserts"),
        ("humaneval", {"entry_point": None}, "has no 'entry_point'"),
        ("ifeval", {"kwargs": []}, "'kwargs' is to be a list with one mapping"),
        ("ifeval", {"kwargs": [3, 4]}, "'kwargs' has something else than mappings"),
        ("ifeval", {"instruction_id_list": "x"}, "'instruction_id_list' is to be a list of names"),
        (
            "ifeval",
            {"instruction_id_list": ["keywords:existence"], "kwargs": [{}]},
            "the kwargs of keywords:existence have no 'keywords'",
        ),
        (
            "ifeval",
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "around"}],
            },
            "relation of length_constraints:number_words is to be one of at least",
        ),
        ("mmlu", {"answer": 4}, "its answer, '4', is none of the 4 choices"),
        ("mmlu", {"choices": ["Ice"]}, "has 1 choices, and 2 to 26 can be told apart"),
        ("mmlu", {"choices": ["Ice", 3]}, "'choices' is to be a list of texts"),
    ],
)
def test_a_row_of_another_form_is_told_by_its_line(
    project: Project, name: str, change: dict[str, Any], why: str
) -> None:
    good = PUBLISHED[name][0]
    found = of_file(project, name, [good, {**good, **change}])
    with pytest.raises(UsageError) as caught:
        evaluate(found, Sampler(lambda asked, _: "7"))
    assert f"data.jsonl:2: {why}" in str(caught.value)
    bad = load_records(found.data, found.wants)[1]
    with pytest.raises(UsageError, match=r"data\.jsonl:2"):  # as preflight looks at it
        found.eval.rendered(bad, lambda ref: Renderer())  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("spec", "option", "why"),
    [
        ({"use": "gsm8k", "path": "none.jsonl"}, "path", "there is no file 'none.jsonl'"),
        ({"use": "gsm8k", "path": "d.jsonl", "split": "test"}, "split", "'path' is a file"),
        ({"use": "gsm8k", "path": "d.jsonl", "fewshot": "d.jsonl"}, "fewshot", "'num_fewshot'"),
        (
            {"use": "gsm8k", "path": "d.jsonl", "num_fewshot": 1, "fewshot": "n.jsonl"},
            "fewshot.path",
            "there is no file",
        ),
        (
            {"use": "gsm8k", "path": "d.jsonl", "num_fewshot": 1, "fewshot": "me/x"},
            "fewshot",
            "is to be a file",
        ),
        (
            {"use": "gsm8k", "path": "d.jsonl", "dataset": {"use": "jsonl", "path": "d.jsonl"}},
            "path",
            "so does 'dataset:'",
        ),
        ({"use": "humaneval", "path": "h.jsonl", "samples": 2}, "samples", "temperature"),
        ({"use": "multiple_choice"}, "", "give it a 'path:' or a 'dataset:'"),
        (
            {"use": "multiple_choice", "path": "d.jsonl", "num_fewshot": 1},
            "num_fewshot",
            "name a file with 'fewshot:'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_as_it_is_planned(
    project: Project, spec: dict[str, Any], option: str, why: str
) -> None:
    project.write("d.jsonl", lines(GSM8K))
    project.write("h.jsonl", lines(HUMANEVAL))
    with pytest.raises(RecipeError) as caught:
        planned(project, spec)
    told = [f for f in caught.value.faults if why in f.message]
    assert [f.key for f in told] == ["stages.look.eval[0]" + (f".{option}" if option else "")]


@pytest.mark.parametrize("name", ["mbpp", "humaneval"])
def test_programs_are_refused_where_there_is_no_sandbox(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(runner, "why_not", lambda: "no namespaces")
    with pytest.raises(RecipeError, match="no sandbox to run code in: no namespaces"):
        of_file(project, name)


def test_a_dataset_of_the_recipe_goes_before_its_own(project: Project) -> None:
    project.write("d.jsonl", lines(GSM8K))
    found = planned(project, {"use": "gsm8k", "dataset": {"use": "jsonl", "path": "d.jsonl"}})
    assert values(evaluate(found, Sampler(lambda asked, _: "7"))) == {"exact_match": 0.5}


def test_its_results_are_known_by_what_the_data_hold(project: Project) -> None:
    first = of_file(project, "gsm8k").fingerprint
    project.write("elsewhere/moved.jsonl", lines(GSM8K))
    assert planned(project, {"use": "gsm8k", "path": "elsewhere/moved.jsonl"}).fingerprint == first
    assert of_file(project, "gsm8k", GSM8K[:1]).fingerprint != first
    assert of_file(project, "gsm8k", limit=1).fingerprint != first
    assert of_file(project, "gsm8k", max_tokens=9).fingerprint != first


def test_what_is_trained_on_is_told(project: Project) -> None:
    project.write("train.jsonl", lines([GSM8K[1]]))
    project.write("data.jsonl", lines(GSM8K))
    spec = {"use": "gsm8k", "path": "data.jsonl"}
    training = {"dataset": {"use": "jsonl", "path": "train.jsonl"}, "method": {"use": "sft"}}
    [found] = overlap.find(project.plan(recipe(spec, training)), overlap.VALIDATED_BYTES)
    assert "eval gsm8k: 1 of 2 records are in train.jsonl" in str(found)
    assert "data.jsonl:2" in str(found)


# --- examples ------------------------------------------------------------------------------------


def test_examples_are_turns_and_give_no_answer_away(project: Project) -> None:
    more = [{"question": f"What is {n} + 0?", "answer": f"Easy.\n#### {n}"} for n in range(3)]
    project.write("train.jsonl", lines([*GSM8K[:1], *more]))
    found = of_file(project, "gsm8k", num_fewshot=2, fewshot="train.jsonl")
    sampler = Sampler(lambda asked, _: "7")
    evaluate(found, sampler)
    zero, one = "What is 0 + 0?\n\nEasy.\n#### 0", "What is 1 + 0?\n\nEasy.\n#### 1"
    seven = "What is 3 + 4?\n\n3 + 4 = <<3+4=7>>7\n#### 7"
    assert sampler.asked == [
        f"{zero}\n\n{one}\n\nWhat is 3 + 4?\n> ",
        f"{seven}\n\n{zero}\n\nWhat is half of 2469?\n> ",
    ]
    project.write("train.jsonl", lines(more))
    assert of_file(project, "gsm8k", num_fewshot=2, fewshot="train.jsonl").fingerprint != (
        found.fingerprint
    )
    few = of_file(project, "gsm8k", num_fewshot=4, fewshot="train.jsonl")
    with pytest.raises(UsageError, match="3 examples fit this question, and num_fewshot=4"):
        evaluate(few, sampler)
    assert few.eval.workload(load_records(few.data, few.wants), 2, len) is None


@sandboxed
def test_examples_of_programs_are_in_the_form_of_the_paper(project: Project) -> None:
    project.write("train.jsonl", lines([{**MBPP[0], "text": "Add."}]))
    found = of_file(project, "mbpp", num_fewshot=1, fewshot="train.jsonl")
    sampler = Sampler(lambda asked, _: "x")
    evaluate(found, sampler)
    assert "\n\n[BEGIN]\ndef add(a, b):\r\n    return a + b\n[DONE]\n\nYou are" in sampler.asked[0]


def test_examples_of_mmlu_are_of_the_subject(project: Project) -> None:
    other = {**MMLU[0], "question": "Not this?", "subject": "law"}
    same = {**MMLU[0], "question": "What is rain?", "answer": 3}
    project.write("dev.jsonl", lines([other, same]))
    sampler = Sampler(lambda asked, _: "", "B")
    evaluate(of_file(project, "mmlu", num_fewshot=1, fewshot="dev.jsonl"), sampler)
    assert sampler.asked[0] == (
        "The following are multiple choice questions (with answers) about high school physics."
        "\n\nWhat is rain?\nA. Steam\nB. Ice\nC. Fog\nD. Rain\nAnswer: D"
        "\n\nWhat is frozen water?\nA. Steam\nB. Ice\nC. Fog\nD. Rain\nAnswer:\n> A"
    )


@pytest.mark.parametrize(
    ("name", "split"), [("gsm8k", "train[:2]"), ("mbpp", "prompt[1:3]"), ("mmlu", "dev")]
)
@pytest.mark.usefixtures("users_cache")
def test_examples_are_the_published_ones_by_default(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str, split: str
) -> None:
    at(monkeypatch, "a" * 40)
    found = of_file(project, name, num_fewshot=2)
    [[examples]] = found.eval.sources.values()
    assert examples.config.model_dump()["split"] == split
    assert found.eval.workload(load_records(found.data, found.wants), 1, len) is None


@pytest.mark.usefixtures("users_cache")
def test_examples_that_cannot_be_had_are_told_with_what_to_name(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> Any:
        asked.append(1)
        raise ConnectionError("no network")

    asked: list[int] = []
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    at(monkeypatch, None)
    found = of_file(project, "gsm8k", num_fewshot=8)
    with pytest.raises(UsageError) as caught:
        evaluate(found, Sampler(lambda asked, _: "7"))
    assert "no examples: cannot load the dataset openai/gsm8k (split train[:8])" in str(
        caught.value
    )
    assert caught.value.hint == "name a file of examples with 'fewshot:'"
    for record in load_records(found.data, found.wants):
        with pytest.raises(UsageError):  # as preflight looks at each
            found.eval.rendered(record, lambda ref: Renderer())  # type: ignore[arg-type,return-value]
    assert len(asked) == 1, "it is asked for once, as that may take long"


# --- what it takes -------------------------------------------------------------------------------


def count(messages: Sequence[Message]) -> int:
    return sum(len(message.content) for message in messages)


def test_tokens_are_counted_in_the_form_that_is_asked(project: Project) -> None:
    found = of_file(project, "gsm8k", max_tokens=10, limit=1)
    records = load_records(found.data, found.wants)
    form = len(f"What is 3 + 4?\n{found.eval.config.model_dump()['instruction']}")
    work = found.eval.workload(records, 100, count)
    assert work is not None
    assert work.usage == Usage(prefill=100 * form, sample=1000)
    choices = of_file(project, "multiple_choice", score="texts")
    work = choices.eval.workload(load_records(choices.data, choices.wants), 1, count)
    asked = len("Question: What is frozen water?\nAnswer:")
    assert work is not None
    assert work.usage == Usage(prefill=4 * asked + len("SteamIceFogRain"))


@sandboxed
def test_samples_are_counted_and_the_prompt_once(project: Project) -> None:
    found = of_file(project, "humaneval", samples=10, temperature=1, max_tokens=5)
    work = found.eval.workload(load_records(found.data, found.wants), 1, count)
    assert work is not None
    assert work.usage.sample == 50
    assert work.usage.prefill < 250


def test_a_long_prompt_is_seen_with_its_examples(project: Project, tmp_path: Path) -> None:
    project.write("train.jsonl", lines(GSM8K))
    found = of_file(project, "gsm8k", GSM8K[:1], num_fewshot=1, fewshot="train.jsonl")
    [record] = load_records(found.data, found.wants)
    [shown] = found.eval.rendered(record, lambda ref: Renderer())  # type: ignore[arg-type,return-value,misc]
    assert "".join(map(chr, shown.tokens)).startswith("What is half of 2469?\n\nIt is a half.")


@pytest.mark.parametrize(("name", "tokenized"), [("gsm8k", True), ("exact_match", False)])
def test_only_a_form_of_its_own_has_every_record_tokenized(
    project: Project, name: str, tokenized: bool
) -> None:
    """Of other evals a record that is short by its bytes is not too long, and that is enough."""
    project.write("d.jsonl", lines(GSM8K))
    spec = {"use": name, "dataset": {"use": "jsonl", "path": "d.jsonl"}}
    [use] = texts._uses(project.plan(recipe(spec)).stages[0])
    bound = texts._bound(use, SimpleNamespace(context=4096, frame=8))  # type: ignore[arg-type]
    assert (bound is None) == tokenized
