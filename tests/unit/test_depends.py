"""What a stage depends on beyond the recipe: code, the hub, loops, keys, and what is read."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

from posttrain_recipes import content, registry
from posttrain_recipes.errors import UsageError
from posttrain_recipes.options import Affects, affects, effective
from posttrain_recipes.planning import depends
from posttrain_recipes.planning.data import load_records
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.planning.reuse import differences, remade
from posttrain_recipes.plugin import Conversation, NoEffect, PluginConfig, hookimpl
from posttrain_recipes.records import Message, Sample
from posttrain_recipes.reporting.reproduction import changes
from posttrain_recipes.rewards.function import Function
from posttrain_recipes.running.making import Made
from posttrain_recipes.running.runner import new_record
from posttrain_recipes.store import Measured, Store
from tests.conftest import PAIRS, Install, Project, Ptl, flat
from tests.unit.test_plan import prints

pytestmark = pytest.mark.usefixtures("users_cache")

RL = """\
name: demo
model: ./model
stages:
  - name: rl
    dataset: {use: jsonl, path: questions.jsonl}
    method: {use: grpo}
    reward: {use: function, call: "mine:score"}
"""


# --- options -------------------------------------------------------------------------------------


class Inner(PluginConfig):
    api_key: str = ""
    wait: Annotated[float, Affects.COST] = 1.0
    size: int = 1


class Outer(PluginConfig):
    shown: Annotated[int, NoEffect()] = 1
    inner: Inner | None = None
    many: list[Inner] = []
    named: dict[str, Inner] = {}
    given: dict[str, Any] = {}


def test_what_affects_no_outcome_is_left_out_wherever_it_stands() -> None:
    one = Inner(api_key="hush", wait=2, size=3)
    config = Outer(
        inner=one, many=[one], named={"a": one}, given={"api_key": "hush", "level": 2}, shown=5
    )
    left = {"size": 3}
    assert effective(config) == {
        "inner": left,
        "many": [left],
        "named": {"a": left},
        "given": {"level": 2},
    }
    assert affects(Outer)["shown"] is Affects("nothing")
    assert affects(Inner) == {
        "api_key": Affects.NOTHING,
        "wait": Affects.COST,
        "size": Affects.OUTCOME,
    }


JUDGED = RL.replace(
    '{use: function, call: "mine:score"}',
    "{use: judge, endpoint: {base_url: 'http://x', model: m, api_key: '${env:K}'}}",
).replace("    reward:", "    eval: [{use: mean_reward, reward: {use: judge, endpoint: "
          "{base_url: 'http://x', model: m, api_key: '${env:K}'}}, "
          "dataset: {use: jsonl, path: questions.jsonl}}]\n    reward:")  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'${env:K}'", "'${env:OTHER}'"),
        ("model: m,", "model: m, timeout: 5, concurrency: 2,"),
        ("use: judge,", "use: judge, cache: false, retries: 4,"),
        ("use: grpo", "use: grpo, show_every: 1, retries: 5, save_every: 3, reward_timeout: 9"),
    ],
)
def test_what_costs_or_shows_trains_nothing_again(
    project: Project, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    monkeypatch.setenv("K", "key-one")
    monkeypatch.setenv("OTHER", "key-two")
    assert old in JUDGED
    before, after = project.plan(JUDGED), project.plan(JUDGED.replace(old, new))
    assert before.stages[0].fingerprint == after.stages[0].fingerprint
    assert before.fingerprint == after.fingerprint, "nor is its eval measured again"


def test_the_judge_itself_is_no_cost(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K", "key-one")
    before, after = project.plan(JUDGED), project.plan(JUDGED.replace("model: m", "model: n"))
    assert prints(before) != prints(after)


def test_nothing_that_is_kept_leads_to_what_is_in_the_environment(
    project: Project, monkeypatch: pytest.MonkeyPatch, users_cache: Path
) -> None:
    text = RL.replace("questions.jsonl", "questions.jsonl, system: '${env:WORDS}'")
    project.write("mine.py", "def score(sample): return 1.0\n")

    def kept() -> str:
        plan = project.plan(text)
        return json.dumps([plan.stages[0].inputs, plan.stages[0].fingerprint])

    monkeypatch.setenv("WORDS", "hush")
    first = kept()
    assert "hush" not in first
    assert depends.digest("hush") not in first
    assert kept() == first, "with the user's key it is the same each time"
    monkeypatch.setenv("WORDS", "hush!")
    assert kept() != first
    monkeypatch.setenv("WORDS", "hush")
    assert (users_cache / "posttrain-recipes" / "key").stat().st_mode & 0o077 == 0
    (users_cache / "posttrain-recipes" / "key").write_text("ab" * 32)
    assert kept() != first, "with another user's key nothing of it can be told"


# --- code ----------------------------------------------------------------------------------------

IMPORTS: dict[str, dict[str, str]] = {
    "a module beside it": {"mine.py": "from helper import S\n", "helper.py": "S = {n}\n"},
    "a module of that one": {
        "mine.py": "import helper\n",
        "helper.py": "from deep import S\n",
        "deep.py": "S = {n}\n",
    },
    "a package": {
        "mine.py": "from pack import sub\n",
        "pack/__init__.py": "",
        "pack/sub.py": "S = {n}\n",
    },
    "a package's own": {
        "mine.py": "import pack.sub\n",
        "pack/__init__.py": "from . import other\n",
        "pack/sub.py": "",
        "pack/other.py": "S = {n}\n",
    },
    "an import in a function": {
        "mine.py": "def late():\n    from helper import S\n    return S\n",
        "helper.py": "S = {n}\n",
    },
    "an import by name": {
        "mine.py": "import importlib\nhelper = importlib.import_module('helper')\n",
        "helper.py": "S = {n}\n",
    },
    "itself": {"mine.py": "S = {n}\n"},
}  # fmt: skip


@pytest.mark.parametrize("name", IMPORTS)
def test_a_reward_depends_on_all_that_it_imports(project: Project, name: str) -> None:
    def plan(number: int) -> dict[str, str]:
        for path, text in IMPORTS[name].items():
            whole = text.replace("{n}", str(number))
            if path == "mine.py":
                whole += "\ndef score(sample): return 1.0\n"
            project.write(path, whole)
        return prints(project.plan(RL))

    first = plan(1)
    assert plan(1) == first
    assert plan(2) != first


def test_what_lies_beside_a_reward_and_is_not_imported_changes_nothing(project: Project) -> None:
    project.write("mine.py", "import json\ndef score(sample): return 1.0\n")
    before = prints(project.plan(RL))
    project.write("other.py", "S = 1\n")
    assert prints(project.plan(RL)) == before


def test_a_released_module_is_known_by_its_version(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("mine.py", "import click\ndef score(sample): return 1.0\n")
    before = prints(project.plan(RL))
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "9.9" if name == "click" else version(name)
    )
    assert prints(project.plan(RL)) != before


def test_an_edited_neighbour_is_what_runs_too(tmp_path: Path) -> None:
    def score(folder: Path) -> float | None:
        made = Function(Function.Config(call="mine:score"), folder)
        return made.score([Sample(prompt=(Message("user", "?"),), completion="x")])[0]

    def write(folder: Path, value: int) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "mine.py").write_text("from helper2 import S\ndef score(sample): return S\n")
        (folder / "helper2.py").write_text(f"S = {value}.0\n")
        return folder

    assert score(write(tmp_path / "a", 1)) == 1.0
    assert score(write(tmp_path / "b", 2)) == 2.0, "each recipe has its own"
    assert score(tmp_path / "a") == 1.0
    os.utime(write(tmp_path / "a", 3) / "helper2.py", ns=(1, 1))
    assert score(tmp_path / "a") == 3.0
    sys.modules.pop("helper2", None)


def package(path: Path, value: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "__init__.py").write_text(
        "from posttrain_recipes.plugin import Dataset, Eval, Method, Reward\n"
        "class Edited(Reward):\n"
        "    '''Scores all replies the same.'''\n"
        "    name = 'edited'\n"
        "    def score(self, samples):\n"
        f"        return [{value}.0 for _ in samples]\n"
    )


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    monkeypatch.syspath_prepend(str(tmp_path / "src"))

    def load() -> Any:
        for name in [name for name in sys.modules if name.startswith("ptl_edited")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        module = importlib.import_module("ptl_edited")

        @hookimpl
        def ptl_rewards() -> list[type]:
            return [module.Edited]

        vars(module).update(ptl_rewards=ptl_rewards, PTL_API=1)
        return module

    yield load
    for name in [name for name in sys.modules if name.startswith("ptl_edited")]:
        del sys.modules[name]


@pytest.mark.parametrize("file", ["__init__.py", "words.json"])
def test_an_edited_plugin_of_the_same_version_is_another(
    project: Project, install: Install, edited: Callable[[], Any], file: str
) -> None:
    package(project.path / "src" / "ptl_edited", 1)
    install("ptl-edited", "1.0", edited)
    text = RL.replace('{use: function, call: "mine:score"}', "{use: edited}")
    before = project.plan(text)
    registry.load.cache_clear()
    assert prints(project.plan(text)) == prints(before)
    path = project.path / "src" / "ptl_edited" / file
    path.write_text((path.read_text() if path.exists() else "") + "\n")
    assert prints(project.plan(text)) == prints(before), "what was imported is what runs"
    registry.load.cache_clear()
    after = project.plan(text)
    assert prints(after) != prints(before)
    changed = [*depends_words(before, after)]
    assert changed == ["the code of reward edited changed (ptl-edited 1.0, edited in place)"]


def depends_words(before: Plan, after: Plan) -> Iterator[str]:
    yield from differences(before.stages[0].inputs, after.stages[0])


def test_a_released_plugin_is_known_by_its_version_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "site-packages" / "ptl_released"
    package(place, 1)
    module = types.ModuleType("ptl_released")
    module.__spec__ = importlib.util.spec_from_file_location(
        "ptl_released", place / "__init__.py", submodule_search_locations=[str(place)]
    )
    monkeypatch.setitem(sys.modules, "ptl_released", module)
    assert content.plugin_code("ptl_released") is None
    monkeypatch.setattr(content, "_copied", lambda: frozenset({"ptl_released"}))
    assert content.plugin_code("ptl_released") is not None, "installed from a directory here"


def test_a_datasets_version_is_part_of_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = RL.replace('{use: function, call: "mine:score"}', "{use: exact_match}")
    before = prints(project.plan(text))
    entry = registry.load().get("dataset", "jsonl")
    monkeypatch.setitem(vars(entry), "version", "9.9")
    assert prints(project.plan(text)) != before


# --- models and loops ----------------------------------------------------------------------------


def test_a_large_file_of_a_model_is_known_by_its_content(
    project: Project, monkeypatch: pytest.MonkeyPatch, users_cache: Path
) -> None:
    monkeypatch.setattr(content, "LARGE", 10)
    text = RL.replace('{use: function, call: "mine:score"}', "{use: exact_match}")
    weights = project.write("model/model.safetensors", "weights" * 9)
    before = prints(project.plan(text))
    times = weights.stat()
    kept = users_cache / "posttrain-recipes" / "hashes.json"
    assert str(weights) in json.loads(kept.read_text())
    content._digests.clear()
    monkeypatch.setattr(Path, "open", _refusing(Path.open, weights))
    assert prints(project.plan(text)) == before, "it is read once"
    monkeypatch.undo()
    monkeypatch.chdir(project.path)
    weights.write_text("WEIGHTS" * 9)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert prints(project.plan(text)) != before


def _refusing(original: Callable[..., Any], forbidden: Path) -> Callable[..., Any]:
    def opened(self: Path, *args: Any, **kwargs: Any) -> Any:
        assert self != forbidden
        return original(self, *args, **kwargs)

    return opened


LOOP = """\
name: demo
model: ./model
stages:
  - repeat: 2
    until: {held_out: "<= 1"}
    stages:
      - name: sft
        dataset: {use: jsonl, path: chat.jsonl, test_size: 1}
        method: {use: sft}
        eval: [{use: nll, name: held_out}]
  - name: after
    init_from: base
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: distill_off_policy, teacher: {stage: sft}}
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [('"<= 1"', '"<= 2"'), ("name: held_out}", "name: held_out, train_on: all}")],
)
def test_what_a_loop_leaves_is_known_by_what_ends_it(project: Project, old: str, new: str) -> None:
    assert old in LOOP
    before, after = prints(project.plan(LOOP)), prints(project.plan(LOOP.replace(old, new)))
    assert before["after"] != after["after"], "the teacher may be the weights of another round"
    assert before["sft-2"] == after["sft-2"]


# --- compared again when it is read --------------------------------------------------------------


def test_data_that_were_edited_since_the_plan_are_refused(project: Project) -> None:
    text = RL.replace('{use: function, call: "mine:score"}', "{use: exact_match}")
    stage = project.plan(text).stages[0]
    assert stage.data is not None
    assert stage.wants is not None
    assert len(load_records(stage.data, stage.wants)) == 4
    path = project.path / "questions.jsonl"
    times = path.stat()
    path.write_text(path.read_text().replace("2+2", "3+3"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UsageError, match=r"questions.jsonl has changed since this run was planned"):
        load_records(stage.data, stage.wants)


def test_data_that_are_edited_while_they_are_read_are_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = RL.replace('{use: function, call: "mine:score"}', "{use: exact_match}")
    stage = project.plan(text).stages[0]
    assert stage.data is not None
    assert stage.wants is not None
    load, path = stage.data.dataset.load, project.path / "questions.jsonl"

    def edited() -> Any:
        path.write_text(path.read_text() * 2)
        return load()

    monkeypatch.setattr(stage.data.dataset, "load", edited)
    with pytest.raises(UsageError, match="has changed since"):
        load_records(stage.data, stage.wants)


def test_inner_data_and_a_rewards_neighbours_are_compared_too(project: Project) -> None:
    project.write("mine.py", "import helper\ndef score(sample): return 1.0\n")
    project.write("helper.py", "S = 1\n")
    mixed = "{use: mix, parts: [{use: jsonl, path: questions.jsonl}]}"
    stage = project.plan(RL.replace("{use: jsonl, path: questions.jsonl}", mixed)).stages[0]
    assert stage.data is not None
    stage.check_held()
    project.write("helper.py", "S = 2\n")
    with pytest.raises(UsageError, match="what reward 'function' is made of has changed"):
        stage.check_held()
    project.write("questions.jsonl", '{"question": "1+1?", "answer": "2"}\n')
    assert stage.wants is not None
    with pytest.raises(UsageError, match="has changed since"):
        load_records(stage.data, stage.wants)


def test_made_records_that_were_edited_are_refused(project: Project) -> None:
    text = (
        "name: demo\nmodel: ./model\nstages:\n  - name: maker\n"
        "    dataset: {use: jsonl, path: questions.jsonl}\n    method: {use: teacher_samples}\n"
        "  - name: sft\n    dataset: {use: collected, stage: maker}\n    method: {use: sft}\n"
    )
    stage = project.plan(text).stages[1]
    made = Made(project.path / "made")
    made.write(1, [Conversation(messages=(Message("user", "a"), Message("assistant", "b")))])
    made.finish({})
    assert stage.data is not None
    assert len(load_records(stage.data, Conversation, lambda _: made.path)) == 1
    path = made.path / "conversation.jsonl"
    path.write_text(path.read_text().replace('"b"', '"c"'))
    with pytest.raises(UsageError, match="stage 'maker' made are not those any more"):
        load_records(stage.data, Conversation, lambda _: made.path)


# --- fingerprints of before ----------------------------------------------------------------------


def test_fingerprints_of_another_scheme_are_told_once(project: Project, ptl: Ptl) -> None:
    text = (
        "name: demo\nmodel: ./model\nstages:\n  - name: dpo\n"
        "    dataset: {use: jsonl, path: pairs.jsonl}\n    method: {use: dpo}\n"
        "    eval: [{use: nll, dataset: {use: jsonl, path: chat.jsonl}}]\n"
    )
    project.write("pairs.jsonl", PAIRS * 4)
    plan = project.plan(text)
    old, new = new_record(plan, "demo-1"), new_record(plan, "demo-2")
    for stage in old.stages:
        stage.fingerprint, stage.started = "0" * 16, "2026-01-01T00:00:00+00:00"
        stage.inputs = {k: v for k, v in stage.inputs.items() if k != "scheme"}
        stage.after = [Measured("nll", "nll", "another", "chat.jsonl", {})]
    kept = Store(project.path / ".ptl")
    (kept.runs_dir / "demo-1").mkdir(parents=True)
    with kept.open(old) as directory:
        old.status = "finished"
        directory.save()
    said = flat(ptl("plan", "mine.yaml").out)
    assert said.count("fingerprints are made another way since version") == 1
    assert "its fingerprint was made another way (against run demo-1)" in said
    assert [*changes(old, plan)] == [
        "dpo: its fingerprint was made another way, so what changed since is not known"
    ], "nor are its evals said to have changed"
    assert remade(plan, [old, new]) is None
    assert remade(plan, []) is None


def test_an_installed_package_is_its_own_files_and_no_neighbours(tmp_path: Path) -> None:
    """A plugin that was installed from a wheel lies among hundreds of packages that it imports."""
    place = tmp_path / "site-packages"
    for name, code in (
        ("ptl_mine/__init__.py", "from ptl_mine import parts\nimport heavy.deep\n"),
        ("ptl_mine/parts.py", "import heavy\nfrom . import more\n"),
        ("ptl_mine/more.py", ""),
        ("heavy/__init__.py", "import ptl_mine"),
        ("heavy/deep.py", ""),
    ):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(code)
    start = place / "ptl_mine" / "__init__.py"
    own, others = content._closure(start, (start.parent, place))
    assert {str(file.relative_to(place)) for file in own} == {
        *("ptl_mine/__init__.py", "ptl_mine/parts.py", "ptl_mine/more.py"),
    }
    assert "heavy" in others
