"""Recipes as text: how YAML is typed, where things stand, and what wins when recipes merge."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain_recipes.errors import RecipeError, UsageError
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.language.nodes import Node, merge
from posttrain_recipes.language.parsing import parse
from posttrain_recipes.language.recipe import expand_environment
from posttrain_recipes.reporting import report
from tests.conftest import Project

# --- YAML ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("12", 12),
        ("-3", -3),
        ("007", 7),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("n", "n"),
        ("null", None),
        ("~", None),
        ("", None),
        ("nil", "nil"),
        ("'1e-4'", "1e-4"),
        ('"12"', "12"),
        ("'true'", "true"),
        ("''", ""),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("inf", "inf"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("qwen/Qwen3-8B", "qwen/Qwen3-8B"),
    ],
)
def test_a_scalar_is_typed_as_a_person_means_it(text: str, value: Any) -> None:
    found = parse(f"key: {text}\n", "f").plain()["key"]
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_a_float() -> None:
    assert math.isnan(parse("key: .nan", "f").plain()["key"])


def test_a_block_of_text_stays_text() -> None:
    assert parse("key: |\n  12\n", "f").plain() == {"key": "12\n"}


def test_keys_are_words_even_where_they_look_like_values() -> None:
    assert parse("{1: a, true: b, no: c}", "f").plain() == {"1": "a", "true": "b", "no": "c"}


def test_an_endless_number_stays_text() -> None:
    assert parse(f"key: {'1' * 5000}", "f").plain() == {"key": "1" * 5000}


def test_a_byte_order_mark_is_no_part_of_the_first_key(project: Project) -> None:
    (project.path / "bom.yaml").write_bytes(b"\xef\xbb\xbfname: demo\n")
    assert recipes.load(Path("bom.yaml")).data == {"name": "demo"}


def test_bytes_that_are_no_text_are_named(project: Project) -> None:
    (project.path / "bad.yaml").write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(UsageError, match=r"^bad\.yaml is not UTF-8 text"):
        recipes.load(Path("bad.yaml"))


def test_an_alias_repeats_a_value() -> None:
    assert parse("a: &x {lr: 1e-3}\nb: *x\n", "f").plain() == {
        "a": {"lr": 1e-3},
        "b": {"lr": 1e-3},
    }


def test_aliases_that_multiply_are_stopped() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(RecipeError, match="more than 50,000 keys and values: too large"):
        parse("\n".join(lines), "f")


class _Endless(io.StringIO):
    """A file without an end, which says how much of it was read."""

    taken = 0

    def read(self, size: int | None = -1, /) -> str:
        assert size is not None
        assert 0 < size < 2_000_000
        self.taken += size
        return "x" * size


def test_what_is_too_large_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether many bytes or many keys: reading them all takes minutes."""
    large = tmp_path / "large.yaml"
    large.write_text("# " + "x" * 1_000_000)
    with pytest.raises(UsageError, match="is no recipe: it has more than 1 MB"):
        recipes.load(large)
    monkeypatch.setattr("sys.stdin", _Endless())
    with pytest.raises(UsageError, match="- is no recipe: it has more than 1 MB"):
        recipes.load(Path("-"))

    composed = 0

    def counted(self: Any, *_: Any) -> Any:
        nonlocal composed
        composed += 1
        return whole(self, *_)

    whole = yaml.composer.Composer.compose_node
    monkeypatch.setattr(yaml.composer.Composer, "compose_node", counted)
    with pytest.raises(RecipeError, match=r"f:25000:\d+\n  more than 50,000 keys and values"):
        parse("a:\n" + "".join(f" k{i}: 1\n" for i in range(100_000)), "f")
    assert composed <= 50_000


def test_many_faults_are_told_in_time_that_grows_as_they_do(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe is made plain a fixed number of times, however many faults there are."""
    made = 0
    plain = Node.plain

    def counted(self: Node) -> Any:
        nonlocal made
        made += isinstance(self.value, dict) and "stages" in self.value
        return plain(self)

    monkeypatch.setattr(Node, "plain", counted)
    stages = "".join("  - {name: a, zz: 1, method: {use: sft, yy: 1}}\n" for _ in range(50))
    with pytest.raises(RecipeError) as caught:
        project.plan(f"name: a\nmodel: ptl/nano\nstages:\n{stages}")
    assert len(caught.value.faults) > 50
    assert 0 < made < 20


def test_an_alias_in_itself_is_stopped() -> None:
    with pytest.raises(RecipeError, match=r"f:1:4  a\[0\]\n  an alias that contains itself"):
        parse("a: &a [*a]", "f")


@pytest.mark.parametrize("depth", [60, 5000])
def test_lists_without_an_end_are_stopped(depth: int) -> None:
    with pytest.raises(RecipeError, match="more than 50 mappings and lists inside one another"):
        parse("a: " + "[" * depth + "]" * depth, "f")


def test_a_depth_that_people_write_is_read() -> None:
    assert parse("a: " + "[" * 40 + "]" * 40, "f").plain()["a"] != []


# --- places --------------------------------------------------------------------------------------

BASE = """\
name: base
model: ptl/tiny
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method:
      use: sft
      learning_rate: 1e-3
      epochs: 2
"""


def test_values_and_keys_have_their_line_and_column(project: Project) -> None:
    read = project.load(BASE)
    assert str(read.locate(("name",))) == "mine.yaml:1:7"
    assert str(read.locate(("name",), of_key=True)) == "mine.yaml:1:1"
    assert str(read.locate(("stages", 0, "dataset", "path"))) == "mine.yaml:5:33"
    assert str(read.locate(("stages", 0, "dataset", "path"), of_key=True)) == "mine.yaml:5:27"
    assert str(read.locate(("stages", 0, "method", "learning_rate"))) == "mine.yaml:8:22"
    assert str(read.locate(("stages", 0))) == "mine.yaml:4:5"


def test_what_is_not_written_is_placed_at_what_should_hold_it(project: Project) -> None:
    read = project.load(BASE)
    assert str(read.locate(("stages", 0, "method", "beta"))) == "mine.yaml:6:5"
    assert str(read.locate(("engine",))) == "mine.yaml:1:1"


def test_a_key_is_shown_by_the_stages_name(project: Project) -> None:
    read = project.load(BASE)
    assert read.show_key(("stages", 0, "method", "epochs")) == "stages.sft.method.epochs"
    assert read.show_key(("stages", 0, "eval", 1)) == "stages.sft.eval[1]"
    assert read.show_key(("stages", 7)) == "stages[7]"


def test_places_survive_extends_presets_and_overrides(project: Project) -> None:
    project.write("base.yaml", BASE)
    read = project.load(
        "extends: base.yaml\n"
        "name: mine\n"
        "presets:\n"
        "  small:\n"
        "    stages: {sft: {method: {epochs: 1}}}\n",
        preset="small",
        overrides=["seed=3"],
    )
    assert str(read.locate(("model",))) == "base.yaml:2:8"
    assert str(read.locate(("name",))) == "mine.yaml:2:7"
    assert str(read.locate(("stages", 0, "method", "epochs"))) == "mine.yaml:5:37"
    assert str(read.locate(("stages", 0, "method", "epochs"), of_key=True)) == "mine.yaml:5:29"
    assert str(read.locate(("stages", 0, "method", "learning_rate"))) == "base.yaml:8:22"
    assert str(read.locate(("seed",))) == "--set seed=3"


# --- merging -------------------------------------------------------------------------------------


def merged(base: str, over: str) -> Any:
    return merge(parse(base, "base"), parse(over, "over")).plain()


def test_mappings_merge_key_by_key() -> None:
    assert merged("a: {x: 1, y: 2}\nb: 3", "a: {y: 5, z: 6}") == {
        "a": {"x": 1, "y": 5, "z": 6},
        "b": 3,
    }


def test_lists_replace() -> None:
    assert merged("a: [1, 2, 3]", "a: [4]") == {"a": [4]}


def test_null_replaces() -> None:
    assert merged("a: {x: 1}", "a: null") == {"a": None}


def test_a_mapping_over_a_list_merges_by_name() -> None:
    base = "stages: [{name: a, x: 1}, {name: b, x: 2}]"
    assert merged(base, "stages: {b: {x: 9, y: 8}}") == {
        "stages": [{"name": "a", "x": 1}, {"name": "b", "x": 9, "y": 8}]
    }


def test_a_number_addresses_what_has_no_name() -> None:
    assert merged("eval: [{use: nll}]", "eval: {0: {max_length: 8}}") == {
        "eval": [{"use": "nll", "max_length": 8}]
    }


def test_a_plugins_name_addresses_what_has_no_name() -> None:
    assert merged("eval: [{use: nll}]", "eval: {nll: {max_length: 8}}") == {
        "eval": [{"use": "nll", "max_length": 8}]
    }


def test_the_same_plugin_keeps_its_options() -> None:
    assert merged("m: {use: sft, epochs: 2}", "m: {use: sft, seed: 1}") == {
        "m": {"use": "sft", "epochs": 2, "seed": 1}
    }


def test_another_plugin_starts_without_the_old_ones_options() -> None:
    assert merged("m: {use: sft, epochs: 2}", "m: {use: dpo}") == {"m": {"use": "dpo"}}


def test_a_name_that_is_not_there_is_an_error_with_the_nearest() -> None:
    with pytest.raises(
        RecipeError, match=r"over:1:10  stages.bb\n  nothing is named 'bb'; there is: a1"
    ):
        merged("stages: [{name: a1}]", "stages: {bb: {x: 1}}")


# --- presets, extends, --set ---------------------------------------------------------------------

PRESETS = "name: demo\nseed: 0\npresets:\n  quick: {seed: 1}\n  full: {seed: 2}\n"


def test_quick_is_what_a_bare_run_uses(project: Project) -> None:
    read = project.load(PRESETS)
    assert (read.preset, read.data) == ("quick", {"name": "demo", "seed": 1})


def test_a_preset_takes_the_place_of_quick(project: Project) -> None:
    read = project.load(PRESETS, preset="full")
    assert (read.preset, read.data["seed"]) == ("full", 2)


def test_without_quick_no_preset_is_used(project: Project) -> None:
    read = project.load(PRESETS.replace("quick", "tiny"))
    assert (read.preset, read.data["seed"]) == (None, 0)


def test_an_override_wins_over_the_preset(project: Project) -> None:
    assert project.load(PRESETS, preset="full", overrides=["seed=7"]).data["seed"] == 7


def test_an_unknown_preset_names_the_nearest(project: Project) -> None:
    with pytest.raises(UsageError, match=r"mine\.yaml has no preset 'ful'") as caught:
        project.load(PRESETS, preset="ful")
    assert caught.value.hint == "did you mean 'full'?"
    with pytest.raises(UsageError) as caught:
        project.load("name: demo\n", preset="full")
    assert caught.value.hint == "this recipe has no presets; run it without --preset"


def test_presets_of_the_base_are_inherited_and_changed(project: Project) -> None:
    project.write("base.yaml", PRESETS)
    text = "extends: base.yaml\npresets: {full: {name: big}}\n"
    read = project.load(text, preset="full")
    assert read.data == {"name": "big", "seed": 2}
    assert recipes.preset_names(Path("mine.yaml")) == ["quick", "full"]


def test_a_chain_of_recipes_the_last_wins(project: Project) -> None:
    project.write("shared/one.yaml", "name: one\nseed: 1\nmodel: m\n")
    project.write("shared/two.yaml", "extends: one.yaml\nname: two\nseed: 2\n")
    assert project.load("extends: shared/two.yaml\nname: three\n").data == {
        "name": "three",
        "seed": 2,
        "model": "m",
    }


def test_a_long_chain_of_recipes_is_told_as_that(project: Project) -> None:
    for number in range(100):
        project.write(f"{number}.yaml", f"extends: {number + 1}.yaml\n")
    with pytest.raises(UsageError, match="a chain of more than 20"):
        recipes.load(Path("0.yaml"))


def test_recipes_that_extend_each_other_are_told_the_circle(project: Project) -> None:
    project.write("b.yaml", "extends: a.yaml\n")
    with pytest.raises(UsageError, match=r"circle: a\.yaml -> b\.yaml -> a\.yaml$"):
        project.load("extends: b.yaml\n", name="a.yaml")


@pytest.mark.parametrize("text", ["extends: [a]\n", "extends: nope.yaml\n"])
def test_a_base_that_cannot_be_read_is_placed(project: Project, text: str) -> None:
    with pytest.raises(RecipeError, match=r"^mine\.yaml:1:10  extends\n"):
        project.load(text)


@pytest.mark.parametrize("key", ["extends: base.yaml", "presets: {b: {seed: 1}}"])
def test_what_is_read_from_the_file_alone_is_refused_elsewhere(project: Project, key: str) -> None:
    with pytest.raises(RecipeError, match=r"^mine\.yaml:2:15\n.*from a recipe's file alone"):
        project.load(f"name: a\npresets: {{a: {{{key}}}}}\n", preset="a")
    with pytest.raises(RecipeError, match="read from a recipe's file alone"):
        project.load("name: a\n", overrides=[key.replace(": ", "=", 1)])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("stages.sft.method.learning_rate=1e-5", 1e-5),
        ("stages.sft.method.learning_rate= 1e-5", 1e-5),
        ("stages.sft.method.learning_rate='1e-5'", "1e-5"),
        ("stages.sft.method.learning_rate=no", "no"),
        ("stages.sft.method.learning_rate=", None),
        ("stages.sft.method.learning_rate=a=b", "a=b"),
        ("stages.sft.method.learning_rate=[1, 2]", [1, 2]),
        ("stages.0.method.learning_rate=2", 2),
    ],
)
def test_an_override_is_yaml_at_a_path(project: Project, override: str, value: Any) -> None:
    method = project.load(BASE, overrides=[override]).data["stages"][0]["method"]
    assert method == {"use": "sft", "learning_rate": value, "epochs": 2}


def test_an_override_may_be_a_mapping_that_merges(project: Project) -> None:
    read = project.load(BASE, overrides=["stages.sft.method={epochs: 5}"])
    assert read.data["stages"][0]["method"] == {"use": "sft", "learning_rate": 1e-3, "epochs": 5}


@pytest.mark.parametrize("override", ["seed", "=1", " =1", "seed=[1", "seed={a: 1, a: 2}"])
def test_an_override_that_cannot_be_read_is_repeated(project: Project, override: str) -> None:
    with pytest.raises(UsageError) as caught:
        project.load(BASE, overrides=[override])
    assert f"--set {override!r}" in caught.value.what
    assert caught.value.exit_code == 2


def test_an_override_of_an_unknown_stage_names_the_nearest(project: Project) -> None:
    with pytest.raises(RecipeError, match="nothing is named 'sf'; did you mean 'sft'"):
        project.load(BASE, overrides=["stages.sf.method.epochs=1"])


# --- environment ---------------------------------------------------------------------------------


def test_variables_are_expanded_wherever_text_stands() -> None:
    value = {"a": ["${env:X}/data", 1, None, True], "b": {"c": "${env:X}${env:Y_2}"}}
    assert expand_environment(value, {"X": "x", "Y_2": "${env:X}"}) == {
        "a": ["x/data", 1, None, True],
        "b": {"c": "x${env:X}"},
    }


def test_other_dollars_are_left_alone() -> None:
    assert expand_environment("$X ${X} ${env:} ${env:1}", {"X": "x"}) == "$X ${X} ${env:} ${env:1}"


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(UsageError, match="the environment variable NOPE is not set") as caught:
        expand_environment("${env:NOPE}", {})
    assert caught.value.hint == "export NOPE=..."


def test_the_resolved_recipe_never_holds_the_value(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTL_TEST_FOLDER", str(project.path))
    text = BASE.replace("path: chat.jsonl", "path: '${env:PTL_TEST_FOLDER}/chat.jsonl'")
    made = project.plan(text.replace("ptl/tiny", "./model"))
    assert made.stages[0].data is not None
    assert made.stages[0].data.dataset.digest() is not None  # the expanded path was read
    written = report.resolved_yaml(made.resolved)
    assert "path: ${env:PTL_TEST_FOLDER}/chat.jsonl" in written
    assert str(project.path) not in written
