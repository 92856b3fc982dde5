"""Two tokenizers have to mean the same by the same numbers: at validation, and as a run starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Digits, Whitespace
from transformers import PreTrainedTokenizerFast

from posttrain_recipes.errors import RecipeError
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.plugin import Connection, Engine, hookimpl
from posttrain_recipes.running import preflight, tokenizers
from posttrain_recipes.running.serving import Serving
from posttrain_recipes.training.text.vocabulary import PROBE, Vocabulary, difference
from posttrain_recipes.waiting import GoneError
from tests.conftest import Install, Project

WORDS = ("<unk>", "The", "teacher", "12", "1", "2", "345")


def tokenizer(
    words: tuple[str, ...] = WORDS, *, digits: bool = False, added: str = ""
) -> Tokenizer:
    """A small one: whole words, and digits one by one or together."""
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = Digits(individual_digits=True) if digits else Whitespace()
    made.add_special_tokens(["<end>", *added.split()])
    return made


def save(made: Tokenizer, folder: Path) -> Path:
    """As a model of transformers has it, with a chat template."""
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}{{ m.content }}<end>{% endfor %}"
    fast.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "none", "hidden_size": 64}')
    return folder / "tokenizer.json"


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (tokenizer(), None),
        (tokenizer(added="<think>"), None),
        (tokenizer((*WORDS, "more")), "6 tokens beside 7"),
        (tokenizer((*WORDS[:-2], "345", "2")), "2 of 6 tokens are others"),
        (tokenizer(digits=True), "they split the same text otherwise"),
    ],
    ids=["same", "one more marker", "one more word", "two words change places", "split"],
)
def test_what_tells_tokenizers_apart(other: Tokenizer, told: str | None, tmp_path: Path) -> None:
    paths = [save(one, tmp_path / name) for name, one in (("a", tokenizer()), ("b", other))]
    files = [Vocabulary.of_file(path) for path in paths]
    loaded = [Vocabulary.of(PreTrainedTokenizerFast.from_pretrained(path.parent)) for path in paths]
    assert files == loaded
    assert difference(loaded[0], loaded[1]) == told


def test_a_marker_with_another_number_is_a_difference() -> None:
    ours = Vocabulary({"a": 0}, {"<end>": 1}, (0,))
    assert difference(ours, Vocabulary({"a": 0}, {"<end>": 2}, (0,))) == (
        "<end> is token 1 beside 2"
    )


def test_the_probe_has_what_tokenizers_differ_on() -> None:
    assert all(part in PROBE for part in ("'s", "12,345", "ï", "\n\n    ", "**", "你", "🙂"))


def test_a_file_in_no_known_form_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    assert Vocabulary.of_file(tmp_path / "tokenizer.json") is None


# --- recipes -------------------------------------------------------------------------------------

RECIPE = """\
name: demo
model: ./model
engine: there
stages:
  - name: student
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: distill_on_policy, teacher: TEACHER}
"""
CHECKPOINT = "tinker://run/sampler_weights/teacher"


class There(Engine):
    """Knows what one checkpoint was trained from."""

    name = "there"
    identity = "there"
    base = "./other"

    @contextmanager
    def connect(self, models: Mapping[str, str], data_dir: Path, log_path: Path) -> Iterator[Any]:
        yield connection(self.base)


def connection(base: str) -> Any:
    def info(uri: str) -> Future[Any]:
        found: Future[Any] = Future()
        if uri == CHECKPOINT:
            found.set_result(SimpleNamespace(base_model=base))
        else:
            found.set_exception(GoneError("no such checkpoint"))
        return found

    nobody: Any = None
    return Connection(nobody, SimpleNamespace(get_weights_info_by_tinker_path=info))  # type: ignore[arg-type]


@pytest.fixture
def engine(install: Install) -> None:
    install("acme", "1", {"ptl_engines": hookimpl(lambda: [There], specname="ptl_engines")})


def check(plan: Plan, base: str = "./other") -> None:
    tokenizers.check(plan, Serving(plan, connection(base), lambda found: found.result(), Path()))


@pytest.mark.usefixtures("engine")
class TestRecipes:
    def test_files_here_are_compared_at_validation(self, project: Project) -> None:
        save(tokenizer(), project.path / "model")
        save(tokenizer((*WORDS, "more")), project.path / "other")
        with pytest.raises(RecipeError) as caught:
            project.plan(RECIPE.replace("TEACHER", "{model: ./other}"))
        [fault] = caught.value.faults
        assert (fault.location.line, fault.key) == (7, "stages.student.method.teacher")
        assert "'./other' has another tokenizer than './model' (6 tokens beside 7)" in fault.message

    def test_a_teacher_that_reads_text_may_have_another(self, project: Project) -> None:
        save(tokenizer(), project.path / "model")
        save(tokenizer((*WORDS, "more")), project.path / "other")
        asked = RECIPE.replace("TEACHER", "{model: ./other}")
        with pytest.raises(RecipeError, match="or set 'align: spans', which compares text"):
            project.plan(asked)
        assert (
            project.plan(asked.replace("teacher:", "align: spans, teacher:")).same_tokenizer == ()
        )
        other = asked.replace("distill_on_policy", "gkd")
        with pytest.raises(RecipeError) as caught:
            project.plan(other)
        assert "align" not in caught.value.faults[0].message

    def test_one_with_more_markers_is_of_the_family(self, project: Project) -> None:
        save(tokenizer(), project.path / "model")
        save(tokenizer(added="<think>"), project.path / "other")
        assert project.plan(RECIPE.replace("TEACHER", "{model: ./other}")).same_tokenizer == ()

    def test_what_was_downloaded_before_is_compared_too(
        self, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_CACHE", str(project.path / "hub"))
        save(tokenizer(), project.path / "model")
        save(tokenizer(digits=True), project.path / "hub/models--acme--large/snapshots/1")
        with pytest.raises(RecipeError, match="they split the same text otherwise"):
            project.plan(RECIPE.replace("TEACHER", "{model: acme/large}"))

    def test_the_rest_is_compared_as_a_run_starts(
        self, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_CACHE", str(project.path / "hub"))
        save(tokenizer(), project.path / "model")
        plan = project.plan(RECIPE.replace("TEACHER", "{model: acme/large}"))
        save(tokenizer((*WORDS, "more")), project.path / "acme/large")  # now it can be loaded
        with pytest.raises(RecipeError) as caught:
            check(plan)
        [fault] = caught.value.faults
        assert (fault.location.line, fault.key) == (7, "stages.student.method.teacher")
        assert caught.value.exit_code == 2
        save(tokenizer(), project.path / "acme/large")
        check(plan)

    def test_a_checkpoint_has_the_tokenizer_of_what_it_was_trained_from(
        self, project: Project
    ) -> None:
        save(tokenizer(), project.path / "model")
        save(tokenizer((*WORDS, "more")), project.path / "other")
        plan = project.plan(RECIPE.replace("TEACHER", f"{{checkpoint: '{CHECKPOINT}'}}"))
        with pytest.raises(RecipeError, match="is of './other', which has another tokenizer"):
            check(plan)
        check(plan, base="./model")
        gone = RECIPE.replace("TEACHER", f"{{checkpoint: '{CHECKPOINT}-deleted'}}")
        check(project.plan(gone))  # the stage says so, if it still has to run

    def test_preflight_tells_it(self, project: Project) -> None:
        save(tokenizer(), project.path / "model")
        save(tokenizer((*WORDS, "more")), project.path / "other")
        plan = project.plan(RECIPE.replace("TEACHER", f"{{checkpoint: '{CHECKPOINT}'}}"))
        failed = [f for f in preflight.engine(plan, project.path) if f.verdict == "failed"]
        told = [f for f in failed if not f.check.startswith(("tokenizer of", "text of"))]
        assert ["another tokenizer" in finding.message for finding in told] == [True]
