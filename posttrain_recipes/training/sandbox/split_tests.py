"""Splits unit tests so that an untrusted program cannot fake passing them.

`assert f([1, 2]) == 3` becomes a question, the call `f([1, 2])`, and a claim, `? == 3`. The
question is evaluated in the sandbox, where the program is (`child_main`); the value comes back as
plain data, and the claim is checked in this process. The expected value never reaches the program's
process, and nothing that the program defines or patches takes part in the comparison.

A claim is evaluated here only if it is made of literals, operators and the functions in `KNOWN`, as
code of a data set must not run outside of the sandbox either. All else in a test (statements,
names, calls) is evaluated in the sandbox. So the results of the following can be faked by a program
that sets out to:

- a loop, a branch, a `try` or a function that asserts, which is run there whole;
- an assert that compares with nothing that is known here: `assert f(1)`, `assert f(1) == g(1)`,
  `assert f(1) == datetime.date(2020, 1, 1)`, `assert all(f(i) == i for i in range(9))`;
- a check that is no assert: `if f(1) != 2: raise ValueError`.

Nor does this help against a program that has memorized the tests.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from types import CodeType
from typing import Any

COLLIDING = 64
"""Values of one hash, of which a set or a dict may be made."""
LARGEST = 1 << 20
"""Items that an operator may repeat, and bits of an integer: a claim is to take no time."""


@dataclass(frozen=True)
class Test:
    """A test, split into what runs in the sandbox and what is checked outside."""

    steps: tuple[tuple[str, str], ...]
    """In the sandbox, in order: `run` some code, or `ask` for the value of an expression."""
    claims: tuple[CodeType, ...] = ()
    """Expressions over the answers, which must all be true."""
    constants: tuple[tuple[str, CodeType], ...] = ()
    """Constants of the test that only claims use, such as expected values."""

    def passed(self, answers: object) -> bool:
        """Whether a program with these answers to `ask` passes; `answers` is None if a `run`
        failed."""
        asked = sum(kind == "ask" for kind, _ in self.steps)
        if not isinstance(answers, list) or len(answers) != asked:
            return False
        names = _Names({f"?{place}": answer for place, answer in enumerate(answers)})
        try:
            for name, code in self.constants:
                names.constants[name] = eval(code, _SCOPE, names)
            return all(eval(claim, _SCOPE, names) for claim in self.claims)
        except Exception:  # a claim about anything at all may fail in any way
            return False

    def happened(self, answers: object) -> str:
        """What a program with these answers did, in words; they are its own word for it."""
        if isinstance(answers, str):
            return answers
        asked = [source for kind, source in self.steps if kind == "ask"]
        if not isinstance(answers, list) or len(answers) != len(asked):
            return "the program left before its tests were over"
        told = zip(asked, answers, strict=True)
        return "\n".join(f"{source} {_said(answer)}" for source, answer in told) or "it is not so"


@lru_cache(maxsize=1024)
def take_apart(source: str) -> Test:
    """The test in `source`, split; unsplit, as one `run`, if it asks nothing or does not parse."""
    whole = Test((("run", source),))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = _inlined(ast.parse(source).body)
            # Where nothing is asked, it may be the program that has a `sum` of its own.
            for own in ((), tuple(KNOWN)):
                test = _taken_apart(body, own)
                if any(kind == "ask" for kind, _ in test.steps):
                    return test
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    return whole


def _inlined(body: list[ast.stmt]) -> list[ast.stmt]:
    """`def check(g): ...` and `check(f)` at the end as `g = f; ...`, the form of HumanEval."""
    match body:
        case [*before, ast.Expr(ast.Call(ast.Name(name), [ast.Name() as given], []))]:
            pass
        case _:
            return body
    made = [top for top in before if isinstance(top, ast.FunctionDef) and top.name == name]
    named = [n for top in body for n in ast.walk(top) if isinstance(n, ast.Name) and n.id == name]
    if len(made) != 1 or len(named) != 1 or made[0].decorator_list:
        return body
    [check] = made
    match check.args:
        case ast.arguments([], [ast.arg(parameter)], None, [], [], None, []):
            bound = ast.Assign([ast.Name(parameter, ast.Store())], given, lineno=1)
        case _:
            return body
    leaves = (ast.Return, ast.Yield, ast.YieldFrom, ast.Global, ast.Nonlocal)
    if any(isinstance(node, leaves) for node in ast.walk(check)):
        return body
    return [*(top for top in before if top is not check), bound, *check.body]


def _taken_apart(body: Sequence[ast.stmt], own: Sequence[str]) -> Test:
    """The test, with as many constants kept back as its questions do without.

    Args:
        own: names that mean something of the program's.
    """
    shared: set[str] = set()
    while True:
        found = _Questions(body, shared, own)
        used = {
            node.id
            for _, source in found.steps
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Name)
        }
        more = used & {name for name, _ in found.constants}
        if not more:
            return Test(tuple(found.steps), tuple(found.claims), tuple(found.constants))
        shared |= more


class _Questions:
    """Goes over a test once; the constants in `shared` are the program's to know."""

    def __init__(self, body: Sequence[ast.stmt], shared: set[str], own: Sequence[str]) -> None:
        self.steps: list[tuple[str, str]] = []
        self.claims: list[CodeType] = []
        self.constants: list[tuple[str, CodeType]] = []
        self._bound = [*_bound(body), *own]
        self._kept: set[str] = set()
        for top in body:
            match top:
                case ast.Assert(test):
                    self._claim(test)
                case ast.Assign([ast.Name(name)], value) if (
                    name not in shared and self._bound.count(name) == 1 and self._constant(value)
                ):
                    self.constants.append((name, _compiled(self._here(value)[0])))
                    self._kept.add(name)
                case _:
                    self.steps.append(("run", ast.unparse(top)))

    def _claim(self, test: ast.expr) -> None:
        begin = len(self.steps)
        claim, known = self._here(test)
        if not known:  # the program's word alone: whether it is true is asked too
            del self.steps[begin:]
            claim = self._ask(ast.UnaryOp(ast.Not(), ast.UnaryOp(ast.Not(), test)))
        self.claims.append(_compiled(claim))

    def _constant(self, value: ast.expr) -> bool:
        begin = len(self.steps)
        self._here(value)
        asks = len(self.steps) > begin
        del self.steps[begin:]
        return not asks

    def _ask(self, node: ast.expr) -> ast.expr:
        place = sum(kind == "ask" for kind, _ in self.steps)
        self.steps.append(("ask", ast.unparse(node)))
        return ast.Name(f"?{place}", _LOAD)

    def _here(self, node: ast.expr) -> tuple[ast.expr, bool]:
        """The expression as it is evaluated here, and whether anything in it is known here.

        The largest parts in which nothing is are asked, so that the program's objects mean there
        what they mean.
        """
        begin = len(self.steps)
        made = self._parts(node)
        if made is not None and made[1]:
            return made
        del self.steps[begin:]
        return self._ask(node), False

    def _all(self, nodes: Sequence[ast.expr]) -> tuple[list[ast.expr], bool]:
        made = [self._here(node) for node in nodes]
        return [one for one, _ in made], any(known for _, known in made) or not made

    def _display(self, nodes: Sequence[ast.expr | None]) -> list[ast.expr] | None:
        """The parts of a list or the like; None where it is of objects, which mean nothing here."""
        made = [(None, False) if node is None else self._here(node) for node in nodes]
        return [one for one, known in made if one] if all(known for _, known in made) else None

    def _parts(self, node: ast.expr) -> tuple[ast.expr, bool] | None:
        """The same with its parts as they are evaluated here; None where it cannot be."""
        match node:
            case ast.Constant():
                return node, True
            case ast.Name(name):
                known = name in self._kept or (name in TYPES and name not in self._bound)
                return (node, True) if known else None
            case ast.List(parts) | ast.Tuple(parts) | ast.Set(parts):
                made = self._display(parts)
                if made is None:
                    return None
                shown = ast.Set(made) if isinstance(node, ast.Set) else type(node)(made, _LOAD)
                return shown, True
            case ast.Dict(keys, values):
                made = self._display([*keys, *values])
                if made is None:
                    return None
                return ast.Dict([*made[: len(keys)]], made[len(keys) :]), True
            case ast.UnaryOp(sign, operand):
                part, known = self._here(operand)
                return ast.UnaryOp(sign, part), known
            case ast.BoolOp(word, parts):
                made, known = self._all(parts)
                return ast.BoolOp(word, made), known
            case ast.BinOp(left, operator, right):
                [one, two], known = self._all([left, right])
                if isinstance(operator, _FREE):
                    return ast.BinOp(one, operator, two), known
                bounded = _BOUNDED.get(type(operator))
                return (_call(bounded, [one, two]), known) if bounded else None
            case ast.Compare(left, comparisons, others):
                for comparison, other in zip(comparisons, others, strict=True):
                    same = isinstance(comparison, ast.Is | ast.IsNot)
                    if same and not (isinstance(other, ast.Constant) and other.value in _SINGLE):
                        return None
                [first, *rest], known = self._all([left, *others])
                return ast.Compare(first, comparisons, rest), known
            case ast.Call(function, args, keywords):
                called = self._function(function)
                if called is None or any(one.arg is None for one in keywords):
                    return None
                if called == "isinstance" and not all(map(self._constant, args[1:])):
                    return None
                made, known = self._all([*args, *(one.value for one in keywords)])
                named = [
                    ast.keyword(one.arg, value)
                    for one, value in zip(keywords, made[len(args) :], strict=True)
                ]
                called = f"?{called}" if called in ("set", "frozenset", "dict") else called
                return _call(called, made[: len(args)], named), known
            case ast.Attribute(ast.Name("math"), ("pi" | "e" | "inf" | "nan") as number):
                return ast.Name(f"math.{number}", _LOAD), True
        return None

    def _function(self, node: ast.expr) -> str | None:
        match node:
            case ast.Name(name) if name not in self._bound:
                return name if name in KNOWN else None
            case ast.Attribute(ast.Name("math"), name) if f"math.{name}" in KNOWN:
                return f"math.{name}"
        return None


def _bound(body: Sequence[ast.stmt]) -> list[str]:
    """Every name that a test gives a meaning, as often as it does."""
    names = []
    for top in body:
        for node in ast.walk(top):
            match node:
                case ast.Name(name, ast.Store() | ast.Del()) | ast.arg(name):
                    names.append(name)
                case ast.FunctionDef(name) | ast.ClassDef(name) | ast.AsyncFunctionDef(name):
                    names.append(name)
                case ast.alias(name, other):
                    names.append(other or name)
    return names


def _call(name: str, args: list[ast.expr], named: Sequence[ast.keyword] = ()) -> ast.expr:
    return ast.Call(ast.Name(name, _LOAD), args, list(named))


def _compiled(node: ast.expr) -> CodeType:
    return compile(ast.fix_missing_locations(ast.Expression(node)), "claim", "eval")


def _said(answer: object) -> str:
    match answer:
        case [_, str(error)]:
            return f"raised {error}"
        case [value]:
            try:
                found = plain(value)
                return "gave an object" if isinstance(found, Thing) else f"gave {_short(found)}"
            except Exception:  # whatever a program may have written in its place
                pass
    return "gave nothing that can be read"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


class _Names(Mapping[str, Any]):
    """What names mean in a claim; looking at an answer that is none raises."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.constants: dict[str, Any] = {}
        self._answers = answers

    def __getitem__(self, name: str) -> Any:
        if name in self._answers:
            [answer] = self._answers[name]
            return plain(answer)
        return self.constants[name]

    def __iter__(self) -> Any:
        return iter(self.constants)

    def __len__(self) -> int:
        return len(self.constants)


class Thing:
    """An object of the program's, of which is only known that it is there. It equals nothing."""


def plain(said: Any) -> Any:
    """The value that an answer stands for. See `child_main.encoded`.

    Raises:
        ValueError, TypeError, ArithmeticError: it stands for none.
    """
    if not isinstance(said, dict):
        return said
    [(kind, of)] = said.items()
    match kind:
        case "list" | "tuple":
            return TYPES[kind](plain(one) for one in of)
        case "set" | "frozenset":
            return _hashed(TYPES[kind], [plain(one) for one in of])
        case "dict":
            pairs = [(plain(key), plain(value)) for key, value in of]
            return _hashed(dict, pairs, [key for key, _ in pairs])
        case "int":
            if len(of) * 4 > LARGEST:
                raise ValueError("too large an integer")
            return int(of, 16)
        case "float":
            return float(of)
        case "bytes":
            return bytes.fromhex(of)
        case "complex":
            return complex(*map(plain, of))
        case "Fraction":
            return Fraction(*(int(plain(one)) for one in of))
        case "Decimal":
            number = Decimal(of)
            if abs(number.adjusted()) > 10_000:
                raise ValueError("too large a number")
            return number
    return Thing()


def _hashed(kind: Any, values: Sequence[Any], keys: Sequence[Any] | None = None) -> Any:
    """A set or a dict of values, unless a program chose them so that it would take for ever.

    Integers are their own hash, modulo a prime: among those that differ and have one hash, each is
    compared with each.
    """
    keys = values if keys is None else keys
    counts = Counter(map(hash, keys))
    if any(count > COLLIDING for count in counts.values()):
        crowded = {one for one, count in counts.items() if count > COLLIDING}
        first: dict[int, Any] = {}
        for key in keys:
            if hash(key) in crowded and first.setdefault(hash(key), key) != key:
                raise ValueError("values that were chosen to collide")
    return kind(values)


def _set(*given: Any) -> Any:
    return _hashed(set, list(*given))


def _frozenset(*given: Any) -> Any:
    return _hashed(frozenset, list(*given))


def _dict(*given: Any, **named: Any) -> Any:
    pairs = [pair for one in given for pair in (one.items() if isinstance(one, dict) else one)]
    pairs = [(key, value) for key, value in pairs]
    return _hashed(dict, pairs, [key for key, _ in pairs]) | named


def _times(one: Any, two: Any) -> Any:
    for many, count in ((one, two), (two, one)):
        if hasattr(many, "__len__") and len(many) * count > LARGEST:
            raise ValueError("too many")
    return one * two


def _power(one: float, two: float) -> Any:
    if not (isinstance(one, int | float) and isinstance(two, int | float)):
        raise TypeError("a power of something else than numbers")
    if isinstance(one, int) and isinstance(two, int) and one.bit_length() * two > LARGEST:
        raise ValueError("too large a power")
    return one**two


def _remainder(one: Any, two: Any) -> Any:
    if isinstance(one, str | bytes):
        raise TypeError("a format may write without end")
    return one % two


def _range(*given: Any) -> range:
    made = range(*given)
    if len(made) > LARGEST:
        raise ValueError("too many")
    return made


def _round(number: Any, digits: Any = None) -> Any:
    if digits is not None and abs(digits) > 1000:
        raise ValueError("too many digits")
    return round(number, digits)


TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (bool, complex, dict, float, frozenset, int, list, set, str, tuple)
}
"""Types that a claim may name."""
KNOWN: dict[str, Any] = {
    **TYPES,
    **{one.__name__: one for one in (abs, all, any, isinstance, len, max, min, sorted, sum)},
    **{
        f"math.{name}": getattr(math, name)
        for name in ("ceil", "fabs", "floor", "isclose", "isinf")
    },
    **{f"math.{name}": getattr(math, name) for name in ("isnan", "log", "sqrt")},
    "range": _range,
    "round": _round,
}
"""Functions that a claim may call."""
_LOAD = ast.Load()
_SINGLE = (None, True, False)
_FREE = ast.Add | ast.Sub | ast.Div | ast.FloorDiv | ast.BitAnd | ast.BitOr | ast.BitXor
_BOUNDED = {ast.Mult: "?times", ast.Pow: "?power", ast.Mod: "?remainder"}
_SCOPE: dict[str, Any] = {
    "__builtins__": {},
    **KNOWN,
    **{f"math.{name}": getattr(math, name) for name in ("pi", "e", "inf", "nan")},
    "?set": _set,
    "?frozenset": _frozenset,
    "?dict": _dict,
    "?times": _times,
    "?power": _power,
    "?remainder": _remainder,
}
