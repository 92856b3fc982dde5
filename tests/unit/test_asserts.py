"""Tests of programs taken apart: what a program is asked, and what it cannot talk itself out of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from posttrain_recipes.plugin import Sample
from posttrain_recipes.rewards.python_tests import PythonTests
from posttrain_recipes.training.sandbox import child_main, runner, split_tests
from posttrain_recipes.training.sandbox.split_tests import take_apart

needs_sandbox = pytest.mark.skipif(
    runner.why_not() is not None, reason=f"no sandbox here: {runner.why_not()}"
)


def asked(test: str) -> list[str]:
    return [source for _, source in take_apart(test).steps]


def passes(test: str, reply: str) -> bool:
    """The verdict, with the reply run in this process."""
    scope: dict[str, object] = {}
    exec(reply, scope)
    taken = take_apart(test)
    return taken.passed(json.loads(child_main.answered(taken.steps, scope)))


@pytest.mark.parametrize(
    ("test", "questions"),
    [
        ("assert f(1, 'a') == [1, 2]", ["f(1, 'a')"]),
        ("assert 3 == f(1)", ["f(1)"]),
        ("assert f(g(1)) == 2 ** 10", ["f(g(1))"]),
        ("assert abs(f(1) - 3.5) < 1e-9", ["f(1)"]),
        ("assert math.isclose(f(1), 3.5, rel_tol=1e-3)", ["f(1)"]),
        ("assert set(f(1)) == set([1, 2])", ["set(f(1))"]),
        ("assert f(1)[0].lower() == 'a' and f(2) is None", ["f(1)[0].lower()", "f(2)"]),
        ("assert isinstance(f(1), int)", ["f(1)"]),
        ("expected = 7\nassert f(1) == expected", ["f(1)"]),
        ("x = [3, 1]\nsort(x)\nassert x == [1, 3]", ["x = [3, 1]", "sort(x)", "x"]),
        ("def check(g):\n    assert g(1) == 2\n    assert g(2) == 3\ncheck(f)",)
        + (["g = f", "g(1)", "g(2)"],),
        # What nothing here is known of is the program's word.
        ("assert f(1)", ["not not f(1)"]),
        ("assert f(1) == Point(1, 2)", ["not not f(1) == Point(1, 2)"]),
        ("for i in range(3):\n    assert f(i) == i", ["for i in range(3):\n    assert f(i) == i"]),
        (
            "assert f(1) == 2\nfor i in x:\n    assert g(i)",
            ["f(1)", "for i in x:\n    assert g(i)"],
        ),
        ("assert sum(10, 15) == 6", ["sum(10, 15)"]),
        ("assert True", ["assert True"]),
        ("assert f(", ["assert f("]),
    ],
)
def test_what_is_expected_is_no_part_of_what_is_asked(test: str, questions: list[str]) -> None:
    assert asked(test) == questions


HONEST = """
import collections, datetime, decimal, fractions, enum
def same(x): return x
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x); return self
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __bool__(self): return False
    def __eq__(self, other): return isinstance(other, Stack) and self.items == other.items
Point = collections.namedtuple("Point", "x y")
class Color(enum.IntEnum): RED = 3
def sort(x): x.sort()
def fails(): raise KeyError(1)
def count(word): return collections.Counter(word)
def squares(n): return (i * i for i in range(n))
"""


@pytest.mark.parametrize(
    "claim",
    [
        "same(0.1 + 0.2) == 0.1 + 0.2",
        "same(float('inf')) == math.inf",
        "same(-0.5) == -0.5",
        "same(10 ** 5000) == 10 ** 5000",
        "same([1, (2, 'b'), {3: None}, {4}, b'5', 1j]) == [1, (2, 'b'), {3: None}, {4}, b'5', 1j]",
        "same(frozenset([1])) == {1}",
        "same({(1, 2): [True]}) == {(1, 2): [True]}",
        "same('\\ud800\\n\"') == '\\ud800\\n\"'",
        "same(None) is None and same(1) is not None and not same(0)",
        "same([]) == [] and same({}) == {} and same(()) == ()",
        "same('abc')[1] == 'b' and same('a').upper() == 'A'",
        "round(same(2.6789), 2) == 2.68",
        "abs(same(1.0) - 1.00001) < 1e-3",
        "math.isclose(same(1.0), 1.0000001, rel_tol=1e-3)",
        "same([0]) == [0] * 1 and same([0, 1, 2]) == list(range(3))",
        "same(5) in (4, 5) and 'a' in same('abc')",
        "1 < same(2) <= 2",
        "same(1) == 1 or fails() == 2",
        "same(decimal.Decimal('0.5')) == 0.5 and same(fractions.Fraction(1, 2)) == 0.5",
        "Point(1, 2) == (1, 2) and Point(1, 2).y == 2",
        "same(Color.RED) == 3",
        "count('aab') == {'a': 2, 'b': 1}",
        "count('aab') == collections.Counter('aba')",
        "list(squares(3)) == [0, 1, 4] and sum(squares(3)) == 5",
        "isinstance(same(1), int) and isinstance(Stack(), Stack)",
        "isinstance(same([1]), (list, tuple))",
        "Stack().push(1).push(2).pop() == 2 and len(Stack().push(1)) == 1",
        "Stack().push(1) == Stack().push(1) and Stack() != Stack().push(1)",
        "not Stack() and Stack() is not None",
        "same(datetime.date(2020, 1, 1)) == datetime.date(2020, 1, 1)",
        "same([datetime.date(2020, 1, 1), 1]) == [datetime.date(2020, 1, 1), 1]",
        "all(same(i) == i for i in range(3))",
        "[x + 1 for x in same([1, 2])] == [2, 3]",
        "list(map(same, [1])) == [1]",
    ],
)
def test_an_honest_program_passes_and_another_value_does_not(claim: str) -> None:
    assert passes(f"assert {claim}, 'said when it fails'", HONEST)
    assert not passes(f"assert not ({claim})", HONEST)


@pytest.mark.parametrize(
    "test",
    [
        "x = [3, 1]\nsort(x)\nassert x == [1, 3]",
        "x = [3, 1]\nsort(x)\nx = x + [4]\nassert x == [1, 3, 4]",
        "a = 2\nb = a + 1\nassert same(a) == 2 and same(3) == b",
        "s = Stack()\ns.push(5)\nassert s.pop() == 5\nassert len(s) == 0",
        "import math\nassert math.floor(same(2.5)) == 2",
        "def check(candidate):\n    assert candidate(1) == 1\n    assert candidate('a') == 'a'\n"
        "check(same)",
        "def check(candidate):\n    for i in range(3):\n        assert candidate(i) == i\n"
        "check(same)",
        "try:\n    fails()\n    assert False\nexcept KeyError:\n    pass",
        "def abs(x): return 7\nassert abs(1) == 7",
    ],
)
def test_tests_of_several_lines_pass(test: str) -> None:
    assert passes(test, HONEST)
    assert not passes(test, HONEST.replace("self.items.pop()", "0").replace("x.sort()", "0")) or (
        "Stack" not in test and "sort" not in test
    )


@pytest.mark.parametrize(
    "test",
    [
        "assert same((1, 2)) == [1, 2]",
        "assert same(1) == 2",
        "assert fails() == 1",
        "fails()\nassert same(1) == 1",
        "assert same(object()) == 1",
        "assert nothing(1) == 1",
    ],
)
def test_a_wrong_program_fails(test: str) -> None:
    assert not passes(test, HONEST)


@pytest.mark.parametrize(
    "said",
    [None, [], 1, {}, [[1], [1]], [1], [[]], [[{}]], [[{"int": "z"}]], [[{"list": 3}]]]
    + [[[{"Fraction": [1, 0]}]], [[{"dict": [[{"list": []}, 1]]}]], [[{"set": [{"list": []}]}]]]
    + [[[{"Decimal": "1E+999999999"}]], [[{"int": "f" * (1 << 20)}]], [[{"object": "X"}]]],
)
def test_an_answer_that_is_none_passes_nothing(said: object) -> None:
    assert not take_apart("assert f(1) == 1").passed(said)


def test_an_answer_cannot_make_a_claim_take_for_ever() -> None:
    many = take_apart("assert f(1) * f(2) == 1")
    assert not many.passed([["a" * 1000], [{"int": hex(1 << 60)}]])
    assert not take_apart("assert f(1) % 5 == '5'").passed([["%1000000000000d"]])
    assert not take_apart("assert f(1) ** 99 == 5").passed([[{"int": hex(1 << (1 << 19))}]])


# --- a reply that would rather not do the work ---------------------------------------------------

CHEATS = {
    "frames": "def f(x):\n"
    "    import sys, os, json\n"
    "    frame = sys._getframe()\n"
    "    while frame.f_back and 'word' not in frame.f_locals: frame = frame.f_back\n"
    "    found = frame.f_locals\n"
    "    line = {'word': found['word'], 'answers': [[[True]] for _ in found['tests']]}\n"
    "    sys.__stdout__.write('\\n' + json.dumps(line) + '\\n'); sys.__stdout__.flush()\n"
    "    os._exit(0)",
    "at once": "import sys, os, json\n"
    "found = sys._getframe(1).f_locals\n"
    "line = {'word': found['word'], 'answers': [[[{'object': 'x'}]], [[None]]]}\n"
    "sys.__stdout__.write('\\n' + json.dumps(line) + '\\n'); sys.__stdout__.flush()\n"
    "os._exit(0)",
    "gc": "import gc\n"
    "def f(x):\n"
    "    for found in gc.get_objects():\n"
    "        if type(found) is dict and 'expected' in found: return found['expected']\n"
    "    for found in gc.get_objects():\n"
    "        if type(found) is str and '==' in found: return eval(found.split('==')[1])",
    "source": "def f(x):\n"
    "    for line in open('/tmp/program.py'):\n"
    "        if 'assert f(' in line: return eval(line.split('==')[1].split('\\\\')[0])",
    "stdin": "import sys\ndef f(x): return sys.stdin.read()",
    "equal": "class Equal:\n"
    "    def __eq__(self, other): return True\n"
    "    def __ne__(self, other): return False\n"
    "    def __hash__(self): return 1\n"
    "def f(x): return Equal()",
    "equal number": "class Equal(int):\n"
    "    def __eq__(self, other): return True\n"
    "    __hash__ = int.__hash__\n"
    "def f(x): return Equal(0)",
    "exit": "import os\ndef f(x): os._exit(0)",
    "exit politely": "def f(x): raise SystemExit(0)",
    "builtins": "import builtins, sys, os\n"
    "builtins.isinstance = lambda *a: True\n"
    "builtins.print = builtins.map = builtins.hex = lambda *a, **k: '1'\n"
    "builtins.str = builtins.list = builtins.dict = type('Any', (), {})\n"
    "main = sys.modules['__main__']\n"
    "main.encoded = lambda value: 'true'\n"
    "main.answered = lambda *a: '[[true]]'\n"
    "def f(x): return True",
    "atexit": "import atexit, os\n"
    "atexit.register(lambda: os.write(1, b'\\n[[[true]], [[true]]]\\n'))\n"
    "def f(x): return 0",
    "descriptors": "import os\n"
    "def f(x):\n"
    "    for number in range(64):\n"
    "        try: os.write(number, b'\\n[[[true]], [[true]]]\\n')\n"
    "        except OSError: pass\n"
    "    os._exit(0)",
    "thread": "import threading, os\n"
    "def f(x): return 0\n"
    "def wait():\n"
    "    while True: os.write(1, b'')\n"
    "threading.Thread(target=wait, daemon=True).start()",
}


@needs_sandbox
@pytest.mark.parametrize("cheat", CHEATS)
def test_a_reply_that_cheats_scores_nothing(cheat: str) -> None:
    tests = ["assert f(2) == 1414", "expected = [2, 3]\nassert f(3) == expected"]
    reward = PythonTests(PythonTests.Config(score="share"))
    sample = Sample(prompt=(), completion=CHEATS[cheat], metadata={"tests": tests})
    assert reward.score([sample]) == [0.0]


@needs_sandbox
def test_a_program_that_prints_leaves_threads_and_says_much_still_passes() -> None:
    reply = (
        "import threading, atexit, time\n"
        "print('hello', end='')\n"
        "atexit.register(print, 'bye')\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "def f(n):\n"
        "    print(n)\n"
        "    return list(range(n))"
    )
    tests = ["assert f(3) == [0, 1, 2]", "assert len(f(3)) == 3", "assert f(20000)[-1] == 19999"]
    tests += ["assert sum(f(9000)[:-1]) + f(9000)[-1] - 8999 == sum(range(8999))"]
    tests += ["assert f(10000) == list(range(10000))", "assert f(2) == [0]"]
    reward = PythonTests(PythonTests.Config(score="share"))
    sample = Sample(prompt=(), completion=reply, metadata={"tests": tests})
    assert reward.score([sample]) == [pytest.approx(5 / 6)]


# --- comparing takes no time ---------------------------------------------------------------------

PRIME = 2**61 - 1
CHOSEN = [PRIME * n for n in range(1, 2001)]


@pytest.mark.parametrize(
    ("test", "answer"),
    [
        ("assert f() == {1}", {"set": [{"int": hex(n)} for n in CHOSEN]}),
        ("assert f() == frozenset({1})", {"frozenset": [{"int": hex(n)} for n in CHOSEN]}),
        ("assert f() == {1: 1}", {"dict": [[{"int": hex(n)}, {"int": "0x1"}] for n in CHOSEN]}),
        ("assert len(set(f())) == 2000", {"set": [{"int": hex(n)} for n in CHOSEN]}),
        ("assert set(f() + [1]) == {1}", {"list": [{"int": hex(n)} for n in CHOSEN]}),
    ],
)
def test_values_that_collide_are_no_answer(test: str, answer: Any) -> None:
    """20,000 of them, compared with each other, took ten seconds outside of the sandbox."""
    compared = 0

    class Counted(int):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return int.__eq__(self, other)  # type: ignore[arg-type]

        __hash__ = int.__hash__

    real = split_tests.plain

    def counting(said: Any) -> Any:
        found = real(said)
        return Counted(found) if type(found) is int else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_tests, "plain", counting)
        assert not take_apart(test).passed([[answer]])
    assert compared < 1000


def test_equal_values_and_ordinary_sets_are_answers() -> None:
    many = {"list": [{"int": "0x7"}] * 5000 + [{"int": hex(n)} for n in range(5000)]}
    assert take_apart("assert set(f() + [1]) == set(range(5000))").passed([[many]])
    assert take_apart("assert f() == {-1, -2}").passed(
        [[{"set": [{"int": "-0x1"}, {"int": "-0x2"}]}]]
    )
    assert take_apart("assert dict(f() + [(3, 4)], b=5) == {1: 2, 3: 4, 'b': 5}").passed(
        [[{"list": [{"tuple": [{"int": "0x1"}, {"int": "0x2"}]}]}]]
    )
    assert take_apart("assert isinstance(f(), set)").passed([[{"set": []}]])
