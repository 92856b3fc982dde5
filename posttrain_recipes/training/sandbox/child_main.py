"""What runs in the sandbox: a reply's program, and the questions of its tests. See `split_tests`.

Its text is the head of the program that is run there, so it imports nothing of this package, and
next to nothing of Python: that would be most of the time that a reply takes. The reply can turn
it into anything, so what it writes is the reply's word and no more.
"""

from __future__ import annotations

import os
import sys
from _json import encode_basestring_ascii as quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any


def encoded(value: Any) -> str:
    """A value as JSON that tells Python's plain types apart; of another one only that it is."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return quoted(str.__str__(value))
    if isinstance(value, float):
        return tagged("float", quoted(float.__repr__(value)))
    if isinstance(value, int):
        return tagged("int", quoted(hex(int.__int__(value))))
    kind: Any
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return tagged(kind.__name__, listed(map(encoded, kind.__iter__(value))))
    if isinstance(value, dict):
        pairs = (listed(map(encoded, pair)) for pair in dict.items(value))
        return tagged("dict", listed(pairs))
    if isinstance(value, bytes | bytearray):
        return tagged("bytes", quoted(value.hex()))
    if isinstance(value, complex):
        return tagged("complex", listed([encoded(value.real), encoded(value.imag)]))
    name = f"{type(value).__module__}.{type(value).__name__}"
    if name == "decimal.Decimal":
        return tagged("Decimal", quoted(str(value)))
    if name == "fractions.Fraction":
        return tagged("Fraction", listed(map(encoded, (value.numerator, value.denominator))))
    return tagged("object", "null")


def tagged(kind: str, text: str) -> str:
    """A JSON object of one key."""
    return f'{{"{kind}": {text}}}'


def listed(texts: Iterable[str]) -> str:
    """A JSON array."""
    return f"[{', '.join(texts)}]"


def answered(steps: Sequence[tuple[str, str]], scope: dict[str, Any]) -> str:
    """An answer for each `ask` as JSON, of one value, or of two where it raised: null and the
    error. An error alone where a `run` raised."""
    answers: list[str] = []
    for kind, source in steps:
        mode = "exec" if kind == "run" else "eval"
        try:
            found = eval(compile(source, "test.py", mode, dont_inherit=True), scope)
            if kind == "ask":
                answers.append(listed([encoded(found)]))
        except BaseException as error:
            if kind == "run":
                return told(error)
            answers.append(listed(["null", told(error)]))
    return listed(answers)


def told(error: BaseException) -> str:
    """An error as JSON, a text; one that cannot be told is an error all the same."""
    try:
        return quoted(f"{type(error).__name__}: {error}"[:200])
    except BaseException:
        return quoted("an error")


def main(reply: str, tests: Sequence[Sequence[tuple[str, str]]], word: str) -> None:
    """Run the reply and then its tests, and write the answers in the last line of output."""
    leave = os._exit
    scope: dict[str, Any] = {"__name__": "reply"}
    try:
        exec(compile(reply, "reply.py", "exec", dont_inherit=True), scope)
    except BaseException as error:
        print(type(error).__name__, error)
        answers = [told(error)] * len(tests)
    else:
        answers = [answered(steps, dict(scope)) for steps in tests]
    sys.stdout.flush()
    os.write(1, f'\n{{"word": {quoted(word)}, "answers": {listed(answers)}}}\n'.encode())
    leave(0)
