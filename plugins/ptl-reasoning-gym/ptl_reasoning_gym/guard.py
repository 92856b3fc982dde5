"""Answers that some tasks would run as Python: only harmless ones are handed on.

`score_answer` of four tasks calls `eval` on an answer, and that of five others sympy's
`parse_expr`, which does. An answer is what a model wrote, so that a model could open files by it,
or keep the machine busy for ever with `9**9**9`. Others make fractions of numbers: `1e999999999`
is as large.
"""

from __future__ import annotations

import ast
import re

EVALUATED = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}
"""Tasks that `eval` answers; right ones are text, or a list that is written in Python."""
PARSED = {
    "countdown",
    "intermediate_integration",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
}
"""Tasks whose answers are expressions."""

_ACTS = re.compile(r"[(*<]")
"""Calls, powers, repetitions and shifts: nothing without one of these does any harm."""
_HUGE = re.compile(r"\d\.?[eE][+-]?[\d_]{5}")
"""A number with an exponent of five digits or more."""
_FUNCTIONS = {
    *("sin", "cos", "tan", "exp", "log", "ln", "sqrt", "asin", "acos", "atan"),
    *("sinh", "cosh", "tanh", "sec", "csc", "cot", "Abs"),
}
_NAMES = {"pi", "E"}
_LONGEST = 1000
"""Characters of an expression."""
_BITS = 4096.0
"""A number that an expression may come to has no more, by the estimate of `_bits`."""
_DEEP = 32.0
"""The largest exponent."""


def harmless(task: str, answer: str) -> bool:
    """Whether the answer can be scored: it only says something, and does nothing."""
    if _HUGE.search(answer):
        return False
    if task in EVALUATED:
        return _ACTS.search(answer) is None
    if task in PARSED:
        return len(answer) <= _LONGEST and _arithmetic(answer)
    return True


def _arithmetic(answer: str) -> bool:
    try:
        return _bits(ast.parse(answer.strip(), mode="eval").body) <= _BITS
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _bits(node: ast.expr) -> float:
    """How many bits the numbers of an expression may come to, at most.

    Raises:
        ValueError: something that is no arithmetic.
    """
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return max(1.0, float(len(str(value))) * 4)
        case ast.Name(id=name) if len(name) == 1 or name in _NAMES:
            return 1.0
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=inner):
            return _bits(inner)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right=right):
            return _bits(left) + _bits(right)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _bits(left) * _exponent(right)
        case ast.Call(func=ast.Name(id=name), args=[inner], keywords=[]) if name in _FUNCTIONS:
            return _bits(inner)
    raise ValueError("no arithmetic")


def _exponent(node: ast.expr) -> float:
    """The largest value of an exponent: its numbers, as if they were multiplied; symbols are 1."""
    most = 1.0
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, int | float):
            most *= max(1.0, abs(part.value))
    _bits(node)
    if most > _DEEP or any(isinstance(p, ast.Pow) for p in ast.walk(node)):
        raise ValueError("too large an exponent")
    return most
