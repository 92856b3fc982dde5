"""What a stage takes from others beside its start: weights, made records, datasets in datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from posttrain_recipes import registry
from posttrain_recipes.errors import RecipeError
from posttrain_recipes.language.schema import recipe_schema
from posttrain_recipes.planning.data import load_records
from posttrain_recipes.plugin import (
    Checkpoint,
    Conversation,
    DataMethod,
    Dataset,
    DatasetConfig,
    DatasetRef,
    Episode,
    Message,
    Method,
    ModelRef,
    PluginConfig,
    Preference,
    Prompt,
    Record,
    StageContext,
    Task,
    hookimpl,
)
from tests.conftest import Install, Project


class Imitate(Method):
    """Imitates a teacher."""

    name = "imitate"
    takes: ClassVar[tuple[type[Record], ...]] = (Conversation,)
    same_tokenizer: ClassVar[tuple[str, ...]] = ("teacher",)

    class Config(PluginConfig):
        """Options."""

        teacher: ModelRef
        """Who is imitated."""
        critics: list[ModelRef] = []
        """Who else is asked."""

    config: Config

    def train(self, stage: StageContext) -> Checkpoint:
        """Nothing."""
        return stage.start


class Ask(DataMethod):
    """Asks a model."""

    name = "ask"
    takes: ClassVar[tuple[type[Record], ...]] = (Conversation,)
    makes: ClassVar[tuple[type[Record], ...]] = (Preference,)

    def make(self, stage: StageContext, skip: int) -> Iterator[Sequence[Record]]:
        """Nothing."""
        yield from ()


class FromStage(Dataset):
    """Reads what a stage made."""

    name = "from_stage"

    class Config(DatasetConfig):
        """Options."""

        stage: str
        """Which."""

    config: Config
    folder: Path | None = None
    wants: type[Record] | None = None

    def reads(self) -> Sequence[str]:
        """The stage."""
        return (self.config.stage,)

    def bind(self, made: Callable[[str], Path], wants: type[Record]) -> None:
        """Keep where."""
        self.folder, self.wants = made(self.config.stage), wants

    def load(self) -> Iterable[Record]:
        """One record that tells where it would be read."""
        words = (Message("user", str(self.folder)),)
        return [Preference(prompt=words, chosen=words, rejected=words)]


class Join(Dataset):
    """Several datasets, one after another."""

    name = "join"

    class Config(DatasetConfig):
        """Options."""

        parts: list[DatasetRef]
        """What is joined."""

    config: Config

    def load(self) -> Iterable[Record]:
        """All of them."""
        for part in self.sources["parts"]:
            yield from part.load()


@pytest.fixture
def plugins(install: Install) -> None:
    @hookimpl
    def ptl_methods() -> list[type]:
        return [Imitate, Ask]

    @hookimpl
    def ptl_datasets() -> list[type]:
        return [FromStage, Join]

    install("acme", "1.0", {"ptl_methods": ptl_methods, "ptl_datasets": ptl_datasets})


HEAD = "name: demo\nmodel: ./model\nstages:\n"
SFT = "  - {name: sft, dataset: {use: jsonl, path: chat.jsonl}, method: {use: sft}}\n"


def imitate(teacher: str, more: str = "") -> str:
    return (
        "  - name: student\n"
        "    init_from: base\n"
        "    dataset: {use: jsonl, path: chat.jsonl}\n"
        f"    method: {{use: imitate, teacher: {teacher}{more}}}\n"
    )


def faults(project: Project, text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        project.plan(text)
    return [f"{fault.key}: {fault.message}" for fault in caught.value.faults]


def another_tokenizer(folder: Path) -> None:
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))


@pytest.mark.usefixtures("plugins")
class TestWeights:
    def test_a_stage_depends_on_the_stage_that_an_option_names(self, project: Project) -> None:
        plan = project.plan(HEAD + SFT + imitate("{stage: sft}"))
        assert plan.stages[1].needs == {"sft"}
        assert plan.stages[1].method.config.teacher == ModelRef(stage="sft")  # type: ignore[union-attr]

    def test_a_changed_teacher_changes_its_student(self, project: Project) -> None:
        first = project.plan(HEAD + SFT + imitate("{stage: sft}"))
        other = SFT.replace("{use: sft}", "{use: sft, epochs: 2}")
        second = project.plan(HEAD + other + imitate("{stage: sft}"))
        assert first.stages[1].fingerprint != second.stages[1].fingerprint

    def test_a_teachers_name_is_only_a_name(self, project: Project) -> None:
        first = project.plan(HEAD + SFT + imitate("{stage: sft}"))
        second = project.plan(
            HEAD + SFT.replace("name: sft", "name: tea") + imitate("{stage: tea}")
        )
        assert first.stages[1].fingerprint == second.stages[1].fingerprint

    def test_every_model_that_is_named_is_served(self, project: Project) -> None:
        plan = project.plan(HEAD + SFT + imitate("{stage: base}", ", critics: [{model: ptl/tiny}]"))
        assert plan.models == ("./model", "ptl/tiny")

    @pytest.mark.parametrize(
        ("teacher", "told"),
        [
            ("{stage: sfd}", "method.teacher.stage: unknown stage 'sfd'; did you mean 'sft'?"),
            ("{stage: student}", "method.teacher.stage: stage 'student' is not above this one"),
            ("{model: ptl/tinny}", "method.teacher.model: unknown bundled model 'ptl/tinny'"),
            ("{model: ./none}", "method.teacher.model: there is no model directory"),
            ("{}", "method.teacher: names weights by exactly one of"),
            ("{stage: sft, model: ptl/tiny}", "method.teacher: names weights by exactly one of"),
            ("{checkpoint: tinker://a/weights/b}", "method.teacher: 'checkpoint' reads"),
            ("sft", "method.teacher: must be a mapping"),
        ],
    )
    def test_what_is_wrong_with_a_reference(
        self, project: Project, teacher: str, told: str
    ) -> None:
        assert any(told in fault for fault in faults(project, HEAD + SFT + imitate(teacher)))

    def test_a_teacher_of_another_tokenizer_is_refused(self, project: Project) -> None:
        another_tokenizer(project.path / "model")
        (told,) = faults(project, HEAD + SFT + imitate("{model: ptl/tiny}"))
        assert "'ptl/tiny' has another tokenizer than './model'" in told

    def test_a_critic_may_have_another_tokenizer(self, project: Project) -> None:
        another_tokenizer(project.path / "model")
        project.plan(HEAD + SFT + imitate("{stage: sft}", ", critics: [{model: ptl/tiny}]"))


@pytest.mark.usefixtures("plugins")
class TestModels:
    def test_a_stage_may_have_a_model_of_its_own(self, project: Project) -> None:
        tiny = SFT.replace("name: sft", "name: sft, model: ptl/tiny")
        plan = project.plan(HEAD + tiny + imitate("{stage: sft}"))
        assert [stage.model for stage in plan.stages] == ["ptl/tiny", "./model"]
        assert plan.models == ("./model", "ptl/tiny")

    def test_what_follows_it_has_the_same(self, project: Project) -> None:
        tiny = SFT.replace("name: sft", "name: sft, model: ptl/tiny")
        plan = project.plan(HEAD + tiny + SFT.replace("name: sft", "name: more"))
        assert [stage.model for stage in plan.stages] == ["ptl/tiny", "ptl/tiny"]

    def test_an_adapter_cannot_move_to_another_model(self, project: Project) -> None:
        other = SFT.replace("name: sft", "name: more, model: ptl/tiny")
        (told,) = faults(project, HEAD + SFT + other)
        assert told.startswith("stages.more.model: starts from 'sft', which is of ./model")


ASK = "  - {name: ask, dataset: {use: jsonl, path: chat.jsonl}, method: {use: ask}}\n"


def dpo(dataset: str) -> str:
    return f"  - name: dpo\n    dataset: {dataset}\n    method: {{use: dpo}}\n"


@pytest.mark.usefixtures("plugins")
class TestRecords:
    def test_a_stage_trains_on_what_another_made(self, project: Project) -> None:
        stage = project.plan(HEAD + ASK + dpo("{use: from_stage, stage: ask}")).stages[1]
        assert stage.needs == {"ask"}
        assert stage.wants is Preference
        assert stage.data is not None
        (record,) = load_records(stage.data, stage.wants, lambda name: Path("made") / name)
        assert isinstance(record, Preference)
        assert record.prompt[0].content == str(Path("made/ask"))

    def test_what_made_the_records_is_part_of_who_trains_on_them(self, project: Project) -> None:
        text = HEAD + ASK + dpo("{use: from_stage, stage: ask}")
        changed = text.replace("name: ask,", "name: ask, seed: 3,")
        assert project.plan(text).stages[1].inputs != project.plan(changed).stages[1].inputs

    def test_records_of_another_type_are_refused(self, project: Project) -> None:
        text = HEAD + ASK + dpo("{use: from_stage, stage: ask}").replace("use: dpo", "use: sft")
        (told,) = faults(project, text)
        assert "has Preference records, and method 'sft' takes Conversation" in told

    def test_a_stage_that_makes_none_is_told(self, project: Project) -> None:
        (told,) = faults(project, HEAD + SFT + ASK + dpo("{use: from_stage, stage: sft}"))
        assert told == "stages.dpo.dataset.stage: stage 'sft' makes no records; ask does"

    def test_a_dataset_may_hold_others(self, project: Project) -> None:
        parts = "[{use: jsonl, path: pairs.jsonl, limit: 2}, {use: from_stage, stage: ask}]"
        stage = project.plan(HEAD + ASK + dpo(f"{{use: join, parts: {parts}}}")).stages[1]
        assert stage.needs == {"ask"}
        assert stage.data is not None
        assert stage.wants is not None
        assert len(load_records(stage.data, stage.wants, Path)) == 2 + 1

    def test_the_content_of_each_is_what_counts(self, project: Project) -> None:
        text = HEAD + dpo("{use: join, parts: [{use: jsonl, path: pairs.jsonl}]}")
        first = project.plan(text).stages[0].fingerprint
        project.write("moved.jsonl", (project.path / "pairs.jsonl").read_text())
        assert project.plan(text.replace("pairs", "moved")).stages[0].fingerprint == first
        project.write("pairs.jsonl", '{"prompt": "hi", "chosen": "yes", "rejected": "no"}\n')
        assert project.plan(text).stages[0].fingerprint != first

    @pytest.mark.parametrize(
        ("part", "told"),
        [
            ("{use: jsonl, path: none.jsonl}", "dataset.parts[0].path: there is no file"),
            ("{use: jsonll, path: x}", 'dataset.parts[0].use: unknown dataset "jsonll"'),
            ("{use: jsonl, path: pairs.jsonl, lim: 2}", "dataset.parts[0].lim: unknown option"),
            ("{use: from_stage, stage: x}", "dataset.parts[0].stage: unknown stage 'x'"),
        ],
    )
    def test_what_is_wrong_inside_is_told_there(
        self, project: Project, part: str, told: str
    ) -> None:
        text = HEAD + dpo(f"{{use: join, parts: [{part}]}}")
        assert any(told in fault for fault in faults(project, text)), faults(project, text)

    def test_an_editor_completes_a_dataset_inside_another(self) -> None:
        definitions: dict[str, Any] = recipe_schema(registry.load())["$defs"]
        assert definitions["dataset.join.DatasetRef"] == {"$ref": "#/$defs/dataset"}


@dataclass(frozen=True, kw_only=True)
class Guess(Task):
    """Guess a number."""

    number: int

    def start(self) -> Episode:
        raise NotImplementedError


class Guessing(Dataset):
    """Numbers to guess."""

    name = "guessing"

    def record_type(self) -> type[Record]:
        return Guess

    def load(self) -> Iterable[Record]:
        return [Guess(number=n, source=f"guessing:{n}") for n in range(10)]


class Play(Method):
    """Plays."""

    name = "play"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt, Task)
    takes_reward = True

    def train(self, stage: StageContext) -> Checkpoint:
        return stage.start


class TestEnvironments:
    @pytest.fixture(autouse=True)
    def plugins(self, install: Install) -> None:
        @hookimpl
        def ptl_methods() -> list[type]:
            return [Play]

        @hookimpl
        def ptl_datasets() -> list[type]:
            return [Guessing]

        install("acme", "1.0", {"ptl_methods": ptl_methods, "ptl_datasets": ptl_datasets})

    def test_an_environment_is_a_dataset_of_tasks_and_rewards_by_itself(
        self, project: Project
    ) -> None:
        text = HEAD + "  - {name: rl, dataset: {use: guessing, test_size: 4}, method: {use: play}}"
        stage = project.plan(text).stages[0]
        assert stage.wants is Task
        assert stage.data is not None
        tasks = load_records(stage.data, stage.wants)
        assert len(tasks) == 6
        assert all(isinstance(task, Guess) for task in tasks)

    def test_prompts_need_a_reward(self, project: Project) -> None:
        text = (
            HEAD
            + "  - {name: rl, dataset: {use: jsonl, path: questions.jsonl}, method: {use: play}}"
        )
        assert faults(project, text) == ["stages.rl: method 'play' needs a 'reward:'"]

    def test_a_method_for_files_is_told_what_it_got(self, project: Project) -> None:
        text = HEAD + "  - {name: sft, dataset: {use: guessing}, method: {use: sft}}"
        (told,) = faults(project, text)
        assert "has Guess records, and method 'sft' takes Conversation records" in told
