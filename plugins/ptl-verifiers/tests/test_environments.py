"""Environments of verifiers, played by a policy that says what a script has it say."""

import asyncio
import itertools
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verifiers")
from ptl_verifiers.dataset import Verifiers, VerifiersTask

from posttrain_recipes.plugin import Message, Played, PtlError, Reply, UsageError

TESTS = Path(__file__).parent
RECIPES = TESTS.parent / "recipes"
END, TURN = 0, 1


@dataclass
class Letters:
    """A letter is a token; a turn is its role, its letters and an end."""

    stop: list[int] = field(default_factory=lambda: [END])
    rewrites: bool = False
    """Whether earlier turns of the assistant are left out, as a template does with thoughts."""

    def _turn(self, message: Message) -> list[int]:
        said = "" if self.rewrites and message.role == "assistant" else message.content
        return [TURN, *map(ord, f"{message.role}:{said}"), END]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return [*itertools.chain(*map(self._turn, messages)), TURN, *map(ord, "assistant:")]

    def supervised(self, messages: Sequence[Message], train_on: str = "last") -> Any:
        if self.rewrites:
            raise UsageError("this template rewrites earlier turns")
        tokens = list(itertools.chain(*map(self._turn, messages)))
        return tokens, [0.0] * len(tokens)

    def parse(self, tokens: Sequence[int]) -> str:
        return "".join(chr(token) for token in tokens if token != END).strip()


@dataclass
class Scripted:
    """A policy that says one line after another."""

    script: Callable[[str, int], str]
    """Of all that it read, and of how many replies there were."""
    renderer: Letters = field(default_factory=Letters)
    max_turns: int = 8
    max_tokens: int = 200
    read: list[str] = field(default_factory=list)
    said: list[list[int]] = field(default_factory=list)

    def sample(self, prompt: Sequence[int], max_tokens: int | None = None) -> Future[Reply]:
        text = "".join("|" if token in (END, TURN) else chr(token) for token in prompt)
        said = self.script(text, len(self.read))
        # White space at the end is of the tokens and not of the text: a rendering would lose it.
        tokens = [*map(ord, said), ord(" "), END]
        self.read.append(text)
        self.said.append(tokens)
        future: Future[Reply] = Future()
        future.set_result(Reply(tokens, [-0.5 - len(self.read)] * len(tokens)))
        return future


def tasks(env: str, directory: Path = RECIPES, **options: Any) -> list[VerifiersTask]:
    return list(Verifiers(Verifiers.Config(env=env, **options), directory).load())  # type: ignore[arg-type]


def first(env: str, directory: Path = RECIPES, **options: Any) -> VerifiersTask:
    return tasks(env, directory, **{"size": 1, "part": "all", **options})[0]


def check_tokens(policy: Scripted, played: Played) -> None:
    """One branch, in which everything that was sampled stands as it was sampled."""
    [branch] = played.branches
    own = [
        (token, logprob)
        for token, sampled, logprob in zip(
            branch.tokens, branch.sampled, branch.logprobs, strict=True
        )
        if sampled
    ]
    assert own == [
        (token, -0.5 - number) for number, tokens in enumerate(policy.said, 1) for token in tokens
    ]
    assert branch.messages[-1].role == "assistant"


def test_a_single_turn() -> None:
    task = first("sums_v1")
    answer = str(task.task.data.answer)
    right, wrong = Scripted(lambda read, n: f"It is {answer}"), Scripted(lambda read, n: "no")
    played = task.play(right)
    assert (played.reward, played.metrics) == (1.0, {"right": 1.0, "number": 1.0})
    check_tokens(right, played)
    assert right.read == [f"|user:{task.task.data.prompt}||assistant:"]
    assert task.play(wrong).reward == 0.0
    assert task.higher_is_better == {"right": True}


def test_several_turns_are_one_sequence() -> None:
    task = first("guess_v1", TESTS)
    low = int(task.task.data.prompt.split()[3])
    policy = Scripted(lambda read, n: str(low - 1 + n) if n else "dunno")
    played = task.play(policy)
    check_tokens(policy, played)
    assert len(policy.said) == 3
    assert "|user:A number, please.||assistant:" in policy.read[1]
    assert "|user:Higher.||assistant:" in policy.read[2] or "Lower" in policy.read[2]
    assert policy.read[2].startswith(f"{policy.read[1]}{low} |")
    assert played.metrics["legal"] == pytest.approx(2 / 3)


def test_a_question_is_made_of_the_last_answer() -> None:
    task = first("running_sum_v1")
    more = task.task.data.more[0]
    wrong = Scripted(lambda read, n: str(99 + n))
    assert task.play(wrong).reward == 0.0
    assert f"|user:What is 99 + {more}?||assistant:" in wrong.read[1]
    right = Scripted(lambda read, n: f"It is {task.task.data.answer - (0 if n else more)}")
    played = task.play(right)
    assert played.reward == 1.0
    assert played.metrics == {"asked": 2.0, "right": 1.0}
    check_tokens(right, played)


def test_a_template_that_rewrites_earlier_turns_makes_branches() -> None:
    task = first("guess_v1", TESTS)
    policy = Scripted(lambda read, n: "none", Letters(rewrites=True))
    played = task.play(policy)
    assert len(played.branches) == 3
    assert [sum(one.sampled) for one in played.branches] == [len(said) for said in policy.said]
    assert played.branches[2].tokens[-len(policy.said[2]) :] == policy.said[2]


def calculates(read: str, n: int) -> str:
    return read.split("tool:")[1].split("|")[0] if n else "<calculate>12 * 3</calculate>"


@pytest.mark.parametrize("described", [False, True])
def test_tools_run_in_this_process(described: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a process is started")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    task = first("calculator_v1", format="tag", describe=described)
    policy = Scripted(calculates)
    played = task.play(policy)
    check_tokens(policy, played)
    assert ("You can call these tools:" in policy.read[0]) is described
    assert "|tool:36|" in policy.read[1]
    assert played.metrics == {"calls": 1.0, "right": 0.0}
    assert [m.role for m in played.branches[0].messages if m.role != "system"] == [
        "user", "assistant", "tool", "assistant",
    ]  # fmt: skip


def test_tools_leave_the_logging_of_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    first("calculator_v1", format="tag").play(Scripted(calculates))
    assert root.handlers == []


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ({"name": "calculate", "arguments": {"product": "12 * 3"}}, "|tool:36|"),
        ({"name": "calculate", "arguments": {"product": "12 + 3"}}, "write it as 12 * 34"),
        ({"name": "calculate", "arguments": {}}, "|tool:Error executing tool calculate"),
        ({"name": "compute", "arguments": {}}, "error: unknown tool 'compute'"),
        ({"name": "calculate", "arguments": "12 * 3"}, "must be a JSON object"),
    ],
)
def test_a_call_that_makes_no_sense_is_answered(call: dict[str, Any], answer: str) -> None:
    said = f"Well. <tool_call>{json.dumps(call)}</tool_call>"
    policy = Scripted(lambda read, n: "36" if n else said)
    played = first("calculator_v1").play(policy)
    assert answer in policy.read[1]
    assert played.reward == 0.0
    check_tokens(policy, played)


def test_what_is_no_call_is_text() -> None:
    policy = Scripted(lambda read, n: "<tool_call>{</tool_call>")
    first("calculator_v1").play(policy)
    assert len(policy.said) == 1


def test_the_bound_on_turns_ends_it_and_what_was_played_is_scored() -> None:
    task = first("calculator_v1", format="tag")
    policy = Scripted(lambda read, n: "<calculate>12 * 3</calculate>" if n < 9 else "", max_turns=3)
    played = task.play(policy)
    assert len(policy.said) == 3
    assert played.truncated
    assert (played.reward, played.metrics["calls"]) == (0.0, 3.0)
    check_tokens(policy, played)


def test_a_reply_that_is_cut_is_told_of() -> None:
    class Cut(Scripted):
        def sample(self, prompt: Sequence[int], max_tokens: int | None = None) -> Future[Reply]:
            future: Future[Reply] = Future()
            future.set_result(Reply([ord("4")], [-0.5]))
            return future

    assert first("sums_v1").play(Cut(lambda read, n: "")).truncated


def test_two_episodes_at_once_do_not_disturb_each_other() -> None:
    from concurrent.futures import ThreadPoolExecutor

    task = first("calculator_v1", format="tag")
    policies = [Scripted(calculates) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for played, policy in zip(pool.map(task.play, policies), policies, strict=True):
            check_tokens(policy, played)
            assert played.metrics["calls"] == 1.0


MINE = """
import verifiers.v1 as vf

__all__ = ["MyTaskset"]

class MyTask(vf.Task[vf.TaskData]):
    {hook}

class MyTaskset(vf.Taskset[MyTask, vf.TasksetConfig]):
    def load(self):
        {load}
        yield MyTask(vf.TaskData(prompt="?"), self.config.task)
"""
FINE = "@vf.reward\n    async def one(self, trace): return 1.0"
RAISES = "@vf.reward\n    async def one(self, trace): raise KeyError('lost')"


def mine(tmp_path: Path, name: str, hook: str = FINE, load: str = "pass") -> VerifiersTask:
    (tmp_path / f"{name}.py").write_text(MINE.format(hook=hook, load=load))
    return first(name, tmp_path)


def test_a_rubric_that_raises_is_named(tmp_path: Path) -> None:
    task = mine(tmp_path, "raising_v1", RAISES)
    with pytest.raises(PtlError, match="KeyError.*lost"):
        task.play(Scripted(lambda read, n: "a"))


def test_a_task_without_rewards_abstains(tmp_path: Path) -> None:
    assert mine(tmp_path, "silent_v1", "pass").play(Scripted(lambda read, n: "a")).reward is None


def test_a_taskset_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="taskset of 'unloadable_v1' cannot be loaded") as error:
        mine(tmp_path, "unloadable_v1", load="raise OSError('no network')")
    assert error.value.why == "OSError: no network"


def test_a_module_of_the_same_name_elsewhere_is_refused(tmp_path: Path) -> None:
    for directory in ("a", "b"):
        (tmp_path / directory).mkdir()
    mine(tmp_path / "a", "twin_v1")
    with pytest.raises(UsageError, match="'twin_v1' is another module"):
        mine(tmp_path / "b", "twin_v1")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"env": "sums_v1", "args": {"belw": 3}}, "belw"),
        ({"env": "sums_v1", "args": {"below": "many"}}, "below"),
        ({"env": "guess_v1", "env_args": {"mst": 3}}, "mst"),
        ({"env": "guess_v1", "agent": "player"}, "it has guesser"),
        ({"env": "sums_v1", "harness": "no_such"}, "no_such"),
    ],
)
def test_options_that_verifiers_refuses_are_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as error:
        first(directory=TESTS if options["env"] == "guess_v1" else RECIPES, **options)
    assert told in f"{error.value.what} {error.value.why} {error.value.hint}"


def test_options_reach_the_taskset_and_the_environment() -> None:
    task = first("guess_v1", TESTS, args={"high": 2}, env_args={"most": 1})
    assert task.task.data.high == 2
    policy = Scripted(lambda read, n: "none")
    task.play(policy)
    assert len(policy.said) == 1


def test_a_modeled_user_is_played_and_not_learned() -> None:
    """Both are the policy; the user is marked as one that does not learn."""
    task = first("user-sim+sums_v1")
    policy = Scripted(lambda read, n: "###DONE###" if n == 2 else "a question" if n == 0 else "42")
    played = task.play(policy)
    [branch] = played.branches
    assert (
        "".join(chr(t) for t, own in zip(branch.tokens, branch.sampled, strict=True) if own)
        == "42 \0"
    )


def test_an_agent_that_plays_an_episode_several_times_is_refused() -> None:
    task = first("best-of-n+sums_v1")
    with pytest.raises(PtlError, match="agents of 'best-of-n.sums_v1' are to learn"):
        task.play(Scripted(lambda read, n: "42"))


def test_what_is_held_out_is_not_trained_on() -> None:
    train = tasks("sums_v1", size=900, args={"below": 20})
    held = tasks("sums_v1", size=900, args={"below": 20}, part="held_out")
    assert len(train) + len(held) == 400
    assert 60 < len(held) < 140
    assert not {one.content for one in train} & {one.content for one in held}
    assert [one.content for one in tasks("sums_v1", size=5)] == [
        one.content for one in tasks("sums_v1", size=5)
    ]


def test_the_recipes_run(tmp_path: Path) -> None:
    import posttrain_recipes as ptl

    for name in ("sums", "running_sum", "calculator"):
        result = ptl.run(RECIPES / f"{name}.yaml", preset="tiny", home=tmp_path)
        assert result.status == "finished"
        assert result["rl"].after["held_out"]["return"].count == 8
