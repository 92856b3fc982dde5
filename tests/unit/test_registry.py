"""Discovery: a stranger's plugin works as a built-in does, and a broken one stops nobody."""

from __future__ import annotations

import json
import os
import subprocess
import types
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from click.testing import CliRunner, Result

from posttrain_recipes import registry
from posttrain_recipes.cli.plugins import plugins
from posttrain_recipes.errors import MissingExtraError, PtlError, RecipeError, UsageError
from posttrain_recipes.language.schema import recipe_schema
from posttrain_recipes.plugin import Conversation, Eval, Method, PluginConfig, Reward, hookimpl
from tests.conftest import Install, Project, Ptl


class Brevity(Reward):
    """One over the number of words.

    The rest of the docstring is for `ptl explain`.
    """

    name = "brevity"

    class Config(PluginConfig):
        """Options."""

        floor: int = 1
        """Replies shorter than this score the same."""

    def score(self, samples: Sequence[Any]) -> list[float | None]:
        return [1.0] * len(samples)


class Rewarded(Method):
    """A method that takes a reward."""

    name = "rewarded"
    takes = (Conversation,)
    takes_reward = True

    def train(self, stage: Any) -> Any:
        raise NotImplementedError


def rewards(*classes: Any) -> dict[str, Any]:
    @hookimpl
    def ptl_rewards() -> Sequence[Any]:
        return list(classes)

    return {"ptl_rewards": ptl_rewards}


def methods(*classes: Any) -> dict[str, Any]:
    @hookimpl
    def ptl_methods() -> Sequence[Any]:
        return list(classes)

    return {"ptl_methods": ptl_methods}


BUILTINS = {
    "dataset": {"jsonl", "huggingface"},
    "method": {"sft", "dpo", "orpo", "simpo", "cpo", "kto", "reward_model"},
    "reward": {"exact_match"},
    "eval": {"nll", "exact_match", "preference_accuracy", "reward_accuracy", "generations"},
    "engine": {"local", "tinker", "server"},
}


def builtins_work() -> None:
    found = registry.load()
    for kind, names in BUILTINS.items():
        assert names <= set(found.names(kind))


def list_plugins(*options: str) -> Result:
    result = CliRunner().invoke(plugins, ["list", *options], standalone_mode=False)
    assert result.exception is None, result.exception
    return result


# --- a stranger's plugin -------------------------------------------------------------------------


def test_it_is_found_with_its_origin(install: Install) -> None:
    install("acme-rewards", "1.2", rewards(Brevity))
    entry = registry.load().get("reward", "brevity")
    assert (entry.cls, entry.distribution, entry.version) == (Brevity, "acme-rewards", "1.2")
    assert entry.summary == "One over the number of words."
    assert registry.load().broken == []
    builtins_work()


def test_it_is_listed(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    install("acme-rewards", "1.2", rewards(Brevity))
    assert "brevity" in list_plugins().stdout
    assert "One over the number of words.  [acme-rewards]" in list_plugins().stdout
    listed = json.loads(list_plugins("--json").stdout)
    assert listed["broken"] == []
    assert [p for p in listed["plugins"] if p["name"] == "brevity"] == [
        {
            "kind": "reward",
            "name": "brevity",
            "summary": "One over the number of words.",
            "distribution": "acme-rewards",
            "version": "1.2",
            "missing": [],
        }
    ]


def test_its_options_are_in_the_schema(install: Install) -> None:
    install("acme-rewards", "1.2", rewards(Brevity))
    definitions = recipe_schema(registry.load())["$defs"]
    assert {"brevity", "exact_match"} <= set(definitions["reward"]["properties"]["use"]["enum"])
    own = definitions["reward.brevity"]
    assert own["additionalProperties"] is False
    assert own["properties"]["floor"] == {
        "type": "integer",
        "default": 1,
        "description": "Replies shorter than this score the same.",
    }


RECIPE = """\
name: demo
model: ./model
stages:
  - name: rl
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: rewarded}
    reward: {use: brevity, floor: 3, weight: 0.5}
"""


def test_a_recipe_uses_it_and_its_options_are_checked(project: Project, install: Install) -> None:
    install("acme", "1.2", rewards(Brevity) | methods(Rewarded))
    [(reward, weight)] = project.plan(RECIPE).stages[0].rewards
    assert isinstance(reward, Brevity)
    assert (reward.config, weight) == (Brevity.Config(floor=3), 0.5)
    with pytest.raises(RecipeError) as caught:
        project.plan(RECIPE.replace("floor: 3", "flor: 3"))
    assert [str(fault) for fault in caught.value.faults] == [
        "mine.yaml:7:28  stages.rl.reward.flor\n"
        "  unknown option for reward 'brevity'; did you mean 'floor'?"
    ]


def test_its_version_is_part_of_what_a_stage_is_known_by(
    project: Project, install: Install
) -> None:
    install("acme", "1.2", rewards(Brevity) | methods(Rewarded))
    before = project.plan(RECIPE).stages[0].fingerprint
    assert project.plan(RECIPE).stages[0].fingerprint == before
    registry.load.cache_clear()
    found = registry.load()
    old = found.entries["method"]["rewarded"]
    found.entries["method"]["rewarded"] = registry.Entry("method", old.cls, "acme", "1.3")
    assert project.plan(RECIPE).stages[0].fingerprint != before


def test_looking_is_done_once(install: Install) -> None:
    calls = []

    def module() -> Any:
        calls.append(1)
        raise ImportError

    install("acme", "1.2", module)
    assert registry.load() is registry.load()
    assert calls == [1]


# --- a broken plugin -----------------------------------------------------------------------------


def cannot_import() -> Any:
    raise ImportError("no module named 'acme_core'")


def unknown_hook() -> Any:
    def ptl_reward() -> Sequence[Any]:
        return [Brevity]

    return {"ptl_reward": hookimpl(ptl_reward)}


def wrong_arguments() -> Any:
    def ptl_rewards(config: Any) -> Sequence[Any]:
        return [Brevity]

    return {"ptl_rewards": hookimpl(ptl_rewards)}


def raising_hook() -> Any:
    def ptl_rewards() -> Sequence[Any]:
        raise RuntimeError("boom")

    return {"ptl_rewards": hookimpl(ptl_rewards)}


class NoTakes(Eval):
    """An eval that does not say what it can use."""

    name = "no_takes"

    def evaluate(self, context: Any) -> Any:
        raise NotImplementedError


class Unfinished(Reward):
    """A reward that does not score."""

    name = "unfinished"


class Spaced(Brevity):
    """A name that no recipe should say."""

    name = "my reward"


class PlainConfig(Brevity):
    """Options that are no PluginConfig."""

    name = "plain"

    class Config:
        """Not a PluginConfig."""


class Opaque:
    """What JSON does not have."""


class Unwritable(Brevity):
    """An option that no recipe can hold."""

    name = "unwritable"

    class Config(PluginConfig):
        """Options."""

        model_config = PluginConfig.model_config | {"arbitrary_types_allowed": True}
        thing: Opaque | None = None
        """What no recipe can say."""


def leaves() -> Any:
    raise SystemExit(0)


def hangs() -> Any:
    while True:
        pass


def rewards_that(does: Callable[[], Any]) -> Any:
    return {"ptl_rewards": hookimpl(does, specname="ptl_rewards")}


BROKEN: dict[str, tuple[Any, str]] = {
    "it cannot be imported": (cannot_import, "ImportError: no module named 'acme_core'"),
    "a hook that there is not": (unknown_hook(), "ptl_reward"),
    "a hook with arguments": (wrong_arguments(), "config"),
    "a hook that raises": (raising_hook(), "RuntimeError: boom"),
    "a class of another kind": (rewards(Rewarded), "is not a Reward class"),
    "an instance": (rewards(Brevity(Brevity.Config())), "is not a Reward class"),
    "a name with a space": (rewards(Spaced), "Spaced.name must be an identifier"),
    "a config of its own": (rewards(PlainConfig), "must be a subclass of PluginConfig"),
    "a class without its method": (rewards(Unfinished), "Unfinished lacks score"),
    "no record types": (
        {"ptl_evals": hookimpl(lambda: [NoTakes], specname="ptl_evals")},
        "NoTakes.takes must name the record types",
    ),
    "options that no recipe can hold": (rewards(Unwritable), "PydanticInvalidForJsonSchema"),
    "an object that cannot be a key": (dict, "TypeError: unhashable type: 'dict'"),
    "it ends the process": (leaves, "SystemExit: 0"),
    "a hook that ends the process": (rewards_that(leaves), "SystemExit: 0"),
    "it hangs": (hangs, "TimeoutError: it took more than 0.2 s to import"),
    "a hook that hangs": (rewards_that(hangs), "TimeoutError: it took more than 0.2 s to import"),
}


@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN)
def test_it_warns_and_the_rest_works(
    install: Install, content: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "TimeoutError" in reason:
        monkeypatch.setattr(registry, "IMPORT_S", 0.2)
    install("acme-broken", "0.1", content)
    install("acme-good", "0.2", rewards(Brevity))
    [broken] = registry.load().broken
    assert broken.distribution == "acme-broken"
    assert reason in broken.reason
    assert registry.load().get("reward", "brevity").distribution == "acme-good"
    builtins_work()
    result = list_plugins()
    assert "acme-broken cannot be loaded" in result.stderr
    assert reason in result.stderr
    assert "warning" not in result.stdout
    assert json.loads(list_plugins("--json").stdout)["broken"][0]["reason"] == broken.reason


def test_what_a_plugin_prints_is_no_part_of_an_answer(install: Install) -> None:
    def loud() -> Any:
        print("hello from acme")
        return rewards(Brevity)

    install("acme-loud", "0.1", loud)
    result = list_plugins("--json")
    json.loads(result.stdout)
    assert "hello from acme" in result.stderr


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("fails", [False, True])
def test_what_a_plugin_writes_past_python_is_told_and_commands_no_terminal(
    ptl: Ptl, install: Install, number: int, fails: bool
) -> None:
    def noisy() -> Any:
        print("first")
        os.write(number, b"\x1b]0;title\x07from below\n\xff" + b"x" * 5000)
        subprocess.run(["echo", "a child"], check=True)
        if fails:
            raise ImportError("no")
        return types.ModuleType("noisy")

    install("noisy", "1", noisy)
    said = ptl("plugins", "list")
    assert said.code == 0
    assert "\x1b" not in said.out + said.err
    assert "from below" not in said.out
    assert "first" in said.err
    lines = said.err.splitlines()
    below = lines[lines.index("plugin noisy wrote as it was imported:") + 1]
    assert below == "  \\u001b]0;title\\u0007from below"
    assert "characters)" in said.err
    assert "x" * 2001 not in said.err
    assert ("ImportError: no" in said.out + said.err) == fails
    assert ptl("--version").out.startswith("ptl")


def test_two_of_one_name_are_an_error_that_lists_both(install: Install) -> None:
    install("acme", "1.2", rewards(Brevity))
    install("other", "3.4", rewards(Brevity))
    with pytest.raises(PtlError) as caught:
        registry.load()
    assert caught.value.what == (
        "two plugins share a name: reward 'brevity' is provided by acme 1.2, other 3.4"
    )
    assert caught.value.hint == "uninstall all but one of them"


def test_a_built_in_cannot_be_taken_over(install: Install) -> None:
    class Mine(Brevity):
        """Mine."""

        name = "exact_match"

    install("acme", "1.2", rewards(Mine))
    with pytest.raises(PtlError, match=r"provided by posttrain-recipes \S+, acme 1\.2"):
        registry.load()


def test_one_name_may_be_of_two_kinds() -> None:
    kinds = [entry.kind for entry in registry.load().search("exact_match")]
    assert kinds == ["reward", "eval"]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown method 'dpoo'") as caught:
        registry.load().get("method", "dpoo")
    assert caught.value.hint == "did you mean 'dpo'?"


@pytest.mark.parametrize(
    ("requires", "extra", "command"),
    [
        (("no_such_module",), None, "pip install 'no_such_module'"),
        (("no_such_module",), "acme[gsm]", "pip install 'acme[gsm]'"),
        (("no_such_module.inner", "json"), None, "pip install 'no_such_module.inner'"),
    ],
)
def test_what_is_missing_is_answered_with_the_command(
    project: Project,
    install: Install,
    requires: tuple[str, ...],
    extra: str | None,
    command: str,
) -> None:
    class Needy(Brevity):
        """Needs more than is installed."""

    Needy.requires, Needy.extra = requires, extra
    install("acme", "1.2", rewards(Needy) | methods(Rewarded))
    entry = registry.load().get("reward", "brevity")
    with pytest.raises(MissingExtraError) as caught:
        entry.require()
    assert caught.value.hint == command
    with pytest.raises(RecipeError) as failed:
        project.plan(RECIPE)
    [fault] = failed.value.faults
    assert fault.key == "stages.rl.reward.use"
    assert fault.message.endswith(f"not installed here; {command}")
    assert f"(needs {requires[0]})" in " ".join(list_plugins().stdout.split())


def test_what_is_installed_is_not_missing(install: Install) -> None:
    class Content(Brevity):
        """Needs what is there."""

        requires = ("json", "email.message")

    install("acme", "1.2", rewards(Content))
    entry = registry.load().get("reward", "brevity")
    assert entry.missing == []
    entry.require()
