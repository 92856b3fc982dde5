"""What `ptl plugins check` finds wrong with plugins that are, and how it says it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from posttrain_recipes import registry, testing
from posttrain_recipes.cli.plugins import plugins
from posttrain_recipes.errors import PtlWarning, UsageError
from posttrain_recipes.plugin import (
    Affects,
    Conversation,
    Dataset,
    DatasetConfig,
    Message,
    PluginConfig,
    Record,
    Reward,
    Sample,
    hookimpl,
)
from posttrain_recipes.testing import check_plugin, findings
from posttrain_recipes.testing.reading import read_checks
from posttrain_recipes.version import __version__
from tests.conftest import Install

count = itertools.count()


class Bad(Reward):
    """Bad"""

    name = "BadReward"

    class Config(PluginConfig):
        weight: int = 3
        size: int = "large"  # type: ignore[assignment]
        """How large"""

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [float("nan")]


class Moody(Reward):
    """Scores by the hour and by the company that a reply is in."""

    name = "moody"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [float(next(count)) for _ in samples]


class Fine(Reward):
    """Scores the length of a reply in characters."""

    name = "fine"

    class Config(PluginConfig):
        """Options."""

        per: int
        """Characters that are worth a point."""

    config: Config

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [len(sample.completion) / self.config.per for sample in samples]


class Sly(Reward):
    """Scores by an option that is said to change nothing."""

    name = "sly"

    class Config(PluginConfig):
        """Options."""

        bonus: Annotated[float, Affects.COST] = 0.0
        """What every reply gets."""
        quiet: Annotated[bool, Affects.NOTHING] = False
        """Changes nothing."""

    config: Config

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self.config.bonus for _ in samples]


class Hidden(Reward):
    """Keeps what it depends on from those who ask."""

    name = "hidden"

    class Config(PluginConfig):
        """Options."""

        level: int = 1
        """What every reply gets."""

        def model_dump(self, **_: Any) -> dict[str, Any]:
            return {}

    config: Config

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [float(self.config.level) for _ in samples]


class Shy(Reward):
    """Abstains from every reply that does not say please."""

    name = "shy"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [1.0 if "please" in sample.completion else None for sample in samples]


class Fickle(Shy):
    """Abstains from every reply, and is wrong of none at all."""

    name = "fickle"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [None for _ in samples] or [None]


class Shuffled(Dataset):
    """Yields records in an order of its own each time."""

    name = "shuffled"

    class Config(DatasetConfig):
        """Options."""

    config: Config

    def digest(self) -> str:
        return str(next(count))

    def load(self) -> Iterator[Record]:
        yield Conversation(messages=(Message("user", str(next(count))),))


@pytest.fixture
def authors(install: Install, monkeypatch: pytest.MonkeyPatch) -> Install:
    # A process for what a module imports takes two seconds; packages that are installed have it.
    monkeypatch.setattr(testing, "read_checks", partial(read_checks, probe=False))

    @hookimpl
    def ptl_rewards() -> list[type]:
        return [Bad, Moody, Fine, Sly, Hidden, Shy, Fickle]

    @hookimpl
    def ptl_datasets() -> list[type]:
        return [Shuffled]

    content: dict[str, Any] = {"ptl_rewards": ptl_rewards, "ptl_datasets": ptl_datasets}
    install("acme", "1.0", {**content, "PTL_API": 1})
    return install


def complaints(kind: str, name: str, **options: Any) -> dict[str, str]:
    entry = registry.load().get(kind, name)
    return {f.check: f.told for f in findings(entry, options) if not f.passed}


@pytest.mark.usefixtures("authors")
class TestFindings:
    def test_what_can_be_read_is_told_at_once(self) -> None:
        assert complaints("reward", "BadReward") == {
            "its name is a word": "'BadReward' should be a lower-case word such as 'my_reward'",
            "it says what it does": "the first line of the class's docstring should say in one "
            "sentence of 20 to 100 characters what it does; it has 3",
            "every option is described": "option 'weight' has no description; write a string "
            "below it; the description of option 'size' should end with a full stop",
            "its defaults are valid": "the default of size is not valid: Input should be a valid "
            "integer, unable to parse string as an integer",
            "its options leave the recipe's own words alone": "'weight' is a word of the recipe "
            "language; call the option otherwise",
        }

    def test_a_reward_that_is_moody(self) -> None:
        (told,) = complaints("reward", "moody").values()
        assert "scores the same replies otherwise the second time" in told

    def test_an_option_that_is_said_to_change_nothing(self) -> None:
        assert complaints("reward", "sly") == {
            "it scores each reply by itself": "option 'bonus' is marked as changing no result, and "
            "changes scores"
        }

    def test_an_option_that_no_fingerprint_knows(self) -> None:
        assert complaints("reward", "hidden") == {
            "its options affect what they say": "option 'level' affects the outcome, and a stage "
            "is reused when it changes"
        }

    def test_a_dataset_in_another_order(self) -> None:
        told = complaints("dataset", "shuffled")
        assert "records lack a 'source'" in told["it yields records"]
        assert "another order" in told["it yields the same ones each time"]
        assert "no stage would ever be reused" in told["it yields the same ones each time"]

    def test_one_that_conforms(self) -> None:
        check_plugin("reward", "fine", per=4)

    def test_an_option_without_a_default_is_asked_for(self) -> None:
        found = findings(registry.load().get("reward", "fine"), {})
        assert all(f.passed for f in found)
        assert [f.told for f in found if f.skipped] == ["needs its options: --set per=..."] * 2

    def test_one_that_abstains_from_all_was_not_seen_at_work(self) -> None:
        found = findings(registry.load().get("reward", "shy"), {})
        assert all(f.passed for f in found)
        assert [f.told.partition(",")[0] for f in found if f.skipped] == [
            "it abstained from all 10 replies"
        ] * 2
        with pytest.warns(PtlWarning, match="'shy' was read and not seen at work: it abstained"):
            check_plugin("reward", "shy")

    def test_what_is_wrong_stands_where_the_rest_is_not_tried(self) -> None:
        assert complaints("reward", "fickle") == {
            "it scores whatever a model may write": "no samples got scores"
        }

    def test_an_author_reads_all_of_it(self) -> None:
        with pytest.raises(AssertionError) as caught:
            check_plugin("dataset", "shuffled")
        assert len(str(caught.value).splitlines()) == 3


@pytest.mark.usefixtures("authors")
class TestCommand:
    def test_it_fails_where_the_plugin_does(self) -> None:
        done = CliRunner().invoke(plugins, ["check", "moody"])
        assert done.exit_code == 1
        assert "FAIL it scores each reply by itself" in done.output

    def test_options_are_given_with_set(self) -> None:
        done = CliRunner().invoke(plugins, ["check", "fine", "--set", "per=2", "--json"])
        assert done.exit_code == 0
        assert not any(finding["skipped"] for finding in json.loads(done.output))

    @pytest.mark.parametrize("words", [("shy",), ("fine",), ("local", "--kind", "engine")])
    def test_what_was_not_seen_at_work_is_not_ok(self, words: Sequence[str]) -> None:
        done = CliRunner().invoke(plugins, ["check", *words])
        assert done.exit_code == 3
        assert done.output.splitlines()[-1].startswith("not tried: ")

    @pytest.mark.parametrize(
        ("words", "verdict"),
        [
            (("fine", "--set", "per=2"), "conforms"),
            (("fine", "--set", "per=2", "--read-only"), "not tried"),
            (("shy",), "not tried"),
            (("moody",), "fails"),
        ],
    )
    def test_a_badge_says_what_came_of_it(
        self, words: Sequence[str], verdict: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "badge.svg"
        CliRunner().invoke(plugins, ["check", *words, "--badge", str(path)])
        picture = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert picture.attrib["aria-label"] == f"ptl {__version__}: {verdict}"

    def test_a_name_of_two_kinds_asks_for_the_kind(self) -> None:
        done = CliRunner().invoke(plugins, ["check", "exact_match"])
        assert isinstance(done.exception, UsageError)
        assert "reward, eval" in str(done.exception)
        assert "'ptl plugins check exact_match --kind eval'" in str(done.exception)
        done = CliRunner().invoke(plugins, ["check", "exact_match", "--kind", "reward"])
        assert done.exit_code == 0

    def test_reading_alone(self) -> None:
        done = CliRunner().invoke(plugins, ["check", "moody", "--read-only"])
        assert done.exit_code == 0


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        (7, "written for version 7 of the plugin API, and this is 1: upgrade posttrain-recipes"),
        (0, "written for version 0 of the plugin API, and this is 1: look for a newer release"),
    ],
)
def test_another_version_of_the_api_is_refused(install: Install, stated: int, told: str) -> None:
    @hookimpl
    def ptl_rewards() -> list[type]:
        return [Fine]

    install("acme", "1.0", {"ptl_rewards": ptl_rewards, "PTL_API": stated})
    found = registry.load()
    assert found.find("reward", "fine") is None
    (broken,) = found.broken
    assert broken.name == "acme"
    assert told in broken.reason


def test_a_plugin_that_states_no_version_is_told(install: Install) -> None:
    @hookimpl
    def ptl_rewards() -> list[type]:
        return [Fine]

    install("acme", "1.0", {"ptl_rewards": ptl_rewards})
    assert "PTL_API = 1" in complaints("reward", "fine")["it says which API it is written for"]
